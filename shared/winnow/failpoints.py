"""Named durable steps, at each of which a process can be made to die: what survives a death is tested, not argued.

`WINNOW_FAILPOINT` says where, in one of three forms:

    NAME      every process that reaches the step ends there; one that is started again ends again
    NAME:N    the N-th time that one process reaches it
    /FOLDER   the first process that reaches a step of which the folder holds a file NAME; the file becomes
              NAME.PID.hit, by the id of the process, and the one that is started again goes on. A number N in the file
              means the N-th time

A process ends with `EXIT_CODE` and nothing else: no handler runs, no buffer is written, no lock is given back. Unset, a
step costs one comparison. The library reads no setting: `arm` is called where a process begins.
"""

import os
import threading
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Protocol, Self

VARIABLE = "WINNOW_FAILPOINT"
EXIT_CODE = 86
"""How a process ends that reached its step; nothing else here ends so."""


class Failpoint(StrEnum):
    """Every durable step: its name, the one module that takes it, and what is done by then and what is not."""

    module: str
    meaning: str

    def __new__(cls, name: str, module: str, meaning: str) -> Self:
        self = str.__new__(cls, name)
        self._value_ = name
        self.module, self.meaning = module, meaning
        return self

    SCHEMA_CHANGED = "schema.changed", "winnow.store.engine", "migrations have run, uncommitted"
    SCHEMA_MIGRATED = "schema.migrated", "winnow.store.engine", "migrations are committed; nothing serves yet"

    SHARDS_TAKEN_OVER = (
        "shards.taken_over",
        "winnow.datasets.shelf",
        "an earlier attempt's shards are this one's; those that it cannot go on from lie among them",
    )
    SHARD_STORED = "shard.stored", "winnow.datasets.packing", "a shard is stored; nothing says how far it reaches"
    SHARD_KEPT = "shard.kept", "winnow.datasets.shelf", "the next attempt can go on behind this shard"
    PACK_FINISHED = "pack.finished", "winnow.datasets.packing", "packed.json is stored; nobody was told"
    PATCHES_COPIED = "patches.copied", "winnow.datasets.cache", "a cached copy is synced under its temporary name"
    PATCHES_CACHED = "patches.cached", "winnow.datasets.cache", "a cached copy has its name"
    ARTEFACT_WRITTEN = "artefact.written", "winnow.artefacts", "an artefact is synced under its temporary name"
    ARTEFACT_RENAMED = "artefact.renamed", "winnow.artefacts", "an artefact has its name; no manifest names it"

    KEY_RESERVED = "key.reserved", "winnow_coordinator.idempotency", "an Idempotency-Key is taken, uncommitted"
    ANSWER_REMEMBERED = (
        "answer.remembered",
        "winnow_coordinator.idempotency",
        "a key's answer is kept, uncommitted",
    )
    DATASET_INSERTED = "dataset.inserted", "winnow_coordinator.datasets", "a dataset is inserted, uncommitted"
    EXPERIMENT_INSERTED = (
        "experiment.inserted",
        "winnow_coordinator.experiments",
        "an experiment, S^0 and round 0 are inserted, uncommitted",
    )
    REMOVAL_BEGUN = (
        "removal.begun",
        "winnow_coordinator.datasets",
        "a dataset is said to be in removal; all of it is there",
    )
    SAMPLES_DELETED = (
        "samples.deleted",
        "winnow.store.datasets",
        "a slice of the samples of a dataset that people remove is gone; the others and the dataset are not",
    )
    REQUEST_COMMITTED = "request.committed", "winnow_coordinator.access", "a request is committed; nobody was answered"

    BELL_DUE = "bell.due", "winnow.queue", "a row that waits is committed; its bell has not rung"
    BELL_RUNG = "bell.rung", "winnow.queue", "the bell is with the broker"
    BELL_HEARD = "bell.heard", "winnow_trainer.tasks", "the bell is off the broker; nothing is claimed"
    BELLS_REPEATED = (
        "bells.repeated",
        "winnow_coordinator.tidying",
        "rows are marked as rung again; no bell rang",
    )

    DEVICE_TAKEN = "device.taken", "winnow_trainer.worker", "a device is leased; nothing is claimed"
    WORK_CLAIMED = "work.claimed", "winnow_trainer.worker", "a row is claimed; nobody works on it"
    JOB_WRITTEN = "job.written", "winnow_trainer.supervisor", "the round is said to train; no process does"
    LEASE_RENEWED = "lease.renewed", "winnow_trainer.supervisor", "the claim is renewed in mid-work"

    CHECKPOINT_WRITTEN = "checkpoint.written", "winnow.simclr.checkpoint", "a state is written, unsynced"
    CHECKPOINT_SYNCED = "checkpoint.synced", "winnow.simclr.checkpoint", "a state is synced under its temporary name"
    CHECKPOINT_RENAMED = "checkpoint.renamed", "winnow.simclr.checkpoint", "a state has its name; it is not stored"
    CHECKPOINT_STORED = "checkpoint.stored", "winnow_trainer.training", "a state's files are stored; nobody was told"
    CHECKPOINT_TOLD = "checkpoint.told", "winnow.simclr.train", "the supervisor was told; older ones are still there"
    CHECKPOINT_HEARD = "checkpoint.heard", "winnow_trainer.supervisor", "a checkpoint is stored; no manifest names it"
    CHECKPOINT_RECORDED = (
        "checkpoint.recorded",
        "winnow_trainer.supervisor",
        "a checkpoint's manifests are committed; the one before it is still stored",
    )
    TRAINING_ENDED = "training.ended", "winnow_trainer.training", "the last step is taken; nothing is evaluated"
    ROUND_EVALUATED = "round.evaluated", "winnow_trainer.training", "every artefact is stored; the result is not told"
    RESULT_TOLD = "result.told", "winnow_trainer.child", "the result is told; the process that computed it ends"
    RESULT_HEARD = "result.heard", "winnow_trainer.supervisor", "the result is heard; nothing of it is committed"
    SAMPLES_STORED = (
        "samples.stored",
        "winnow_trainer.supervisor",
        "a slice of a dataset's samples is committed; it is not ready",
    )
    WORK_FINISHED = "work.finished", "winnow_trainer.supervisor", "the result is committed; leftovers are still stored"
    WORK_GIVEN_BACK = "work.given_back", "winnow_trainer.supervisor", "a claim was given back without a result"

    PICK_CLAIMED = "pick.claimed", "winnow_coordinator.picking", "a trained round is claimed; nobody picks"
    PICK_PREPARED = "pick.prepared", "winnow_coordinator.picking", "the candidates are read; the sampler is not asked"
    SAMPLER_ASKED = "sampler.asked", "winnow_coordinator.sampler", "the sampler took the request"
    PICK_RENEWED = "pick.renewed", "winnow_coordinator.picking", "the claim is renewed while the sampler computes"
    SELECTION_BEGUN = "selection.begun", "winnow_sampler.jobs", "the sampler computes"
    ANSWER_COMPUTED = "answer.computed", "winnow_sampler.jobs", "the picks are computed, and nowhere kept"
    ANSWER_STORED = "answer.stored", "winnow_sampler.jobs", "the picks are kept; the coordinator was not answered"
    SAMPLER_ANSWERED = "sampler.answered", "winnow_coordinator.picking", "the picks are here; nothing is inserted"
    ROUND_DONE = "round.done", "winnow_coordinator.picking", "a round is marked as done, uncommitted"
    PICKS_INSERTED = "picks.inserted", "winnow_coordinator.picking", "picks are inserted, uncommitted"
    ROUND_INSERTED = (
        "round.inserted",
        "winnow_coordinator.picking",
        "picks and the next round, uncommitted",
    )
    PICK_FINISHED = "pick.finished", "winnow_coordinator.picking", "picks and the next round are committed"
    PICK_GIVEN_BACK = "pick.given_back", "winnow_coordinator.picking", "a pick was given back: the sampler is away, say"
    EXPERIMENT_ENDED = "experiment.ended", "winnow_coordinator.picking", "the experiment is completed, uncommitted"
    ROUND_CLOSED = "round.closed", "winnow_coordinator.picking", "a round that is not picked after is committed as done"

    LEASE_RECLAIMED = "lease.reclaimed", "winnow_coordinator.tidying", "a lost claim is taken back"
    EXPERIMENT_SETTLED = "experiment.settled", "winnow_coordinator.tidying", "a pause or a cancellation took effect"
    MANIFESTS_TRIMMED = (
        "manifests.trimmed",
        "winnow_coordinator.housekeeping",
        "manifests of older states are gone; their files lie there",
    )
    FILE_REMOVED = "file.removed", "winnow_coordinator.housekeeping", "one of the files that nothing names is gone"
    PLACE_EMPTIED = (
        "place.emptied",
        "winnow_coordinator.housekeeping",
        "the files of what was removed are gone; their place is still noted",
    )

    UPLOAD_STORED = "upload.stored", "winnow_sampler.uploads", "an upload's bytes are stored; nothing describes them"
    UPLOAD_DESCRIBED = "upload.described", "winnow_sampler.uploads", "an upload is whole; nobody was answered"


