"""Files in the artefact store that nothing names, and what tells them from those that are about to be named.

An attempt's files are told by the fence, not by a clock. Only the holder of attempt n's claim inserts manifests of keys
with `aN`, under that claim; once the row says that the claim is over, nobody ever will. So files are listed first and
the database is asked afterwards: a file that was there, whose attempt is over and that no manifest names, stays
unnamed for ever. Attempts that the database does not know (yet, or any more) are left alone, but for
what people removed: the place of that is noted (winnow.store.removals).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from winnow.artefacts import ArtefactStore, Lying
from winnow.datasets.shelf import PARTS
from winnow.domain import RoundStatus
from winnow.store import Database, artefacts, rounds
from winnow.store.tables import Dataset

ANSWERS = ("selections", "comparisons", "cancelled")
"""Where the sampler keeps its answers. They can be computed again; nobody claims them, so only their age tells."""
_OF_ROUND = re.compile(r"experiments/[0-9a-f]{24}/rounds/(?P<number>\d{4,})/a(?P<attempt>\d+)/[^/]+")
_OF_DATASET = re.compile(rf"datasets/[0-9a-f]{{24}}/a(?P<attempt>\d+)/(?P<part>{PARTS}/)?[^/]+")


@dataclass(frozen=True)
class Found:
    """What lies in one place. `unnamed`: the fence says that it may go. `strange`: of no attempt that is known."""

    unnamed: Sequence[Lying]
    strange: Sequence[Lying]


def of_experiment(database: Database, store: ArtefactStore, id: str) -> Found:
    """Files of one experiment."""
    files = store.lying(f"experiments/{id}")
    if not files:
        return Found((), ())
    with database.read() as session:
        claims = {row.number: (row.status, row.attempt) for row in rounds.of_experiment(session, id)}
        named = artefacts.names(session, id)  # after the claims: what they named before they were over is there
    unnamed: list[Lying] = []
    strange: list[Lying] = []
    for file in files:
        match = _OF_ROUND.fullmatch(file.name)
        status, newest = claims.get(int(match["number"]), ("", -1)) if match else ("", -1)
        attempt = int(match["attempt"]) if match else 0
        if attempt > newest:
            strange.append(file)
        elif file.name not in named and not (status == RoundStatus.TRAINING and attempt == newest):
            unnamed.append(file)
    return Found(unnamed, strange)


def of_dataset(database: Database, store: ArtefactStore, id: str) -> Found:
    """Files of one dataset. Until it is ready, shards of any attempt may be what the next one goes on from, also of one
    that failed; then they are those below its `location`, and what says how far each reaches is no longer needed.
    """
    files = store.lying(f"datasets/{id}")
    with database.read() as session:
        row = session.get(Dataset, id)
    unnamed: list[Lying] = []
    strange: list[Lying] = []
    for file in files:
        match = _OF_DATASET.fullmatch(file.name)
        attempt = int(match["attempt"]) if match else 0
        if row is None or match is None or attempt > row.attempt:
            strange.append(file)
        elif not _is_used(row, file, is_part=match["part"] is not None):
            unnamed.append(file)
    return Found(unnamed, strange)


def answers(store: ArtefactStore) -> Sequence[Lying]:
    """The sampler's answers, and the temporary files of one that was killed while it wrote."""
    return [file for folder in ANSWERS for file in store.lying(folder)]


def _is_used(row: Dataset, file: Lying, *, is_part: bool) -> bool:
    if row.location is None:
        return True
    is_half_written = file.name.rpartition("/")[2].startswith(".")
    return file.name.startswith(f"{row.location}/") and not is_part and not is_half_written
