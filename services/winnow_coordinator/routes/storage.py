"""/api/v1/storage"""

from anyio import to_thread
from fastapi import APIRouter

from winnow.problems import responses
from winnow_coordinator import storage
from winnow_coordinator.access import Here
from winnow_coordinator.auth import Reader
from winnow_coordinator.pages import Limit
from winnow_coordinator.schemas import StorageView

router = APIRouter(prefix="/storage", tags=["storage"], responses=responses(401, 403, 413, 422, 429, 503))


@router.get("")
async def look(caller: Reader, here: Here, limit: Limit = 20) -> StorageView:
    """The datasets and experiments that take most of the artefact store's room, the largest first."""
    return await to_thread.run_sync(storage.look, here, limit, limiter=here.looks)
