"""/api/v1/workers"""

from fastapi import APIRouter

from winnow.problems import responses
from winnow.store import workers
from winnow_coordinator import pages
from winnow_coordinator.access import Here, Reading
from winnow_coordinator.auth import Reader
from winnow_coordinator.pages import Cursor, Limit
from winnow_coordinator.schemas import Page, WorkerView

router = APIRouter(prefix="/workers", tags=["workers"], responses=responses(401, 403, 413, 422, 429, 503))


@router.get("")
def list_alive(
    caller: Reader, here: Here, session: Reading, cursor: Cursor = None, limit: Limit = 100
) -> Page[WorkerView]:
    """Trainers seen within the time of a lease, and what they work on."""
    seen = here.settings.lease_seconds
    rows = workers.alive(session, within=seen, after=pages.decode(cursor), limit=limit + 1)
    shown, following = pages.cut(rows, limit, lambda row: row.id)
    return Page(items=[WorkerView.model_validate(row) for row in shown], next=following)
