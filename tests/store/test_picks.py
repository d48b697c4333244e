"""The selected set: unique, ranked, in one go, on both engines."""

import numpy as np
import pytest
from sqlalchemy.exc import IntegrityError
from store.conftest import add_experiment

from winnow.store import Database, datasets, keys, picks
from winnow.store.tables import Dataset


def test_picks_come_back_in_rank_order(database: Database, dataset: Dataset) -> None:
    round = add_experiment(database, dataset)
    batch = np.array([7, 3, 5], np.int64)
    with database.begin() as session:
        picks.insert(session, round.experiment_id, 0, batch, [0.9, 0.8, 0.7])
        picks.insert(session, round.experiment_id, 1, np.array([1], np.int64), [0.1])
    at = (round.experiment_id, dataset.id, 0)
    with database.read() as session:
        first = picks.page(session, *at, after=-1, limit=2)
        assert first == [(0, 7, "p7.png", 0.9), (1, 3, "p3.png", 0.8)]
        assert picks.page(session, *at, after=1, limit=2) == [(2, 5, "p5.png", 0.7)]
        assert picks.page(session, *at, after=2, limit=2) == []
        assert [picks.count(session, round.experiment_id, number) for number in range(3)] == [3, 1, 0]
        assert picks.selected(session, round.experiment_id, up_to=0).tolist() == [3, 5, 7]
        assert picks.selected(session, round.experiment_id, up_to=1).tolist() == [1, 3, 5, 7]


def test_a_sample_is_never_picked_twice(database: Database, dataset: Dataset) -> None:
    round = add_experiment(database, dataset)
    with database.begin() as session:
        picks.insert(session, round.experiment_id, 0, np.array([4], np.int64), [1.0])
    with pytest.raises((IntegrityError, Exception), match=r"(?i)unique"), database.begin() as session:
        picks.insert(session, round.experiment_id, 1, np.array([4], np.int64), [1.0])


def test_more_rows_than_a_statement_takes_parameters(database: Database, dataset: Dataset) -> None:
    round = add_experiment(database, dataset)
    many = np.random.default_rng(0).permutation(70_000).astype(np.int64)
    with database.begin() as session:
        picks.insert(session, round.experiment_id, 0, many, [0.0] * len(many))
    with database.read() as session:
        assert np.array_equal(picks.selected(session, round.experiment_id, up_to=0), np.arange(70_000))


def test_indices_and_labels_line_up(database: Database, dataset: Dataset) -> None:
    with database.read() as session:
        assert datasets.indices(session, dataset.id, "test").tolist() == list(range(30, 40))
        idx, labels = datasets.labels(session, dataset, "test")
        assert (idx.tolist(), labels.tolist()) == (list(range(30, 40)), [0, 1] * 5)


def test_a_key_is_stored_hashed_and_can_be_revoked(database: Database) -> None:
    with database.begin() as session:
        row, text = keys.create(session, "ci", ["read"])
        assert text not in row.digest
    with database.begin() as session:
        found = keys.find(session, text)
        assert found is not None and found.scopes == ["read"]
        keys.revoke(session, row.id)
        assert keys.find(session, text) is None
