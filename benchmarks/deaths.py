"""What a process held when it died, when that was taken back, and how much training is done again."""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import or_, select
from sqlalchemy.exc import SQLAlchemyError
from verdict import Record

from winnow.store import Database, artefacts
from winnow.store.claims import SELECT, TRAIN
from winnow.store.tables import Artefact, Round


@dataclass(frozen=True)
class Death:
    """A claim whose holder was killed or stopped. Times are seconds since the epoch.

    `unsaved` is the time since the newest checkpoint that the database knows of, None where there is none; `epochs` are
    those completed since, None outside training.
    """

    fault: str
    at: float
    experiment: str
    round: int
    attempt: int
    unsaved: float | None
    epochs: int | None


@dataclass(frozen=True)
class Goodbye:
    """An orderly end: seconds from SIGTERM to exit, whether in mid-training, and whether a checkpoint was left then."""

    seconds: float
    in_training: bool
    saved: bool | None


def witness(database: Database, store: Path, pid: int, fault: str) -> list[Death]:
    """The rounds that process `pid` holds right now; none where the database does not answer."""
    at = time.time()
    holder = or_(Round.owner.endswith(f":{pid}"), Round.owner.contains(f"-{pid}-"))
    at_work = Round.status.in_((TRAIN.working, SELECT.working))
    try:
        with database.read() as session:
            rows = session.scalars(select(Round).where(holder, at_work)).all()
            stored = [artefacts.of_round(session, row.experiment_id, row.number) for row in rows]
    except SQLAlchemyError:
        return []
    return [
        _death(fault, at, row, found.get("checkpoint/counters"), store) for row, found in zip(rows, stored, strict=True)
    ]


def left_checkpoint(database: Database, left: Death) -> bool | None:
    """Whether the attempt has a checkpoint, or its results, from after its trainer was told to leave.

    None where a later attempt's stand in their place already.
    """
    with database.read() as session:
        kept = artefacts.of_round(session, left.experiment, left.round)
    ends = [kept[kind] for kind in ("checkpoint/counters", "state/counters") if kind in kept]
    if any(row.attempt > left.attempt for row in ends):
        return None
    return any(row.created_at >= left.at and row.attempt == left.attempt for row in ends)


def waits(deaths: Sequence[Death], records: Sequence[Record]) -> list[tuple[Death, float]]:
    """Each death whose claim was given back, with the seconds until then. Some were renewed or finished in time."""
    events = {record.experiment["id"]: record.events for record in records}
    found: list[tuple[Death, float]] = []
    for death in deaths:
        said = f"(attempt {death.attempt})"
        back = [
            event["at"] - death.at
            for event in events.get(death.experiment, [])
            if event["type"] in ("round.retried", "round.failed")
            and event["data"]["round"] == death.round
            and event["data"]["cause"] == "lost"
            and said in (event["data"]["error"] or "")
        ]
        found += [(death, seconds) for seconds in back[:1]]
    return found


def describe(seconds: Sequence[float]) -> str:
    """Median, worst and count."""
    if not seconds:
        return "none"
    return f"median {statistics.median(seconds):.1f} s, worst {max(seconds):.1f} s, of {len(seconds)}"


def _death(fault: str, at: float, row: Round, counters: Artefact | None, store: Path) -> Death:
    unsaved = None if counters is None else at - counters.created_at
    epoch = row.progress.get("epoch") if row.progress.get("phase") == "train" else None
    lost = None if epoch is None else max(epoch - (_epoch(store / counters.key) if counters is not None else 0), 0)
    return Death(fault, at, row.experiment_id, row.number, row.attempt, unsaved, lost)


def _epoch(counters: Path) -> int:
    """The epoch that a checkpoint goes on with."""
    try:
        return json.loads(counters.read_text())["epoch"]
    except (OSError, ValueError):  # replaced in this moment
        return 0
