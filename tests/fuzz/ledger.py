"""What must hold of all experiments and rounds after every step, and what the last step may have changed."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from winnow.domain import ExperimentStatus, RoundStatus, allowed_from, has_ended, is_final
from winnow.store import Database
from winnow.store.claims import Work
from winnow.store.tables import Artefact, Event, Experiment, Pick, Round, Sample

Columns = dict[str, Any]
WORKING = (RoundStatus.TRAINING, RoundStatus.SELECTING)
ORDERS = {
    "pause": ExperimentStatus.PAUSING,
    "resume": ExperimentStatus.RUNNING,
    "cancel": ExperimentStatus.CANCELLING,
}


@dataclass(frozen=True)
class Page:
    """All rows at one moment, by id."""

    experiments: dict[str, Columns]
    rounds: dict[str, Columns]
    picks: list[Columns]
    artefacts: list[Columns]
    events: list[Columns]


class Ledger:
    """Reads all rows after each step, and holds them against the rules and against the rows before."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._expected: set[str] = set()
        self._goes: set[str] = set()
        self._steps = 1
        self.is_sound = True
        self._before = self._read()

    def check(self) -> None:
        """Assert everything of the rows as they are now."""
        self.is_sound = False
        page = self._read()
        self._require_allowed(self._before.experiments, page.experiments, ExperimentStatus)
        self._require_allowed(self._before.rounds, page.rounds, RoundStatus)
        self._require_attempts(page)
        _require_homes(page)
        self._goes.clear()
        for id, experiment in page.experiments.items():
            _require_whole(experiment, [one for one in page.rounds.values() if one["experiment_id"] == id], page)
        self._require_picks(page)
        self._before, self._steps, self.is_sound = page, 1, True

    def expect_attempt(self, id: str) -> None:
        """The step that runs claims this round: its attempt rises by one, and no other's does."""
        self._expected.add(id)

    def expect_removal(self, id: str) -> None:
        """The step that runs removes this experiment, and all that is its own."""
        mine = (round for round, row in self._before.rounds.items() if row["experiment_id"] == id)
        self._goes |= {id, *mine}

    def expect_two_transitions(self) -> None:
        """The step that runs is two in one: a row may go through one state to the next."""
        self._steps = 2

    def require_nothing_changed(self) -> None:
        """Assert that the step that was refused left every row as it was."""
        assert self._read() == self._before, "a write that was refused changed something"

    def require_all_ended(self) -> None:
        stuck = {
            id: row["status"]
            for id, row in self._before.experiments.items()
            if not has_ended(ExperimentStatus(row["status"]))
        }
        assert not stuck, f"nothing ends these: {stuck}, {self._before.rounds}"

    def ids(self) -> list[str]:
        return list(self._before.rounds)

    def claimable(self, work: Work) -> set[str]:
        """The rounds that a worker may claim, told from the rows."""
        lets_work = (ExperimentStatus.CREATED, ExperimentStatus.RUNNING)
        at_work = {id for id, row in self._before.experiments.items() if row["status"] in lets_work}
        rows = self._before.rounds.items()
        return {id for id, row in rows if row["status"] == work.waiting and row["experiment_id"] in at_work}

    def holds(self, token: tuple[Work, str, int]) -> bool:
        """Whether the claim is still its holder's."""
        work, id, attempt = token
        row = self._before.rounds.get(id)
        return row is not None and row["status"] == work.working and row["attempt"] == attempt

    def may_be_ordered(self, id: str, order: str) -> bool:
        return ORDERS[order] in allowed_from(ExperimentStatus(self._before.experiments[id]["status"]))

    def may_be_removed(self, id: str) -> bool:
        return has_ended(ExperimentStatus(self._before.experiments[id]["status"]))

    def _read(self) -> Page:
        with self._database.read() as session:

            def rows(table: Any) -> list[Columns]:
                found = session.execute(select(*table.__table__.columns).order_by(*table.__table__.primary_key))
                return [dict(row._mapping) for row in found]

            def by_id(table: Any) -> dict[str, Columns]:
                return {row["id"]: row for row in rows(table)}

            return Page(by_id(Experiment), by_id(Round), rows(Pick), rows(Artefact), rows(Event))

    def _require_allowed(self, before: dict[str, Columns], after: dict[str, Columns], kind: type[Any]) -> None:
        for id, row in after.items():
            if id not in before:
                continue
            was, became = kind(before[id]["status"]), kind(row["status"])
            assert became in _reached(was, self._steps), f"{kind.__name__} {was} became {became}"
        assert before.keys() - after.keys() == before.keys() & self._goes, "rows are gone, or stayed"

    def _require_attempts(self, page: Page) -> None:
        for id, row in page.rounds.items():
            was = self._before.rounds.get(id, {"attempt": 0})["attempt"]
            assert row["attempt"] == was + (id in self._expected), f"attempt {was} became {row['attempt']}"
        self._expected.clear()

    def _require_picks(self, page: Page) -> None:
        with self._database.read() as session:
            pool = set(session.scalars(select(Sample.idx).where(Sample.role == "pool")))
        batches: dict[tuple[str, int], list[int]] = defaultdict(list)
        seen: dict[str, set[int]] = defaultdict(set)
        for pick in page.picks:
            assert pick["sample_idx"] not in seen[pick["experiment_id"]], "a sample was picked twice"
            seen[pick["experiment_id"]].add(pick["sample_idx"])
            batches[pick["experiment_id"], pick["round"]].append(pick["rank"])
        assert all(chosen <= pool for chosen in seen.values()), "a pick is no sample of the pool"
        for ranks in batches.values():
            assert sorted(ranks) == list(range(len(ranks))), f"ranks have gaps: {sorted(ranks)}"


