"""/api/v1/workers"""

from fastapi import APIRouter

from winnow.problems import responses
from winnow.store import workers
from winnow_coordinator.access import Here, Reading
from winnow_coordinator.auth import Reader
from winnow_coordinator.schemas import Page, WorkerView

router = APIRouter(prefix="/workers", tags=["workers"], responses=responses(401, 403, 503))


@router.get("")
def list_alive(caller: Reader, here: Here, session: Reading) -> Page[WorkerView]:
    """Trainers seen within the time of a lease, and what they work on."""
    alive = workers.alive(session, within=here.settings.lease_seconds)
    return Page(items=[WorkerView.model_validate(row) for row in alive])
