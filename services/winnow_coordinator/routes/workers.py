"""/api/v1/workers"""

from fastapi import APIRouter, Response
from sqlalchemy.orm import Session

from winnow.problems import responses
from winnow.store import workers
from winnow.store.tables import Worker
from winnow.store.workers import BusyWith
from winnow_coordinator import pages
from winnow_coordinator.auth import Reader
from winnow_coordinator.pages import Cursor, Limit
from winnow_coordinator.schemas import BusyWithView, Page, WorkerView

router = APIRouter(prefix="/workers", tags=["workers"], responses=responses(401, 403, 413, 422, 429, 503))


@router.get("", response_model=Page[WorkerView])
async def list_alive(caller: Reader, cursor: Cursor = None, limit: Limit = 100) -> Response:
    """Trainers seen within the time of a lease, and what they work on."""
    return await caller.reads.show(_page, caller.coordinator.settings.lease_seconds, cursor, limit)


def _page(session: Session, within: float, cursor: str | None, limit: int) -> Page[WorkerView]:
    rows = workers.alive(session, within=within, after=pages.decode(cursor), limit=limit + 1)
    shown, following = pages.cut(rows, limit, lambda row: row[0].id)
    return Page(items=[_view(worker, busy_with) for worker, busy_with in shown], next=following)


def _view(worker: Worker, busy_with: BusyWith | None) -> WorkerView:
    fields = {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "devices": worker.devices,
        "version": worker.version,
        "busy_with": busy_with and BusyWithView.model_validate(busy_with),
        "started_at": worker.started_at,
        "seen_at": worker.seen_at,
    }
    return WorkerView.model_validate(fields)
