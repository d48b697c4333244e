"""Datasets: accepted here, ingested by a trainer, removed."""

from sqlalchemy.orm import Session

from winnow.csv_lines import csv_lines
from winnow.datasets import SKIPPED_FILE
from winnow.domain import DatasetSpec, DatasetStatus
from winnow.errors import InUse, Unavailable
from winnow.failpoints import Failpoint, reach
from winnow.store import datasets, experiments
from winnow.store.tables import Dataset
from winnow_coordinator import fitness, pages
from winnow_coordinator.context import Coordinator
from winnow_coordinator.schemas import DatasetView, Page


def accept(coordinator: Coordinator, session: Session, spec: DatasetSpec) -> DatasetView:
    """A dataset to be ingested: a new one, or one that failed, again. Raises AlreadyExists."""
    row = datasets.insert(session, spec)
    coordinator.ring(session, row)
    session.flush()
    reach(Failpoint.DATASET_INSERTED)
    return view(row)


def require_free(coordinator: Coordinator, name: str) -> None:
    """Raise AlreadyExists where `accept` would, as far as can be seen before."""
    with coordinator.database.read() as session:
        datasets.require_free(session, name)


def page(session: Session, cursor: str | None, limit: int) -> Page[DatasetView]:
    """Datasets, newest first."""
    rows = datasets.page(session, before=pages.decode(cursor), limit=limit + 1)
    shown, following = pages.cut(rows, limit, lambda row: row.id)
    return Page(items=[view(row) for row in shown], next=following)


def get(session: Session, name: str) -> DatasetView:
    """One dataset, by id or name. Raises NotFound."""
    return view(datasets.get(session, name))


def remove(coordinator: Coordinator, name: str) -> None:
    """Forget a dataset that no experiment is on; its shards follow. Raises NotFound, WrongState, InUse.

    What is left of one whose removal was begun is removed by a steward.
    """
    with coordinator.database.begin() as session:
        dataset = datasets.lock(session, name)
        if users := experiments.on_dataset(session, dataset.id):
            raise InUse("dataset", dataset.name, users, "remove these first: winnow remove takes their ids")
        if dataset.status != DatasetStatus.REMOVING:
            datasets.begin_removal(session, dataset, coordinator.settings.lease_seconds)
    reach(Failpoint.REMOVAL_BEGUN)
    if not remove_rest(coordinator, dataset.id):
        raise Unavailable(
            f"this coordinator stops, with {dataset.name} not wholly removed; another one goes on with it"
        )


def remove_rest(coordinator: Coordinator, id: str) -> bool:
    """Go on with a removal that was begun. Returns whether the dataset is gone: not if this process is to stop."""
    return datasets.remove(coordinator.database, id, coordinator.settings.lease_seconds, coordinator.stopping)


def skipped(session: Session, name: str) -> tuple[str | None, bytes]:
    """The files that could not be read, as CSV: the key of an artefact, or, where the report names all, the table.

    Raises NotFound, DatasetNotReady.
    """
    dataset = datasets.get(session, name)
    fitness.require_ready(dataset, "what was skipped is not known yet")
    named: list[dict[str, str]] = dataset.report.get("skipped", [])
    if dataset.report.get("skipped_count", len(named)) > len(named):
        return f"{dataset.location}/{SKIPPED_FILE}", b""
    return None, csv_lines([("path", "reason"), *((one["path"], one["reason"]) for one in named)]).encode()


def view(row: Dataset) -> DatasetView:
    """A dataset as the API shows it."""
    counts: dict[str, dict[str, int]] = row.counts
    derived = {
        "samples": sum(n for by_label in counts.values() for n in by_label.values()),
        "image_size": row.spec["image_size"],
    }
    columns = {name: getattr(row, name) for name in DatasetView.model_fields if name not in derived}
    return DatasetView.model_validate(columns | derived)
