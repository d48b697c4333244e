"""Removing: only what has ended and nobody needs, all of its rows, and a note of where its files lie."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select, update
from store.conftest import add_dataset, add_experiment

from winnow.artefacts import Stored
from winnow.domain import DatasetSpec, ExperimentStatus, Source
from winnow.errors import AlreadyExists, Fenced, NotFound, WrongState
from winnow.store import Database, artefacts, claims, datasets, experiments, picks, removals, rounds
from winnow.store.claims import INGEST, TRAIN
from winnow.store.rounds import Patience
from winnow.store.tables import Artefact, Dataset, Event, Experiment, Pick, Removal, Round, Row, Sample

OF_EXPERIMENTS = (Experiment, Round, Pick, Artefact, Event)


def count(database: Database, *tables: type[Row]) -> list[int]:
    with database.read() as session:
        return [session.scalar(select(func.count()).select_from(table)) or 0 for table in tables]


def begin(database: Database, dataset: Dataset) -> Round:
    """An experiment with a row in every table."""
    round = add_experiment(database, dataset)
    key = f"experiments/{round.experiment_id}/rounds/0000/a1/x"
    at: dict[str, Any] = {"experiment_id": round.experiment_id, "round": 0, "attempt": 1, "kind": "x", "manifest": {}}
    with database.begin() as session:
        picks.insert(session, round.experiment_id, 0, [1, 2, 3], [0.0] * 3)
        artefacts.insert(session, [artefacts.row(Stored(key, 1, "0" * 64), **at)])
    return round


def end(database: Database, round: Round) -> None:
    for status in (ExperimentStatus.CANCELLING, ExperimentStatus.CANCELLED):
        with database.begin() as session:
            experiments.transition(session, round.experiment_id, status)


def remove(database: Database, round: Round) -> None:
    with database.begin() as session:
        experiments.remove(session, round.experiment_id)


class Turns(threading.Event):
    """Is set when a removal waits between two slices for the `last` time, after what is done in each wait."""

    def __init__(self, last: int, act: Callable[[float], object] = lambda seconds: None) -> None:
        super().__init__()
        self._last, self._act, self._waits = last, act, 0

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        if self._waits:
            self._act(timeout)
        self._waits += 1
        if self._waits > self._last:
            self.set()
        return super().wait(timeout)


def begin_removal(database: Database, name: str, lease: float = 30) -> str:
    with database.begin() as session:
        dataset = datasets.lock(session, name)
        datasets.begin_removal(session, dataset, lease)
        return dataset.id


def remove_dataset(database: Database, name: str) -> None:
    with database.begin() as session:
        dataset = datasets.lock(session, name)
        datasets.begin_removal(session, dataset, 30)
    assert datasets.remove(database, dataset.id, 30, threading.Event())


def test_an_experiment_goes_with_all_its_rows_and_no_others(database: Database, dataset: Dataset) -> None:
    stays, goes = begin(database, dataset), begin(database, dataset)
    before = count(database, *OF_EXPERIMENTS)
    with pytest.raises(WrongState):
        remove(database, goes)
    assert count(database, *OF_EXPERIMENTS, Removal) == [*before, 0]
    end(database, goes)
    remove(database, goes)
    assert count(database, Experiment, Round, Pick, Artefact) == [1, 1, 3, 1]
    with database.read() as session:
        assert list(removals.places(session, seconds=0)) == [f"experiments/{goes.experiment_id}"]
        assert set(session.scalars(select(Event.experiment_id))) == {stays.experiment_id}
    with pytest.raises(NotFound):
        remove(database, goes)


def test_whoever_still_works_on_what_was_removed_is_fenced(database: Database, dataset: Dataset) -> None:
    begin(database, dataset)
    with database.begin() as session:
        row = claims.claim(session, TRAIN, "w", 30)
        assert isinstance(row, Round)
    with database.begin() as session:
        rounds.give_back(session, TRAIN, row.id, row.attempt, "rejected", "why", Patience(3, 3, 0))
    remove(database, row)
    late: list[Callable[[Any], object]] = [
        lambda session: claims.renew(session, TRAIN, row.id, row.attempt, 30, {}),
        lambda session: rounds.give_back(session, TRAIN, row.id, row.attempt, "lost", None, Patience(3, 3, 0)),
        lambda session: rounds.complete_training(
            session, row.id, row.attempt, result={"visits": 1, "seconds": {}, "metrics": {}, "report": {}}, rows=[]
        ),
    ]
    for write in late:
        with pytest.raises(Fenced), database.begin() as session:
            write(session)


def test_a_dataset_goes_with_its_samples_slice_by_slice(
    database: Database, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "SLICE", 7)
    other = add_dataset(database, "other")
    remove_dataset(database, "tissue")
    with database.read() as session:
        assert set(session.scalars(select(Sample.dataset_id))) == {other.id}
        assert list(removals.places(session, seconds=0)) == [f"datasets/{dataset.id}"]
    with pytest.raises(NotFound):
        remove_dataset(database, dataset.id)
    assert add_dataset(database, "tissue").id != dataset.id, "its name is free"


def test_others_write_between_the_slices(database: Database, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite hands its lock to nobody: a renewal that waits for the end of it all would lose its lease."""
    monkeypatch.setattr(datasets, "SLICE", 8)
    seen: list[tuple[str | None, int | None]] = []
    other = Database(database.url)

    def write(seconds: float) -> None:
        assert seconds == (0.1 if database.engine.dialect.name == "sqlite" else 0.0), (
            "SQLite: who waits looks that often"
        )
        with other.begin() as session:
            session.execute(update(Dataset).values(error="written"))
            left = session.scalar(select(func.count()).select_from(Sample))
            seen.append((session.scalar(select(Dataset.status)), left))

    assert datasets.remove(database, begin_removal(database, "tissue"), 30, Turns(99, write))
    other.close()
    assert seen == [("removing", left) for left in (32, 24, 16, 8, 0)]
    assert count(database, Dataset, Sample) == [0, 0]


