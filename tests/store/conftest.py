"""A migrated database with a ready dataset, on both engines."""

from collections.abc import Iterator

import pytest

from winnow.domain import DatasetSpec, ExperimentSpec, Source
from winnow.store import Database, claims, datasets, experiments, rounds
from winnow.store.tables import Dataset, Round


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def dataset(database: Database) -> Dataset:
    return add_dataset(database)


def add_dataset(database: Database, name: str = "tissue", size: int = 40) -> Dataset:
    spec = DatasetSpec(name=name, sources=[Source(kind="folder", path="/patches")])
    with database.begin() as session:
        datasets.insert(session, spec)
    with database.begin() as session:
        row = claims.claim(session, claims.INGEST, "tester", 30)
        assert isinstance(row, Dataset)
    samples = [
        {"idx": i, "key": f"p{i}.png", "role": "pool" if i < size - 10 else "test", "label": "ab"[i % 2], "group": None}
        for i in range(size)
    ]
    with database.begin() as session:
        datasets.store(session, row.id, row.attempt, 30, samples, total=size)
        datasets.complete(session, row.id, row.attempt, classes=["a", "b"], counts={}, report={}, location="x")
    with database.read() as session:
        return datasets.get(session, name)


def add_experiment(database: Database, dataset: Dataset, **spec: object) -> Round:
    parsed = ExperimentSpec.model_validate(
        {"name": "e", "dataset": dataset.name, "positive_class": "a", "budget": 5, "rounds": 3, **spec}
    )
    with database.begin() as session:
        experiment = experiments.insert(session, parsed, dataset.id)
        return rounds.insert(session, experiment.id, 0, samples=parsed.budget)
