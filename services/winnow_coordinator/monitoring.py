"""What is measured of the coordinator itself: requests, and how many rows are in which state."""

import time
import uuid
from collections.abc import Iterator

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from winnow.store import Database, census
from winnow.telemetry import logger

_log = logger("coordinator.http")


class Meters:
    """The counters of one process."""

    def __init__(self, database: Database) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("winnow_http_requests", "Requests answered", labels, registry=self.registry)
        self.seconds = Histogram(
            "winnow_http_request_seconds", "Time until the answer began", labels[:2], registry=self.registry
        )
        self.registry.register(_Census(database))


class _Census(Collector):
    """Counts rows at the moment of asking; every coordinator gives the same numbers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> list[Metric]:
        return []  # registering must not read the database

    def collect(self) -> Iterator[Metric]:
        gauge = GaugeMetricFamily("winnow_rows", "Rows by table and status", labels=("table", "status"))
        with self._database.read() as session:
            for labels, count in census.by_status(session).items():
                gauge.add_metric(labels, count)
        yield gauge


class Observed:
    """Middleware: binds a request id to the logs, counts and times the answer."""

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self.app = app
        self.meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex[:12]
        begun = time.monotonic()

        async def observe(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                self._count(scope, message["status"], time.monotonic() - begun)
            await send(message)

        with structlog.contextvars.bound_contextvars(request=request_id):
            await self.app(scope, receive, observe)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")  # never the raw path: ids would be labels without end
        self.meters.requests.labels(scope["method"], route, str(status)).inc()
        self.meters.seconds.labels(scope["method"], route).observe(seconds)
        _log.debug("request.answered", method=scope["method"], route=route, status=status, seconds=round(seconds, 4))