def test_whoever_removes_beside_another_ends_with_it(
    database: Database, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "SLICE", 3)
    begin_removal(database, "tissue")
    with ThreadPoolExecutor(3) as pool:
        assert (
            list(pool.map(lambda _: datasets.remove(database, dataset.id, 30, threading.Event()), range(3)))
            == [True] * 3
        )
    assert count(database, Dataset, Sample, Removal) == [0, 0, 1]


def test_a_removal_is_left_to_others_when_its_process_stops(
    database: Database, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "SLICE", 10)
    begin_removal(database, "tissue")
    assert not datasets.remove(database, dataset.id, -1, Turns(2))
    assert count(database, Dataset, Sample, Removal) == [1, 20, 0]
    with database.read() as session:
        assert datasets.abandoned(session) == [dataset.id]
    assert datasets.remove(database, dataset.id, 30, threading.Event())
    assert count(database, Dataset, Sample, Removal) == [0, 0, 1]


def test_nobody_else_joins_a_removal_while_its_lease_lasts(
    database: Database, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "SLICE", 10)
    begin_removal(database, "tissue", lease=-1)
    with database.read() as session:
        assert datasets.abandoned(session) == [dataset.id]
    datasets.remove(database, dataset.id, 30, Turns(1))
    with database.read() as session:
        assert datasets.abandoned(session) == [], "each slice renews it"
    with database.begin() as session:
        session.execute(update(Dataset).values(lease_until=None))
        assert datasets.abandoned(session) == [dataset.id], "nobody ever held one"


def test_a_dataset_in_removal_is_nobodys_to_ingest(database: Database) -> None:
    spec = DatasetSpec(name="d", sources=[Source(kind="folder", path="/patches")])
    with database.begin() as session:
        row = datasets.insert(session, spec)
    begin_removal(database, "d")
    with database.begin() as session:
        assert claims.claim(session, INGEST, "w", 30) is None
    with pytest.raises(AlreadyExists), database.begin() as session:
        datasets.insert(session, spec)
    datasets.remove(database, row.id, 30, threading.Event())
    with database.begin() as session:
        assert datasets.insert(session, spec).id != row.id


def test_a_dataset_stays_while_it_is_ingested(database: Database, dataset: Dataset) -> None:
    with database.begin() as session:
        session.execute(update(Dataset).values(status="queued"))
    with database.begin() as session:
        assert claims.claim(session, INGEST, "w", 30)
    with pytest.raises(WrongState, match="wait until it is ready"):
        remove_dataset(database, "tissue")
    assert count(database, Dataset, Removal) == [1, 0]


def test_a_place_is_noted_for_a_while(database: Database, dataset: Dataset) -> None:
    remove_dataset(database, "tissue")
    place = f"datasets/{dataset.id}"
    with database.begin() as session:
        assert removals.places(session, seconds=60) == {place: False}
        session.execute(update(Removal).values(at=Removal.at - 61))
        assert removals.places(session, seconds=60) == {place: True}
        removals.forget(session, place)
        assert removals.places(session, seconds=60) == {}


def test_an_id_is_nobodys_name_first(database: Database, dataset: Dataset) -> None:
    add_dataset(database, dataset.id)
    with database.begin() as session:
        session.execute(update(Dataset).where(Dataset.id == dataset.id).values(error=None))  # moves it on Postgres
    remove_dataset(database, dataset.id)
    with database.read() as session:
        assert list(session.scalars(select(Dataset.name))) == [dataset.id]
        assert datasets.get(session, dataset.id).name == dataset.id
