"""The HTTP application of the sampler."""

import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, Histogram, generate_latest

import winnow
from winnow import problems
from winnow.artefacts import DirectoryStore
from winnow.errors import NotAuthorised, Unavailable
from winnow.problems import responses
from winnow.settings import Settings
from winnow_sampler.jobs import Jobs
from winnow_sampler.schemas import SelectionRequest, SelectionView

DESCRIPTION = """Picks from embeddings or probabilities: k-center greedy, entropy, margin, least confidence, random.

The same request gives the same answer and is computed once. Errors are problem+json (RFC 9457) with a stable `code`."""


class Sampler:
    """What every route shares."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = DirectoryStore(settings.artefact_dir)
        self.registry = CollectorRegistry()
        self.computed = Histogram(
            "winnow_selection_seconds", "Time to compute a selection", ("strategy",), registry=self.registry
        )
        self.jobs = Jobs(self.store, settings.inline_limit, on_computed=self._observe)
        running = Gauge("winnow_selections_running", "Selections under way", registry=self.registry)
        running.set_function(lambda: self.jobs.running)

    def _observe(self, strategy: str, seconds: float) -> None:
        self.computed.labels(strategy).observe(seconds)


def _here(request: Request) -> Sampler:
    return request.app.state.sampler


Here = Annotated[Sampler, Depends(_here)]
_bearer = HTTPBearer(auto_error=False, description="WINNOW_SAMPLER_TOKEN; not needed where none is set")


def _authorise(here: Here, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
    token = here.settings.sampler_token.get_secret_value()
    if token and not hmac.compare_digest(token.encode(), (given.credentials if given else "").encode()):
        raise NotAuthorised("the sampler needs its token: Authorization: Bearer …")


selections = APIRouter(prefix="/v1/selections", tags=["selections"], dependencies=[Depends(_authorise)])
health = APIRouter(tags=["health"])
_Asked = Annotated[SelectionRequest, Body()]
_UNDER_WAY: dict[int | str, dict[str, Any]] = {202: {"model": SelectionView, "description": "Under way; poll Location"}}


@selections.post("", response_model=SelectionView, responses=_UNDER_WAY | responses(401, 404, 413, 422, 500))
def pick(request: _Asked, here: Here) -> Response:
    """Pick. 200 with the batch, or 202 with a job to poll where it takes longer."""
    return _answer(here.jobs.submit(request, wait=here.settings.answer_seconds))


@selections.get("/{id}", response_model=SelectionView, responses=responses(401, 404, 422, 500))
def look(id: str, here: Here) -> Response:
    """A selection, done or under way."""
    return JSONResponse(here.jobs.get(id).as_json())


@selections.delete("/{id}", response_model=SelectionView, responses=responses(401, 404))
def cancel(id: str, here: Here) -> Response:
    """Stop a selection under way. One that is done stays."""
    return JSONResponse(here.jobs.cancel(id).as_json())


@health.get("/healthz")
def healthz() -> dict[str, str]:
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
    def openapi(self) -> dict[str, Any]:
        return self.openapi_schema or problems.relabel(super().openapi())


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
    )
    app.state.sampler = sampler
    problems.install(app)
    app.include_router(selections)
    app.include_router(health)
    return app


def _answer(view: SelectionView) -> Response:
    if view.status == "done":
        return JSONResponse(view.as_json())
    return JSONResponse(view.as_json(), 202, headers={"Location": f"/v1/selections/{view.id}", "Retry-After": "1"})


def _operation_id(route: APIRoute) -> str:
    return f"{route.tags[0]}_{route.name}"
