"""Routes whose JSON has a largest size, so that one request cannot fill the memory before it is looked at."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Message

MOST_BODY = 64 << 20
"""Bytes of a request's JSON: the labels of a million candidates. Arrays of that size are uploaded."""


class BoundedRoute(APIRoute):
    """A route that answers 413 to a body above `MOST_BODY`, by its Content-Length or else while it arrives."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            length = request.headers.get("Content-Length", "")
            if length.isdigit() and int(length) > MOST_BODY:
                raise _too_large()
            return await handle(_counted(request))

        return bounded


def _counted(request: Request) -> Request:
    taken = 0

    async def receive() -> Message:
        nonlocal taken
        message = await request.receive()
        taken += len(message.get("body", b""))
        if taken > MOST_BODY:
            raise _too_large()
        return message

    return Request(request.scope, receive)


def _too_large() -> HTTPException:
    return HTTPException(413, f"body: more than {MOST_BODY} bytes, which is the limit; upload arrays of that size")
