"""Datasets: one row for each name, which a failure does not use up."""

import pytest

from winnow.domain import DatasetSpec, DatasetStatus, Source
from winnow.errors import AlreadyExists, Fenced
from winnow.store import Database, claims, datasets, rounds
from winnow.store.claims import INGEST
from winnow.store.rounds import Patience
from winnow.store.tables import Dataset

PATIENCE = Patience(max_losses=2, max_failures=1, retry_seconds=60.0)


def post(database: Database, path: str) -> Dataset:
    with database.begin() as session:
        return datasets.insert(session, DatasetSpec(name="d", sources=[Source(kind="folder", path=path)]))


def claim(database: Database) -> Dataset:
    with database.begin() as session:
        row = claims.claim(session, INGEST, "w", 30)
        assert isinstance(row, Dataset)
        return row


def test_a_failed_dataset_is_queued_again_with_its_new_spec(database: Database) -> None:
    first = post(database, "/broken")
    claim(database)
    with database.begin() as session:
        assert rounds.give_back(session, INGEST, first.id, 1, "failed", "disk full", PATIENCE) == DatasetStatus.FAILED
    again = post(database, "/mended")
    assert (again.id, again.status, again.spec["sources"][0]["path"]) == (first.id, DatasetStatus.QUEUED, "/mended")
    assert (again.losses, again.failures, again.error, again.progress) == (0, 0, None, {})
    assert claim(database).attempt == 2, "the artefact keys of the first attempt are not used again"
    with pytest.raises(Fenced), database.begin() as session:
        claims.renew(session, INGEST, first.id, 1, 30, None)


def test_a_name_is_taken_unless_its_dataset_failed(database: Database, dataset: Dataset) -> None:
    post(database, "/patches")
    for _ in ("queued", "ingesting"):
        with pytest.raises(AlreadyExists):
            post(database, "/other")
        with database.begin() as session:
            claims.claim(session, INGEST, "w", 30)
    with pytest.raises(AlreadyExists), database.begin() as session:
        datasets.insert(session, DatasetSpec.model_validate(dataset.spec))
