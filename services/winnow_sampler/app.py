"""The HTTP application of the sampler."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp

import winnow
from winnow import problems
from winnow.description import add_page
from winnow.errors import Unavailable
from winnow.perimeter import Perimeter
from winnow.problems import responses
from winnow.settings import Settings
from winnow_sampler import routes
from winnow_sampler.context import Here, Sampler
from winnow_sampler.gate import most_body

DESCRIPTION = """Picks from embeddings or probabilities, by any of the strategies that GET /v1/strategies lists.

The same request gives the same answer and is computed once. What takes long, or waits for memory, is a job to poll; a
job that is cancelled keeps the picks it had. Errors are problem+json (RFC 9457) with a stable `code`."""

UPLOADS = "/v1/embeddings"
"""Has a limit of its own, in the settings."""
health = APIRouter(tags=["health"])


@health.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@health.get("/readyz", responses=responses(503))
def readyz(here: Here) -> dict[str, str]:
    """The artefact store can be read, too."""
    if not here.store.root.is_dir():
        raise Unavailable(f"the artefact directory {here.store.root} is not there")
    return {"status": "ok"}


@health.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(here: Here) -> Response:
    """Prometheus's text format."""
    return Response(generate_latest(here.registry), media_type=CONTENT_TYPE_LATEST)


class _Api(FastAPI):
    def build_middleware_stack(self) -> ASGIApp:
        most = most_body(self.state.sampler.settings.inline_limit)
        return Perimeter(super().build_middleware_stack(), most_body=most, unbounded=(UPLOADS,))

    def openapi(self) -> dict[str, Any]:
        token = self.state.sampler.settings.sampler_token.get_secret_value()
        return problems.relabel(super().openapi(), needs_key=bool(token))


def make_app(settings: Settings) -> FastAPI:
    """The application."""
    sampler = Sampler(settings)

    @asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        yield
        sampler.jobs.close()

    app = _Api(
        title="Winnow sampler",
        version=winnow.__version__,
        description=DESCRIPTION,
        lifespan=live,
        generate_unique_id_function=_operation_id,
        docs_url=None,
        redoc_url=None,
    )
    add_page(app)
    app.state.sampler = sampler
    problems.install(app)
    for router in (routes.selections, routes.comparisons, routes.files, routes.names, health):
        app.include_router(router)
    return app


def _operation_id(route: APIRoute) -> str:
    return f"{route.tags[0]}_{route.name}"
