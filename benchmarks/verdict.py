"""What must hold of experiments that ran through faults, judged by what lies in the database and the artefact store.

Reads plain rows, and trusts no constraint of the schema: a rule that the database holds by itself is checked anyway.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from winnow.domain import Arm, ExperimentSpec, Role
from winnow.store import Database
from winnow.store.tables import Artefact, Event, Experiment, Pick, Round, Sample

Line = dict[str, Any]


@dataclass(frozen=True)
class Breach:
    """A rule that does not hold, of which experiment, and what was found instead."""

    rule: str
    where: str
    what: str


@dataclass(frozen=True)
class Record:
    """One experiment as it lies in the database."""

    experiment: Line
    rounds: list[Line]
    picks: list[Line]
    artefacts: list[Line]
    events: list[Line]
    roles: dict[str, set[int]]

    @property
    def name(self) -> str:
        return f"{self.experiment['name']} ({self.experiment['id']})"

    @property
    def spec(self) -> ExperimentSpec:
        return ExperimentSpec.model_validate(self.experiment["spec"])

    def told(self, type: str) -> list[Line]:
        """Its events of one type."""
        return [event for event in self.events if event["type"] == type]


@dataclass(frozen=True)
class Outcome:
    """What two runs of one spec must agree on: picks in order, visits, metrics, and the weights bit for bit."""

    picks: list[tuple[int, int, int, float]]
    visits: list[int]
    metrics: list[Line]
    weights: list[str]

    @classmethod
    def of(cls, record: Record) -> "Outcome":
        weights = {row["round"]: row["sha256"] for row in record.artefacts if row["kind"] == "state/weights"}
        return cls(
            sorted((row["round"], row["rank"], row["sample_idx"], row["score"]) for row in record.picks),
            [row["visits"] for row in record.rounds],
            [row["metrics"] for row in record.rounds],
            [weights.get(row["number"], "none") for row in record.rounds],
        )


def read(database: Database, ids: Sequence[str]) -> list[Record]:
    """The experiments of these ids, in one look. Those that are not there are left out."""
    with database.read() as session:
        found = [_read_one(session, id) for id in ids]
    return [record for record in found if record is not None]


def judge(record: Record, artefacts: Path) -> list[Breach]:
    """Every rule on one experiment. `artefacts` is the directory of the artefact store."""
    return [Breach(rule, record.name, what) for rule, check in RULES.items() for what in check(record, artefacts)]


def compare(record: Record, undisturbed: Outcome) -> list[Breach]:
    """What differs from the same spec's undisturbed run."""
    mine = Outcome.of(record)
    return [
        Breach("same", record.name, f"{part}: {_first_difference(getattr(mine, part), getattr(undisturbed, part))}")
        for part in vars(undisturbed)
        if getattr(mine, part) != getattr(undisturbed, part)
    ]


def _first_difference(mine: list[Any], theirs: list[Any]) -> str:
    for place, (a, b) in enumerate(zip(mine, theirs, strict=False)):
        if a != b:
            return f"at {place} {a} instead of {b}"
    return f"{len(mine)} instead of {len(theirs)}"


def _ends(record: Record, _: Path) -> Iterator[str]:
    status = record.experiment["status"]
    if status != "completed":
        yield f"it is {status}: {record.experiment['error']}"
    open_rounds = {row["number"]: row["status"] for row in record.rounds if row["status"] != "done"}
    if open_rounds:
        yield f"rounds that are not done: {open_rounds}"


def _publishes_once(record: Record, _: Path) -> Iterator[str]:
    numbers = [row["number"] for row in record.rounds]
    wanted = list(range(record.spec.total_rounds))
    if numbers != wanted:
        yield f"rounds {numbers} instead of {wanted}"
    for type in ("round.trained", "round.done"):
        told = Counter(event["data"]["round"] for event in record.told(type))
        wrong = {number: told[number] for number in {*wanted, *told} if told[number] != 1}
        if wrong:
            yield f"{type} was told this often by round: {wrong}"
    if len(record.told("experiment.completed")) != 1:
        yield f"experiment.completed was told {len(record.told('experiment.completed'))} times"


def _picks_once(record: Record, _: Path) -> Iterator[str]:
    twice = [idx for idx, times in Counter(row["sample_idx"] for row in record.picks).items() if times > 1]
    if twice:
        yield f"picked more than once: {twice[:10]}"


