"""A round that completes in the instant its experiment is called off ends as cancelled, whoever is first."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import is_blocked, wait_until
from sqlalchemy import update
from store.conftest import add_dataset, add_experiment

from winnow.domain import ExperimentStatus, RoundStatus
from winnow.errors import WrongState
from winnow.store import Database, claims, experiments, rounds
from winnow.store.claims import TRAIN
from winnow.store.tables import Dataset, Experiment, Round

RESULT: dict[str, Any] = {"visits": 10, "seconds": {}, "metrics": {"f1": 0.5}, "report": {}}


@pytest.fixture
def on_postgres(postgres_url: str) -> Iterator[Database]:
    opened = Database(postgres_url)
    opened.migrate()
    yield opened
    opened.close()


def claim(database: Database) -> Round:
    with database.begin() as session:
        row = claims.claim(session, TRAIN, "w", 30)
        assert isinstance(row, Round)
        rounds.start(session, row, 30)
        return row


def complete(database: Database, row: Round) -> None:
    with database.begin() as session:
        rounds.complete_training(session, row.id, row.attempt, result=dict(RESULT), rows=[])


def call_off(database: Database, row: Round) -> None:
    """What a person and the steward do: ask for the end, and settle once nobody works."""
    with database.begin() as session:
        experiments.transition(session, row.experiment_id, ExperimentStatus.CANCELLING)
    settle(database, row)


def settle(database: Database, row: Round) -> None:
    with database.begin() as session:
        if not rounds.is_worked_on(session, row.experiment_id):
            rounds.cancel(session, row.experiment_id)
            experiments.transition(session, row.experiment_id, ExperimentStatus.CANCELLED)


def status_of(database: Database, row: Round) -> str:
    with database.read() as session:
        return rounds.get(session, row.experiment_id, row.number).status


@pytest.mark.parametrize("status", [ExperimentStatus.CANCELLING, ExperimentStatus.CANCELLED])
def test_a_result_of_an_experiment_that_is_called_off_is_not_kept(
    database: Database, dataset: Dataset, status: ExperimentStatus
) -> None:
    add_experiment(database, dataset)
    row = claim(database)
    with database.begin() as session:
        session.execute(update(Experiment).values(status=status))
    complete(database, row)
    with database.read() as session:
        ended = rounds.get(session, row.experiment_id, 0)
    assert (ended.status, ended.ended_at is None) == (RoundStatus.CANCELLED, False)


def test_who_is_first_decides_and_the_other_waits(on_postgres: Database) -> None:
    dataset = add_dataset(on_postgres)
    add_experiment(on_postgres, dataset)
    row = claim(on_postgres)
    with ThreadPoolExecutor(1) as pool:
        with on_postgres.begin() as session:
            experiments.transition(session, row.experiment_id, ExperimentStatus.CANCELLING)
            completed = pool.submit(complete, on_postgres, row)
            wait_until(lambda: is_blocked(on_postgres), 20, "the round's end to wait for the order")
        completed.result(20)
    assert status_of(on_postgres, row) == RoundStatus.CANCELLED

    add_experiment(on_postgres, dataset)
    row = claim(on_postgres)
    with ThreadPoolExecutor(1) as pool:
        with on_postgres.begin() as session:
            rounds.complete_training(session, row.id, row.attempt, result=dict(RESULT), rows=[])
            called = pool.submit(call_off, on_postgres, row)
            wait_until(lambda: is_blocked(on_postgres), 20, "the order to wait for the round's end")
        called.result(20)
    assert status_of(on_postgres, row) == RoundStatus.CANCELLED


def test_no_race_leaves_a_round_behind(database: Database, dataset: Dataset) -> None:
    for _ in range(25):
        add_experiment(database, dataset)
        row = claim(database)
        together = threading.Barrier(2)

        def at_once(act: Any, row: Round = row, together: threading.Barrier = together) -> None:
            together.wait(60)
            act(database, row)

        with ThreadPoolExecutor(2) as pool:
            for ended in [pool.submit(at_once, complete), pool.submit(at_once, call_off)]:
                ended.result(30)
        for _ in range(2):  # the steward looks again
            if status_of(database, row) != RoundStatus.CANCELLED:
                settle(database, row)
        assert status_of(database, row) == RoundStatus.CANCELLED
        with database.read() as session:
            assert experiments.get(session, row.experiment_id).status in ("cancelling", "cancelled")
        with pytest.raises(WrongState), database.begin() as session:
            experiments.transition(session, row.experiment_id, ExperimentStatus.RUNNING)
