"""The steward's broom: states that no round starts from any more, files that nothing names, rows that nobody asks for.

A thread of its own walks over a few experiments at a time: leases must not wait for a slow file system. Any number of
coordinators may do it at once. A manifest goes before its file, so that whoever dies in between leaves a file without a
manifest, which the next walk finds, and never a manifest without its file.

What people removed is noted by the place of its files (winnow.store.removals). The next step empties
it, and each walk looks whether anything came to lie there.

No wall clock decides. What attempts left is told by the fence (winnow_coordinator.orphans), and goes when two walks
have found it. What only age can tell must lie there, unchanged, for `sweep_seconds` of this process's monotonic clock:
stamps of other machines are compared with themselves alone.
"""

import time
from collections.abc import Callable, Sequence

from winnow.artefacts import Lying
from winnow.domain import ExperimentStatus, is_final
from winnow.failpoints import Failpoint, reach
from winnow.store import artefacts, datasets, experiments, keys, removals, workers
from winnow.store.tables import Experiment
from winnow.telemetry import logger
from winnow_coordinator import orphans
from winnow_coordinator.context import Coordinator
from winnow_coordinator.datasets import remove_rest

PAGE = 10
"""Experiments in one step."""
REST_SECONDS = 60.0
"""Between the end of one walk and the next."""
SILENT_SECONDS = 86_400.0
"""After which a worker that was not heard of has no row any more."""
Sight = tuple[str, float]
"""The mark of a file, and when it was first seen with that mark."""
_log = logger("coordinator.housekeeping")


class Housekeeper:
    """Walks over everything, a step at a time.

    Args:
        clock: seconds that never go back; time.monotonic unless a test moves it.
    """

    def __init__(self, coordinator: Coordinator, clock: Callable[[], float] = time.monotonic) -> None:
        self._coordinator = coordinator
        self._database, self._store = coordinator.database, coordinator.artefacts
        self._clock = clock
        self._place: str | None = None
        self._rests_until = clock()
        self._seen: dict[str, dict[str, Sight]] = {}
        self._in_order: set[str] = set()
        self._visited: set[str] = set()
        """Places of what was removed that were emptied, or could not be; each walk looks at them again."""

    def step(self) -> None:
        """Go on with what people removed, and look after the next few experiments; behind the last of them, after
        datasets and the sampler's answers."""
        self._empty()
        self._remove_datasets()
        if self._clock() < self._rests_until:
            return
        with self._database.read() as session:
            page = experiments.page(session, before=self._place, limit=PAGE)
        for row in page:
            if row.id not in self._in_order:
                self._attempt(lambda row=row: self._look_after(row))
        self._place = page[-1].id if len(page) == PAGE else None
        if self._place is None:
            self._look_elsewhere()
            self._rests_until = self._clock() + REST_SECONDS

    def walk(self) -> None:
        """A whole walk, without the rest before it."""
        self._rests_until = self._clock()
        self.step()
        while self._place is not None:
            self.step()

    def _remove_datasets(self) -> None:
        """Those whose coordinator died, or lost its database, before all was removed."""
        with self._database.read() as session:
            found = datasets.abandoned(session)
        for id in found:
            remove_rest(self._coordinator, id)

    def _empty(self) -> None:
        """Whoever lost a claim long ago may write there yet: a place is looked at for `sweep_seconds`."""
        with self._database.read() as session:
            places = removals.places(session, seconds=self._coordinator.settings.sweep_seconds)
        self._coordinator.final_views.drop(prefix.partition("/")[2] for prefix in places)
        for prefix, is_outdated in places.items():
            if prefix in self._visited or self._coordinator.stopping.is_set():
                continue
            self._visited.add(prefix)
            if self._empty_place(prefix) and is_outdated:
                with self._database.begin() as session:
                    removals.forget(session, prefix)

    def _empty_place(self, prefix: str) -> bool:
        """Whether nothing is there any more."""
        try:
            files = self._store.lying(prefix)
            self._store.delete(prefix)
        except OSError as error:
            _log.warning("place.unemptied", prefix=prefix, reason=str(error), next="tried again by the next walk")
            return False
        if files:
            reach(Failpoint.PLACE_EMPTIED)
            _log.info("place.emptied", prefix=prefix, files=len(files))
        return True

    def _look_after(self, row: Experiment) -> None:
        trimmed = self._trim(row.id)
        found = orphans.of_experiment(self._database, self._store, row.id).unnamed
        self._sweep(row.id, found, patience=0.0)
        if is_final(ExperimentStatus(row.status)) and not trimmed and not found:
            self._in_order.add(row.id)

    def _trim(self, id: str) -> bool:
        with self._database.begin() as session:
            keys = artefacts.trim(session, id, keep=self._coordinator.settings.keep_states)
        if keys:
            reach(Failpoint.MANIFESTS_TRIMMED)
        for key in keys:
            self._remove(lambda key=key: self._store.delete(key), key)
        if keys:
            _log.info("experiment.trimmed", experiment=id, files=len(keys))
        return bool(keys)

    def _look_elsewhere(self) -> None:
        self._visited.clear()
        with self._database.read() as session:
            known = datasets.ids(session)
        for id in known:
            self._attempt(lambda one=id: self._look_after_dataset(one))
        self._attempt(self._look_after_answers)
        with self._database.begin() as session:
            keys.forget_answers(session)
            workers.forget_silent(session, seconds=SILENT_SECONDS)

    def _look_after_dataset(self, id: str) -> None:
        self._sweep(id, orphans.of_dataset(self._database, self._store, id).unnamed, patience=0.0)

    def _look_after_answers(self) -> None:
        patience = self._coordinator.settings.sweep_seconds
        self._sweep("answers", orphans.answers(self._store), patience=patience, with_folder=False)

    def _sweep(self, scope: str, files: Sequence[Lying], *, patience: float, with_folder: bool = True) -> None:
        """Remove those that an earlier walk saw as they are now, `patience` seconds ago or longer."""
        now, before = self._clock(), self._seen.pop(scope, {})
        sights: dict[str, Sight] = {}
        for file in files:
            mark, since = before.get(file.name, ("", now))
            is_known = mark == file.mark
            if is_known and now - since >= patience:
                self._remove(lambda file=file: self._store.remove(file, with_folder=with_folder), file.name)
            else:
                sights[file.name] = (file.mark, since if is_known else now)
        if sights:
            self._seen[scope] = sights
        if len(sights) < len(files):
            _log.info("files.swept", scope=scope, files=len(files) - len(sights))

    def _remove(self, act: Callable[[], None], name: str) -> None:
        try:
            act()
            reach(Failpoint.FILE_REMOVED)
        except OSError as error:
            _log.warning("file.unremoved", name=name, reason=str(error), next="tried again by the next walk")

    def _attempt(self, look: Callable[[], None]) -> None:
        """A folder that cannot be read holds up no other."""
        try:
            look()
        except OSError as error:
            _log.warning("folder.unread", reason=str(error), next="tried again by the next walk")
