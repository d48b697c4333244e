"""Datasets and their samples."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Select, SQLColumnExpression, String, cast, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from winnow.domain import DatasetSpec, DatasetStatus, SampleRow, allowed_from, require_transition
from winnow.errors import AlreadyExists, NotFound, WrongState
from winnow.failpoints import Failpoint, reach
from winnow.store import claims, removals
from winnow.store.engine import Database, insert_rows, now
from winnow.store.tables import Dataset, Sample

Indices = NDArray[np.int64]
SLICE = 50_000
"""Samples that one transaction stores or deletes: on SQLite nobody else writes meanwhile, and leases end."""


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


def require_free(session: Session, name: str) -> None:
    """Raise AlreadyExists if `insert` could make no dataset of that name now."""
    if session.scalar(select(Dataset.id).where(Dataset.name == name, Dataset.status != DatasetStatus.FAILED)):
        raise AlreadyExists("dataset", name)


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


def begin_removal(session: Session, dataset: Dataset, lease: float) -> None:
    """Let nobody begin anything on a locked dataset any more, which no experiment is on; `remove` does the rest, and
    whoever finds that nobody has been at it for `lease` seconds.

    Raises WrongState while it is ingested.
    """
    status, target = DatasetStatus(dataset.status), DatasetStatus.REMOVING
    if target not in allowed_from(status):
        words = f"dataset {dataset.name} is {status} and cannot be removed; wait until it is ready or has failed"
        raise WrongState("dataset", dataset.name, status, target, allowed_from(status), words=words)
    dataset.status = target
    dataset.lease_until = now() + lease
    session.flush()


def remove(database: Database, id: str, lease: float, stopping: threading.Event) -> bool:
    """Delete a dataset whose removal was begun, slice by slice, and note where its shards lie. Several may be at it.

    Returns whether it is gone: not if `stopping` was set before.
    """
    bound, turn = None, 0.0
    while not stopping.wait(turn):
        bound = _remove_slice(database, id, lease, bound)
        if bound is None:
            return True
        reach(Failpoint.SAMPLES_DELETED)
        turn = database.turn
    return False


def _remove_slice(database: Database, id: str, lease: float, bound: int | None) -> int | None:
    """From which idx on all samples are deleted; None when none were left below `bound`, and the dataset is gone."""
    with database.begin() as session:
        dataset = session.get(Dataset, id, with_for_update=True)
        if dataset is None:
            return None
        first = _delete_last(session, id, below=bound)
        if first is None:
            session.delete(dataset)
            session.flush()
            removals.insert(session, f"datasets/{id}")
        else:
            dataset.lease_until = now() + lease
        return first


def abandoned(session: Session) -> list[str]:
    """Ids of the datasets in removal that nobody has been at for a lease."""
    is_nobodys = or_(Dataset.lease_until.is_(None), Dataset.lease_until < now())
    return list(session.scalars(select(Dataset.id).where(Dataset.status == DatasetStatus.REMOVING, is_nobodys)))


def ids(session: Session) -> list[str]:
    """Ids of all datasets, oldest first."""
    return list(session.scalars(select(Dataset.id).order_by(Dataset.id)))


def page(session: Session, *, before: str | None, limit: int) -> list[Dataset]:
    """Datasets from the newest on, starting below the id `before`."""
    wanted = select(Dataset).order_by(Dataset.id.desc()).limit(limit)
    return list(session.scalars(wanted.where(Dataset.id < before) if before else wanted))


def clear(session: Session, id: str, attempt: int, lease: float, *, above: int) -> bool:
    """Delete a slice of the samples from idx `above` on that an earlier attempt stored, and renew the claim.

    Returns whether there were any: call it until there are none. Raises Fenced.
    """
    claims.renew(session, claims.INGEST, id, attempt, lease, None)
    return _delete_last(session, id, above=above) is not None


def store(
    session: Session, id: str, attempt: int, lease: float, samples: Sequence[dict[str, Any]], *, total: int
) -> None:
    """Store a slice of the samples (idx, key, role, label, group; consecutive idx) in the place of what an earlier
    attempt stored there, and renew the claim. They show when all `total` are there and the dataset is ready.

    Raises Fenced.
    """
    first, last = samples[0]["idx"], samples[-1]["idx"]
    progress = {"phase": "store", "step": last + 1, "steps": total}
    claims.renew(session, claims.INGEST, id, attempt, lease, progress)
    _delete(session, id, first, last + 1)
    insert_rows(session, Sample, [{"dataset_id": id, **sample} for sample in samples])


def complete(
    session: Session,
    id: str,
    attempt: int,
    *,
    classes: Sequence[str],
    counts: dict[str, Any],
    report: dict[str, Any],
    location: str,
) -> None:
    """Make the dataset ready, whose samples are stored. Raises Fenced."""
    result = {"classes": list(classes), "counts": counts, "report": report, "location": location}
    claims.finish(session, claims.INGEST, id, attempt, DatasetStatus.READY, **result)


def indices(session: Session, dataset_id: str, role: str) -> Indices:
    """Ascending idx of all samples of one role: (n,) int64."""
    wanted = select(Sample.idx).where(Sample.dataset_id == dataset_id, Sample.role == role).subquery()
    return _numbers(session.scalar(select(_joined(wanted.c.idx))))


def labels(session: Session, dataset: Dataset, role: str) -> tuple[Indices, Indices]:
    """Ascending idx of all samples of one role, and the number of each one's label among the dataset's classes, -1
    where it has none: both (n,) int64.
    """
    numbers = {None: -1} | {label: number for number, label in enumerate(dataset.classes)}
    mine = Sample.dataset_id == dataset.id, Sample.role == role
    rows = session.execute(select(Sample.label, _joined(Sample.idx)).where(*mine).group_by(Sample.label)).all()
    parts = [_numbers(text) for _, text in rows]
    idx = np.concatenate([np.empty(0, np.int64), *parts])
    found = np.repeat(np.array([numbers[label] for label, _ in rows], np.int64), [len(part) for part in parts])
    order = idx.argsort()
    return idx[order], found[order]


def _joined(column: SQLColumnExpression[int]) -> ColumnElement[str]:
    """All numbers as one text: millions of rows, each an object, take five times as long."""
    return func.aggregate_strings(cast(column, String), " ")


def _numbers(text: str | None) -> Indices:
    return np.sort(np.fromstring(text or "", np.int64, sep=" "))


def samples_page(session: Session, dataset_id: str, *, after: int, limit: int, role: str | None) -> list[SampleRow]:
    """Samples by idx, starting above `after`; none unless the dataset is ready: slices come and go before and after."""
    is_ready = select(Dataset.status).where(Dataset.id == dataset_id).scalar_subquery() == DatasetStatus.READY
    mine = Sample.dataset_id == dataset_id, Sample.idx > after, is_ready
    columns = (getattr(Sample, name) for name in SampleRow._fields)
    wanted = select(*columns).where(*mine).order_by(Sample.idx).limit(limit)
    return list(map(SampleRow._make, session.execute(wanted.where(Sample.role == role) if role else wanted)))


def keys_page(session: Session, dataset_id: str, role: str, *, after: int, limit: int) -> list[tuple[int, str]]:
    """Samples of one role by idx, starting above `after`, as (idx, key).

    Without the other columns: millions of whole rows take many times as long.
    """
    mine = Sample.dataset_id == dataset_id, Sample.role == role, Sample.idx > after
    wanted = select(Sample.idx, Sample.key).where(*mine).order_by(Sample.idx).limit(limit)
    return [(idx, key) for idx, key in session.execute(wanted)]


def _delete_last(session: Session, id: str, *, above: int = 0, below: int | None = None) -> int | None:
    """Delete the last slice of the samples between two idx; the first idx of the slice, None where nothing was left.

    With `below` the index is not searched through what was deleted before, which stays in it for a while.
    """
    mine = [Sample.dataset_id == id, *([Sample.idx < below] if below is not None else [])]
    last = session.scalar(select(func.max(Sample.idx)).where(*mine))
    if last is None or last < above:
        return None
    first = max(above, last + 1 - SLICE)
    _delete(session, id, first, last + 1)
    return first


def _delete(session: Session, id: str, first: int, end: int) -> None:
    rows = delete(Sample).where(Sample.dataset_id == id, Sample.idx >= first, Sample.idx < end)
    session.execute(rows.execution_options(synchronize_session=False))


def _called(name_or_id: str) -> Select[Dataset]:
    """The one with that id before another with that name: a name may look like an id."""
    by_id = Dataset.id == name_or_id
    return select(Dataset).where(by_id | (Dataset.name == name_or_id)).order_by(by_id.desc()).limit(1)


def _found(session: Session, wanted: Select[Dataset], name_or_id: str) -> Dataset:
    row = session.scalar(wanted)
    if row is None:
        raise NotFound("dataset", name_or_id)
    return row
