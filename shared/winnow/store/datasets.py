"""Datasets and their samples."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from winnow.domain import DatasetSpec, DatasetStatus, allowed_from, require_transition
from winnow.errors import AlreadyExists, NotFound, WrongState
from winnow.store import claims, removals
from winnow.store.engine import insert_rows, now
from winnow.store.tables import Dataset, Sample

SLICE = 500_000
"""Samples that one statement deletes: the server takes only so long for one."""


def insert(session: Session, spec: DatasetSpec) -> Dataset:
    """A dataset that waits to be ingested: a new one, or the failed one of that name again. Raises AlreadyExists."""
    row = Dataset(name=spec.name, spec=spec.model_dump(mode="json"), created_at=now(), waiting_since=now())
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError as error:
        again = _try_again(session, spec)
        if again is None:
            raise AlreadyExists("dataset", spec.name) from error
        return again
    session.refresh(row)
    return row


def _try_again(session: Session, spec: DatasetSpec) -> Dataset | None:
    """failed → queued with a new spec; None unless the dataset had failed."""
    require_transition("dataset", spec.name, DatasetStatus.FAILED, DatasetStatus.QUEUED)
    taken = session.execute(
        update(Dataset)
        .where(Dataset.name == spec.name, Dataset.status == DatasetStatus.FAILED)
        .values(status=DatasetStatus.QUEUED, spec=spec.model_dump(mode="json"), **claims.anew())
        .returning(Dataset.id)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    return session.get(Dataset, taken, populate_existing=True) if taken else None


def get(session: Session, name_or_id: str, *, hold: bool = False) -> Dataset:
    """The dataset of that id or name. `hold`: nobody removes it before this transaction ends. Raises NotFound."""
    wanted = _called(name_or_id)
    return _found(session, wanted.with_for_update(read=True, key_share=True) if hold else wanted, name_or_id)


def lock(session: Session, name_or_id: str) -> Dataset:
    """The same, which nobody else claims, begins an experiment on or removes meanwhile. Raises NotFound."""
    return _found(session, _called(name_or_id).with_for_update(), name_or_id)


def remove(session: Session, dataset: Dataset) -> None:
    """Delete a locked dataset that no experiment is on, with its samples, and note where its shards lie.

    Raises WrongState while it is ingested.
    """
    status = DatasetStatus(dataset.status)
    if status is DatasetStatus.INGESTING:
        words = f"dataset {dataset.name} is ingesting and cannot be removed; wait until it is ready or has failed"
        raise WrongState("dataset", dataset.name, status, "removed", allowed_from(status), words=words)
    mine = Sample.dataset_id == dataset.id
    last = session.scalar(select(func.max(Sample.idx)).where(mine))
    for first in range(0, (last or 0) + 1, SLICE):
        rows = delete(Sample).where(mine, Sample.idx >= first, Sample.idx < first + SLICE)
        session.execute(rows.execution_options(synchronize_session=False))
    session.delete(dataset)
    session.flush()
    removals.insert(session, f"datasets/{dataset.id}")


def ids(session: Session) -> list[str]:
    """Ids of all datasets, oldest first."""
    return list(session.scalars(select(Dataset.id).order_by(Dataset.id)))


def page(session: Session, *, before: str | None, limit: int) -> list[Dataset]:
    """Datasets from the newest on, starting below the id `before`."""
    wanted = select(Dataset).order_by(Dataset.id.desc()).limit(limit)
    return list(session.scalars(wanted.where(Dataset.id < before) if before else wanted))


def complete(
    session: Session,
    id: str,
    attempt: int,
    *,
    samples: Iterable[dict[str, Any]],
    classes: Sequence[str],
    counts: dict[str, Any],
    report: dict[str, Any],
    location: str,
) -> None:
    """Store the samples (idx, key, role, label, group) and make the dataset ready. Raises Fenced."""
    result = {"classes": list(classes), "counts": counts, "report": report, "location": location}
    claims.finish(session, claims.INGEST, id, attempt, DatasetStatus.READY, **result)
    session.execute(delete(Sample).where(Sample.dataset_id == id))
    insert_rows(session, Sample, [{"dataset_id": id, **sample} for sample in samples])


def indices(session: Session, dataset_id: str, role: str) -> NDArray[np.int64]:
    """Ascending idx of all samples of one role."""
    wanted = select(Sample.idx).where(Sample.dataset_id == dataset_id, Sample.role == role).order_by(Sample.idx)
    return np.fromiter(session.scalars(wanted), np.int64)


def keys(session: Session, dataset_id: str, role: str) -> list[str]:
    """Keys of one role, in the order of `indices`."""
    wanted = select(Sample.key).where(Sample.dataset_id == dataset_id, Sample.role == role).order_by(Sample.idx)
    return list(session.scalars(wanted))


def label_counts(session: Session, dataset_id: str, role: str) -> dict[str | None, int]:
    """How many samples of one role have each label; None for those without one."""
    counted = select(Sample.label, func.count()).where(Sample.dataset_id == dataset_id, Sample.role == role)
    return dict(session.execute(counted.group_by(Sample.label)).all())


def labels(session: Session, dataset_id: str, role: str) -> list[str | None]:
    """Labels of one role, in the order of `indices`."""
    wanted = select(Sample.label).where(Sample.dataset_id == dataset_id, Sample.role == role).order_by(Sample.idx)
    return list(session.scalars(wanted))


def samples_page(session: Session, dataset_id: str, *, after: int, limit: int, role: str | None) -> list[Sample]:
    """Samples by idx, starting above `after`."""
    wanted = select(Sample).where(Sample.dataset_id == dataset_id, Sample.idx > after).order_by(Sample.idx).limit(limit)
    return list(session.scalars(wanted.where(Sample.role == role) if role else wanted))


def _called(name_or_id: str) -> Select[Dataset]:
    """The one with that id before another with that name: a name may look like an id."""
    by_id = Dataset.id == name_or_id
    return select(Dataset).where(by_id | (Dataset.name == name_or_id)).order_by(by_id.desc()).limit(1)


def _found(session: Session, wanted: Select[Dataset], name_or_id: str) -> Dataset:
    row = session.scalar(wanted)
    if row is None:
        raise NotFound("dataset", name_or_id)
    return row