def _require_homes(page: Page) -> None:
    """Nothing is of an experiment that is gone."""
    rows = [*page.rounds.values(), *page.picks, *page.artefacts, *page.events]
    assert {row["experiment_id"] for row in rows} <= page.experiments.keys()


def _require_whole(experiment: Columns, rounds: list[Columns], page: Page) -> None:
    """One experiment and its rounds, picks, artefacts and events."""
    id, status = experiment["id"], ExperimentStatus(experiment["status"])
    rounds = sorted(rounds, key=lambda one: one["number"])
    assert [one["number"] for one in rounds] == list(range(len(rounds)))
    assert all(one["status"] == RoundStatus.DONE for one in rounds[:-1]), "a round began before the one before was done"
    assert (experiment["ended_at"] is not None) == has_ended(status)
    newest = RoundStatus(rounds[-1]["status"])
    if is_final(status):
        assert is_final(newest), f"{status} with a round that is {newest}"
        assert (status is ExperimentStatus.COMPLETED) == (newest is RoundStatus.DONE)
    elif status is not ExperimentStatus.CANCELLING:
        assert (status is ExperimentStatus.FAILED) == (newest is RoundStatus.FAILED), f"{status} and its round {newest}"
    for one in rounds:
        _require_claim(one)
    if status is ExperimentStatus.PAUSED:
        assert not [one for one in rounds if one["status"] in WORKING], "a paused experiment is worked on"
    if experiment["spec"]["arm"] != "full":
        for one in rounds:
            picked = [pick for pick in page.picks if pick["experiment_id"] == id and pick["round"] <= one["number"]]
            assert one["samples"] == len(picked), "|S^t| is not what was picked"
    numbers = [event["seq"] for event in page.events if event["experiment_id"] == id]
    assert numbers == list(range(1, experiment["events"] + 1)), "events have gaps"
    attempts = {one["number"]: one["attempt"] for one in rounds}
    made = [row for row in page.artefacts if row["experiment_id"] == id]
    assert all(row["attempt"] <= attempts[row["round"]] for row in made), "an artefact of an attempt that was not begun"


def _require_claim(round: Columns) -> None:
    is_held = round["status"] in WORKING
    assert (round["owner"] is not None) == (round["lease_until"] is not None) == is_held, round
    assert (round["ended_at"] is not None) == has_ended(RoundStatus(round["status"])), round


def _reached(status: Any, steps: int) -> set[Any]:
    """The states that the table allows after so many transitions at most."""
    found = {status}
    for _ in range(steps):
        found |= {target for one in found for target in allowed_from(one)}
    return found