class Armed(Protocol):
    """What `WINNOW_FAILPOINT` asked of this process."""

    def is_due(self, point: Failpoint, times: int) -> bool:
        """Whether the process ends at `point`, which it reached for the `times`-th time."""
        ...


class ByName:
    """One step, at its N-th time."""

    def __init__(self, point: Failpoint, number: int) -> None:
        self._point, self._number = point, number

    def is_due(self, point: Failpoint, times: int) -> bool:
        return point is self._point and times == self._number


class ByFolder:
    """Any step that has a file in a folder, once: whoever renames the file first is the one that ends.

    The name says all there is to say: a process may be killed here before it can write a word, by its parent's death.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def is_due(self, point: Failpoint, times: int) -> bool:
        armed = self._folder / point
        try:
            if times < int(armed.read_text().strip() or 1):
                return False
            armed.rename(armed.with_name(f"{point}.{os.getpid()}.hit"))
        except FileNotFoundError:
            return False
        return True


_armed: Armed | None = None
_times: Counter[Failpoint] = Counter()
_one_at_a_time = threading.Lock()


def parse(words: str) -> Armed | None:
    """What `WINNOW_FAILPOINT` says; None where it is empty. Raises ValueError for a step that there is not."""
    if not words:
        return None
    if words.startswith("/"):
        return ByFolder(Path(words))
    name, _, number = words.partition(":")
    try:
        return ByName(Failpoint(name), _times_of(number))
    except ValueError:
        raise ValueError(
            f"{words!r} is not NAME, NAME:N or an absolute folder; the names are in docs/durability.md"
        ) from None


def arm(words: str) -> None:
    """Have this process end where `words` say, which is nowhere when they are empty. Raises ValueError."""
    global _armed  # noqa: PLW0603 - a process is armed as a whole, once, and the library has no settings to pass
    _armed = parse(words)
    _times.clear()


def arm_from(environment: Mapping[str, str]) -> None:
    """`arm` for a process that has no Settings: a training child."""
    arm(environment.get(VARIABLE, ""))


def reach(point: Failpoint) -> None:
    """End the process here, if this step is the one."""
    if _armed is not None:
        _reach(_armed, point)


def _reach(armed: Armed, point: Failpoint) -> None:
    with _one_at_a_time:
        _times[point] += 1
        if armed.is_due(point, _times[point]):
            os.write(2, f"failpoint {point} reached: process {os.getpid()} ends here\n".encode())
            os._exit(EXIT_CODE)


def _times_of(number: str) -> int:
    if number and int(number) < 1:
        raise ValueError(number)
    return int(number or 1)
