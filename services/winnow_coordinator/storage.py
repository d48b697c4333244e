"""What takes the artefact store's room, and what may go."""

from collections.abc import Iterator

from winnow.domain import DatasetStatus, ExperimentStatus, allowed_from, has_ended
from winnow.errors import Unavailable
from winnow.store import artefacts, datasets, experiments
from winnow.store.tables import Dataset, Experiment
from winnow.telemetry import logger
from winnow_coordinator.context import Coordinator
from winnow_coordinator.schemas import HolderView, StorageView

MOST = 10_000
"""Datasets whose files are looked at, the newest."""
_log = logger("coordinator.storage")


def look(coordinator: Coordinator, limit: int) -> StorageView:
    """The `limit` datasets and experiments that hold most. Each file of the datasets is looked at: some thousands.

    Raises Unavailable where the artefact store does not say how much room is left.
    """
    holders = sorted([*_datasets(coordinator), *_experiments(coordinator, limit)], key=_size, reverse=True)
    return StorageView(items=holders[:limit], free=_free(coordinator))


def _datasets(coordinator: Coordinator) -> Iterator[HolderView]:
    """By what lies there: of one that failed, or is taken in, no report tells how much."""
    with coordinator.database.read() as session:
        found = datasets.page(session, before=None, limit=MOST)
        in_use = experiments.datasets_in_use(session)
    for row in found:
        may_go = DatasetStatus.REMOVING in allowed_from(DatasetStatus(row.status)) and row.id not in in_use
        yield HolderView(kind="dataset", bytes=_lying(coordinator, row.id), may_go=may_go, **_named(row))


def _lying(coordinator: Coordinator, id: str) -> int:
    """Bytes of a dataset's files; none where its folder cannot be read, which is no reason to show nothing else."""
    try:
        return sum(file.size for file in coordinator.artefacts.lying(f"datasets/{id}"))
    except OSError as error:
        _log.warning("place.unread", prefix=f"datasets/{id}", reason=str(error), next="it is shown with no bytes")
        return 0


def _free(coordinator: Coordinator) -> int:
    try:
        return coordinator.artefacts.free()
    except OSError as error:
        raise Unavailable(f"the artefact store cannot be looked at: {error}") from error


def _experiments(coordinator: Coordinator, limit: int) -> Iterator[HolderView]:
    """By their manifests: they may be many thousands."""
    with coordinator.database.read() as session:
        found = artefacts.largest_holders(session, limit)
    for row, size in found:
        may_go = has_ended(ExperimentStatus(row.status))
        yield HolderView(kind="experiment", bytes=size, may_go=may_go, **_named(row))


def _named(row: Dataset | Experiment) -> dict[str, str]:
    return {"id": row.id, "name": row.name, "status": row.status}


def _size(holder: HolderView) -> int:
    return holder.bytes