def _ranks(record: Record, _: Path) -> Iterator[str]:
    if record.spec.arm is Arm.FULL:
        return
    so_far = 0
    for row in record.rounds:
        ranks = sorted(pick["rank"] for pick in record.picks if pick["round"] == row["number"])
        so_far += len(ranks)
        if ranks != list(range(record.spec.budget)):
            yield f"round {row['number']} has the ranks {ranks} instead of 0 to {record.spec.budget - 1}"
        if row["samples"] != so_far:
            yield f"round {row['number']} says {row['samples']} samples, and {so_far} are picked"


def _keeps_roles_apart(record: Record, _: Path) -> Iterator[str]:
    picked = {row["sample_idx"] for row in record.picks}
    for role in (Role.LABELLED, Role.TEST, Role.VALIDATION):
        if shared := picked & record.roles.get(role, set()):
            yield f"picked from the {role} samples: {sorted(shared)[:10]}"
    if strange := picked - record.roles.get(Role.POOL, set()):
        yield f"picked from outside the pool: {sorted(strange)[:10]}"


def _artefacts_match(record: Record, artefacts: Path) -> Iterator[str]:
    kinds = Counter((row["round"], row["kind"]) for row in record.artefacts)
    if doubled := [key for key, times in kinds.items() if times > 1]:
        yield f"stored for more than one attempt: {doubled[:10]}"
    for number in range(len(record.rounds)):
        if missing := {"state/weights", "state/optimizer", "state/counters"} - {k for n, k in kinds if n == number}:
            yield f"round {number} has no {sorted(missing)}"
    for row in record.artefacts:
        path = artefacts / row["key"]
        if f"/{row['round']:04d}/a{row['attempt']}/" not in row["key"]:
            yield f"{row['key']} does not carry its round {row['round']} and attempt {row['attempt']}"
        if not path.is_file():
            yield f"{row['key']} is missing"
        elif path.stat().st_size != row["size"]:
            yield f"{row['key']} has {path.stat().st_size} bytes, and its manifest says {row['size']}"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != row["sha256"]:
            yield f"{row['key']} does not match its sha256"


def _attempts_increase(record: Record, _: Path) -> Iterator[str]:
    for row in record.rounds:
        began = [event["data"]["attempt"] for event in record.told("round.training")]
        mine = [
            attempt
            for attempt, event in zip(began, record.told("round.training"), strict=True)
            if event["data"]["round"] == row["number"]
        ]
        if any(later <= earlier for earlier, later in pairwise(mine)):
            yield f"round {row['number']} was trained by the attempts {mine}"
        if not mine or row["attempt"] < max(mine):
            yield f"round {row['number']} is at attempt {row['attempt']}, after {mine}"


def _events_are_gapless(record: Record, _: Path) -> Iterator[str]:
    numbers = [event["seq"] for event in record.events]
    if numbers != list(range(1, record.experiment["events"] + 1)):
        yield f"{len(numbers)} events up to number {max(numbers, default=0)}, {record.experiment['events']} counted"


RULES: dict[str, Callable[[Record, Path], Iterator[str]]] = {
    "ends": _ends,
    "published once": _publishes_once,
    "picked once": _picks_once,
    "ranks": _ranks,
    "roles": _keeps_roles_apart,
    "artefacts": _artefacts_match,
    "attempts": _attempts_increase,
    "events": _events_are_gapless,
}
DOUBLED = ("published once", "picked once")
"""Rules whose breach means that something was done twice."""


def _read_one(session: Session, id: str) -> Record | None:
    (experiment,) = _rows(session, Experiment, Experiment.id == id) or [None]
    if experiment is None:
        return None
    roles: dict[str, set[int]] = {}
    for sample in _rows(session, Sample, Sample.dataset_id == experiment["dataset_id"]):
        roles.setdefault(sample["role"], set()).add(sample["idx"])
    return Record(
        experiment,
        sorted(_rows(session, Round, Round.experiment_id == id), key=lambda row: row["number"]),
        _rows(session, Pick, Pick.experiment_id == id),
        _rows(session, Artefact, Artefact.experiment_id == id),
        sorted(_rows(session, Event, Event.experiment_id == id), key=lambda row: row["seq"]),
        roles,
    )


def _rows(session: Session, table: Any, condition: Any) -> list[Line]:
    """Plain rows: the identity map of entities would make one of two rows that share a key."""
    return [dict(row) for row in session.execute(select(table.__table__).where(condition)).mappings()]
