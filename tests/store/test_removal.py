"""Removing: only what has ended and nobody needs, all of its rows, and a note of where its files lie."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import is_blocked, wait_until
from sqlalchemy import func, select, update
from store.conftest import add_dataset, add_experiment

from winnow.artefacts import Stored
from winnow.domain import ExperimentStatus
from winnow.errors import Fenced, NotFound, WrongState
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
        rounds.newest(session, round.experiment_id, hold=True)
        experiments.remove(session, round.experiment_id)


def remove_dataset(database: Database, name: str) -> None:
    with database.begin() as session:
        datasets.remove(session, datasets.lock(session, name))


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
        assert removals.prefixes(session) == [f"experiments/{goes.experiment_id}"]
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
        assert removals.prefixes(session) == [f"datasets/{dataset.id}"]
    with pytest.raises(NotFound):
        remove_dataset(database, dataset.id)
    assert add_dataset(database, "tissue").id != dataset.id, "its name is free"


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
        assert removals.outdated(session, 60) == []
        session.execute(update(Removal).values(at=Removal.at - 61))
        assert removals.outdated(session, 60) == [place]
        removals.forget(session, place)
        assert removals.prefixes(session) == []


@pytest.fixture
def on_postgres(postgres_url: str) -> Iterator[Database]:
    opened = Database(postgres_url)
    opened.migrate()
    yield opened
    opened.close()


def test_no_experiment_begins_on_a_dataset_that_is_being_removed(on_postgres: Database) -> None:
    dataset = add_dataset(on_postgres)
    found: list[str] = []

    def begin_late() -> None:
        with on_postgres.begin() as session:
            try:
                datasets.get(session, "tissue", hold=True)
            except NotFound as error:
                found.append(error.id)

    person = threading.Thread(target=begin_late)
    with on_postgres.begin() as session:
        datasets.remove(session, datasets.lock(session, dataset.id))
        person.start()
        wait_until(lambda: is_blocked(on_postgres), 20, "the other to wait")
    person.join(20)
    assert found == ["tissue"]


def test_a_dataset_waits_to_be_removed_until_an_experiment_has_begun_on_it(on_postgres: Database) -> None:
    dataset = add_dataset(on_postgres)
    on_it: list[list[str]] = []

    def remove_late() -> None:
        with on_postgres.begin() as session:
            on_it.append(experiments.on_dataset(session, datasets.lock(session, dataset.id).id))

    person = threading.Thread(target=remove_late)
    with on_postgres.begin() as session:
        held = datasets.get(session, "tissue", hold=True)
        person.start()
        wait_until(lambda: is_blocked(on_postgres), 20, "the other to wait")
        session.add(Experiment(name="e", dataset_id=held.id, spec={}, created_at=0.0))
    person.join(20)
    assert [len(found) for found in on_it] == [1]


def test_one_that_is_resumed_first_is_not_removed(on_postgres: Database) -> None:
    """Both take the newest round and then the experiment: neither waits for the other in a ring."""
    dataset = add_dataset(on_postgres)
    begin(on_postgres, dataset)
    with on_postgres.begin() as session:
        row = claims.claim(session, TRAIN, "w", 30)
        assert isinstance(row, Round)
    with on_postgres.begin() as session:
        rounds.give_back(session, TRAIN, row.id, row.attempt, "rejected", "why", Patience(3, 3, 0))
    refused: list[str] = []

    def remove_late() -> None:
        try:
            remove(on_postgres, row)
        except WrongState as error:
            refused.append(error.current)

    person = threading.Thread(target=remove_late)
    with on_postgres.begin() as session:
        newest = rounds.newest(session, row.experiment_id, hold=True)
        assert newest is not None
        person.start()
        wait_until(lambda: is_blocked(on_postgres), 20, "the other to wait")
        experiments.transition(session, row.experiment_id, ExperimentStatus.RUNNING)
        rounds.resume(session, newest)
    person.join(20)
    assert refused == ["running"]
