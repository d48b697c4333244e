"""Datasets: one row for each name, which a failure does not use up."""

from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from winnow.domain import DatasetSpec, DatasetStatus, Source
from winnow.errors import AlreadyExists, Fenced
from winnow.store import Database, claims, datasets, rounds
from winnow.store.claims import INGEST
from winnow.store.rounds import Patience
from winnow.store.tables import Dataset, Sample

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


def pass_time(session: Session) -> None:
    """As if all that a row waited for had been long ago."""
    past = {"not_before": Dataset.not_before - 1e4, "waiting_since": Dataset.waiting_since - 1e4}
    session.execute(update(Dataset).values(past))


def test_a_dataset_that_finds_no_room_waits_for_it_however_often(database: Database) -> None:
    id, patience, waits = post(database, "/large").id, rounds.Patience(2, 2, retry_seconds=100), []
    for attempt in range(1, 6):
        claim(database)
        with database.begin() as session:
            given_back = rounds.give_back(session, INGEST, id, attempt, "full", "no room", patience)
            assert given_back == DatasetStatus.QUEUED
        with database.begin() as session:
            waiting = datasets.get(session, id)
            assert (waiting.losses, waiting.failures, waiting.error) == (0, 0, "no room")
            waits.append(waiting.not_before - waiting.waiting_since)
            pass_time(session)
    assert waits == pytest.approx([100, 200, 400, 600, 600], abs=1), "twice as long each time, up to ten minutes"
    for attempt, cause, wanted in ((6, "stopped", 0), (7, "full", 100)):
        claim(database)
        with database.begin() as session:
            rounds.give_back(session, INGEST, id, attempt, cause, None, patience)
        with database.begin() as session:
            waiting = datasets.get(session, id)
            assert waiting.not_before - waiting.waiting_since == pytest.approx(wanted, abs=1), "counted in a row"


def test_a_name_is_taken_unless_its_dataset_failed(database: Database, dataset: Dataset) -> None:
    post(database, "/patches")
    for _ in ("queued", "ingesting"):
        with pytest.raises(AlreadyExists):
            post(database, "/other")
        with database.begin() as session:
            claims.claim(session, INGEST, "w", 30)
    with pytest.raises(AlreadyExists), database.begin() as session:
        datasets.insert(session, DatasetSpec.model_validate(dataset.spec))


def rows(first: int, end: int, word: str = "p") -> list[dict[str, Any]]:
    return [
        {"key": f"{word}{i}", "idx": i, "group": None, "role": "pool" if i % 3 else "test", "label": "ab"[i % 2]}
        for i in range(first, end)
    ]


def store(database: Database, row: Dataset, samples: list[dict[str, Any]], total: int) -> None:
    with database.begin() as session:
        datasets.store(session, row.id, row.attempt, 30, samples, total=total)


def finish(database: Database, row: Dataset, total: int) -> None:
    is_left = True
    while is_left:
        with database.begin() as session:
            is_left = datasets.clear(session, row.id, row.attempt, 30, above=total)
    with database.begin() as session:
        datasets.complete(session, row.id, row.attempt, classes=["a", "b"], counts={}, report={}, location="x")


def test_slices_take_the_place_of_what_a_lost_attempt_stored(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "SLICE", 3)
    post(database, "/patches")
    lost = claim(database)
    store(database, lost, rows(0, 20, "old"), 40)
    with database.begin() as session:
        rounds.give_back(session, INGEST, lost.id, lost.attempt, "lost", None, PATIENCE)
    won = claim(database)
    for first in (0, 4, 8):
        store(database, won, rows(first, first + 4), 12)
    with pytest.raises(Fenced):
        store(database, lost, rows(20, 24, "old"), 40)
    finish(database, won, 12)
    with database.read() as session:
        found = session.execute(select(Sample.idx, Sample.key, Sample.role, Sample.label).order_by(Sample.idx)).all()
    assert [tuple(one) for one in found] == [(one["idx"], one["key"], one["role"], one["label"]) for one in rows(0, 12)]


def test_each_slice_renews_the_claim_and_says_how_far_it_is(database: Database) -> None:
    post(database, "/patches")
    row = claim(database)
    with database.begin() as session:
        session.execute(update(Dataset).values(lease_until=1.0))
    store(database, row, rows(0, 5), 9)
    with database.read() as session:
        now = datasets.get(session, "d")
        assert now.lease_until > 1.0 and now.status == DatasetStatus.INGESTING
        assert now.progress == {"phase": "store", "step": 5, "steps": 9}
    with database.begin() as session:
        session.execute(update(Dataset).values(lease_until=1.0))
    finish(database, row, 5)
    with database.read() as session:
        assert (session.scalar(select(func.count()).select_from(Sample)), datasets.get(session, "d").progress) == (
            5,
            {},
        )


def test_roles_and_labels_are_read_as_they_were_stored(database: Database) -> None:
    post(database, "/patches")
    row = claim(database)
    samples = rows(0, 1500)
    for at in (7, 700, 1400):
        samples[at]["label"] = None
    store(database, row, samples, len(samples))
    finish(database, row, len(samples))
    with database.read() as session:
        dataset = datasets.get(session, "d")
        for role in ("pool", "test"):
            mine = [one for one in samples if one["role"] == role]
            assert datasets.indices(session, dataset.id, role).tolist() == [one["idx"] for one in mine]
            idx, labels = datasets.labels(session, dataset, role)
            assert (idx.dtype, labels.dtype) == (np.int64, np.int64)
            assert idx.tolist() == [one["idx"] for one in mine]
            assert labels.tolist() == [-1 if one["label"] is None else "ab".index(one["label"]) for one in mine]
        nobody = datasets.labels(session, dataset, "validation")
        assert [part.tolist() for part in (datasets.indices(session, dataset.id, "validation"), *nobody)] == [
            [],
            [],
            [],
        ]
