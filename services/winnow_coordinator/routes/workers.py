"""/api/v1/workers"""

from fastapi import APIRouter, Response
from sqlalchemy.orm import Session

from winnow.problems import responses
from winnow.store import workers
from winnow_coordinator import pages
from winnow_coordinator.auth import Reader
from winnow_coordinator.pages import Cursor, Limit
from winnow_coordinator.schemas import Page, WorkerView

router = APIRouter(prefix="/workers", tags=["workers"], responses=responses(401, 403, 413, 422, 429, 503))


@router.get("", response_model=Page[WorkerView])
async def list_alive(caller: Reader, cursor: Cursor = None, limit: Limit = 100) -> Response:
    """Trainers seen within the time of a lease, and what they work on."""
    return await caller.reads.show(_page, caller.coordinator.settings.lease_seconds, cursor, limit)


def _page(session: Session, within: float, cursor: str | None, limit: int) -> Page[WorkerView]:
    rows = workers.alive(session, within=within, after=pages.decode(cursor), limit=limit + 1)
    shown, following = pages.cut(rows, limit, lambda row: row.id)
    return Page(items=[WorkerView.model_validate(row) for row in shown], next=following)
