"""/api/v1/workers"""

from fastapi import APIRouter, Response

from winnow.problems import responses
from winnow.store import workers
from winnow_coordinator import pages
from winnow_coordinator.access import Here, Reading, show
from winnow_coordinator.auth import Reader
from winnow_coordinator.pages import Cursor, Limit
from winnow_coordinator.schemas import Page, WorkerView

router = APIRouter(prefix="/workers", tags=["workers"], responses=responses(401, 403, 413, 422, 429, 503))


@router.get("", response_model=Page[WorkerView])
def list_alive(caller: Reader, here: Here, read: Reading, cursor: Cursor = None, limit: Limit = 100) -> Response:
    """Trainers seen within the time of a lease, and what they work on."""
    seen = here.settings.lease_seconds
    rows = read(workers.alive, within=seen, after=pages.decode(cursor), limit=limit + 1)
    shown, following = pages.cut(rows, limit, lambda row: row.id)
    return show(Page(items=[WorkerView.model_validate(row) for row in shown], next=following))
