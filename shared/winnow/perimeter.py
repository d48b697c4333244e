"""What stands around every HTTP service: who counts as a caller of this machine, limits, and security headers."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from winnow import problems
from winnow.description import PAGE
from winnow.settings import is_loopback

LEAST_SECRET = 24
"""Characters of a key or token that strangers may try: keys are stored as a plain sha256, which long ones allow."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""On every answer; a header that a route sets itself stands."""
_PAGE_POLICY = (
    "default-src 'none'; frame-ancestors 'none'; connect-src 'self'; img-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'"
)
"""Of the page that describes the API, whose scripts are the service's own."""
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via")
MOST_HEADERS = 16 << 10
"""Bytes of a request's headers; more is answered 431."""
LIMITS: Mapping[str, Any] = {
    "http": "h11",  # httptools is quicker and gathers a head without end
    "h11_max_incomplete_event_size": MOST_HEADERS,  # what may arrive of a head that does not end
    "limit_concurrency": 1000,  # connections; one more is answered 503
    "timeout_keep_alive": 5,
    "proxy_headers": False,  # nothing here depends on the client's address, and none is taken on trust
    "server_header": False,
    "access_log": False,
    "log_config": None,
}
"""What uvicorn is told by every service."""


def is_from_here(request: Request) -> bool:
    """Whether a request came from a program on this machine, as far as the request itself can tell.

    A page in a browser can resolve its own name to 127.0.0.1, or send to 127.0.0.1 from a page of another name; a proxy
    on this machine calls for strangers. None of them is one of us: they show in Host, Origin and the proxy's headers.
    """
    origin = request.headers.get("origin")
    if origin is not None and not is_loopback(_host_of(origin)):
        return False
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return False
    return is_loopback(request.url.hostname or "") and not any(name in request.headers for name in _FORWARDED)


class Perimeter:
    """Middleware around a whole application, error answers included.

    Args:
        most_body: bytes of a request's body; more is answered 413, by its Content-Length or else while it arrives.
        unbounded: paths whose routes hold their bodies to a limit of their own.
    """

    def __init__(self, app: ASGIApp, *, most_body: int, unbounded: tuple[str, ...] = ()) -> None:
        self.app = app
        self._most, self._unbounded = most_body, unbounded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(MutableHeaders(scope=message), scope["path"])
            await send(message)

        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADERS:
            reason = f"headers: more than {MOST_HEADERS} bytes, which is the limit"
            await _refuse(431, "headers-too-large", reason)(scope, receive, guarded)
        elif scope["path"] in self._unbounded:
            await self.app(scope, receive, guarded)
        elif _promises_more(scope, self._most):
            await _refuse(413, "too-large", self._reason)(scope, receive, guarded)
        else:
            await self.app(scope, self._counted(receive), guarded)

    def _counted(self, receive: Receive) -> Receive:
        taken = 0

        async def count() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._most:
                raise HTTPException(413, self._reason)
            return message

        return count

    @property
    def _reason(self) -> str:
        return f"body: more than {self._most} bytes, which is the limit"


def _refuse(status: int, code: str, reason: str) -> ASGIApp:
    """An answer that does not wait for the rest of the request."""
    return problems.answer(status, code, reason, headers={"Connection": "close"})


def _add_headers(headers: MutableHeaders, path: str) -> None:
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    if path == PAGE:
        headers["Content-Security-Policy"] = _PAGE_POLICY


def _promises_more(scope: Scope, most: int) -> bool:
    length = dict(scope["headers"]).get(b"content-length", b"")
    return length.isdigit() and int(length) > most


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""
