"""The HTTP application: routes, errors, middleware, and the steward that lives as long as it does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, OperationalError, TimeoutError
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import winnow
from winnow import errors, problems
from winnow.description import add_page
from winnow.perimeter import Perimeter
from winnow.settings import is_loopback
from winnow.store import keys
from winnow.telemetry import logger
from winnow_coordinator.board import Board
from winnow_coordinator.context import Coordinator
from winnow_coordinator.monitoring import Meters, Observed
from winnow_coordinator.reads import Reads
from winnow_coordinator.routes import datasets, experiments, health, rounds, storage, workers
from winnow_coordinator.routes import keys as key_routes
from winnow_coordinator.steward import Steward

MOST_BODY = 1 << 20
"""Bytes of a request's body: a spec with thousands of labels has a tenth of it."""
THREADS = 10
"""Requests that are worked on at a time; more wait in line. Fewer than the connections that are kept, so that no
thread waits for one, or makes one for itself: a burst makes answers late, and never an error."""
_log = logger("coordinator")

CORS: dict[str, Any] = {
    "allow_methods": ["GET", "POST", "DELETE"],
    "allow_headers": ["Authorization", "Idempotency-Key", "Last-Event-ID"],
    "expose_headers": ["Location", "Retry-After", "X-Request-Id"],
}
DESCRIPTION = """Trains SimCLR encoders on the patches that matter, round by round.

Errors are problem+json (RFC 9457) with a stable `code`. Lists page by `cursor`. Every POST that creates takes an
`Idempotency-Key`. Off loopback every request needs a key: `Authorization: Bearer wnw_…`."""


class _Api(FastAPI):
    def build_middleware_stack(self) -> ASGIApp:
        # Around everything, error answers included; `add_middleware` would put it inside what answers a defect.
        inside = Perimeter(super().build_middleware_stack(), most_body=MOST_BODY)
        return Observed(inside, self.state.meters)

    def openapi(self) -> dict[str, Any]:
        settings = self.state.coordinator.settings
        needs_key = settings.require_key or not is_loopback(settings.coordinator_host)
        return problems.relabel(super().openapi(), needs_key=needs_key)


def make_app(coordinator: Coordinator, *, steward: bool = True) -> FastAPI:
    """The application. `steward=False` leaves leases, bells and picks to another coordinator."""
    app = _Api(
        title="Winnow coordinator",
        version=winnow.__version__,
        description=DESCRIPTION,
        lifespan=_lifespan(coordinator, steward=steward),
        generate_unique_id_function=_operation_id,
        docs_url=None,
        redoc_url=None,
    )
    add_page(app)
    app.state.coordinator = coordinator
    app.state.board = Board(coordinator)
    app.state.reads = Reads(coordinator.database)
    app.state.meters = Meters(coordinator.database)
    problems.install(app)
    for down in (OperationalError, InterfaceError, TimeoutError):
        app.add_exception_handler(down, _answer_database)
    app.add_exception_handler(DataError, _answer_unstorable)
    for nouns in (experiments, rounds, datasets, workers, storage, key_routes):
        app.include_router(nouns.router, prefix="/api/v1")
    app.include_router(health.router)
    if origins := coordinator.settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, **CORS)
    return app


def _lifespan(coordinator: Coordinator, *, steward: bool):
    @asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        _store_first_key(coordinator)
        works = Steward(coordinator)
        if steward:
            works.start()
        try:
            yield
        finally:
            coordinator.stopping.set()
            works.stop()

    return live


def _store_first_key(coordinator: Coordinator) -> None:
    first = coordinator.settings.bootstrap_key.get_secret_value()
    if first:
        try:
            with coordinator.database.begin() as session:
                keys.create(session, "bootstrap", keys.SCOPES, key=first)
        except IntegrityError:
            _log.info("key.stored_already", reason="another coordinator started at the same moment")


def _answer_database(request: Request, error: Exception) -> JSONResponse:
    _log.error("database.down", reason=str(error))
    detail = "the database does not answer; try again"
    return problems.answer(503, errors.Unavailable.code, detail, headers={"Retry-After": "2"})


def _answer_unstorable(request: Request, error: Exception) -> JSONResponse:
    """A value of the right type that the database cannot hold: a NUL in a text, say."""
    reason = str(getattr(error, "orig", error)).splitlines()[0]
    return problems.answer(422, errors.InvalidInput.code, f"the database cannot hold what was sent: {reason}")


def _operation_id(route: APIRoute) -> str:
    noun = route.tags[0] if route.tags else "coordinator"
    return f"{noun}_{route.name}"
