"""/healthz, /readyz, /metrics: for supervisors and Prometheus, without a key."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import SQLAlchemyError

from winnow.errors import Unavailable
from winnow.problems import responses
from winnow.store import schema
from winnow_coordinator.schemas import HealthView

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> HealthView:
    """The process answers."""
    return HealthView(status="ok")


@router.get("/readyz", responses=responses(503))
async def readyz(request: Request) -> HealthView:
    """The database answers, too, and has the schema of this version."""
    try:
        await request.app.state.reads(schema.require)
    except SQLAlchemyError as error:
        raise Unavailable("the database does not answer") from error
    return HealthView(status="ok")


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(request: Request) -> Response:
    """Prometheus's text format."""
    return Response(generate_latest(request.app.state.meters.registry), media_type=CONTENT_TYPE_LATEST)
