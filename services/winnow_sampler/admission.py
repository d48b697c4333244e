"""Who may ask, and for how much, looked at before a body is parsed.

FastAPI parses it before any dependency is asked, and on the event loop: who may not ask would keep all others waiting
by sixty megabytes of brackets, and so would who may.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from winnow.errors import InvalidInput
from winnow.problems import TooLarge
from winnow_sampler.context import authorise, bearer

MOST_VALUES = 4_000_000
"""In a request's JSON: a label, a group and an exclusion for each of a million candidates, and as many again."""


class Admitted(APIRoute):
    """A route that lets in who has the token, with no more than can be parsed in a moment."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def admit(request: Request) -> Response:
            authorise(request, request.app.state.sampler, await bearer(request))
            if self.body_field is not None:
                _require_few(await _body(request))
            return await handle(request)

        return admit


async def _body(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise InvalidInput("body", "was cut off; send it again") from error


def _require_few(body: bytes) -> None:
    values = sum(map(body.count, (b",", b"[", b"{")))
    if values > MOST_VALUES:
        raise TooLarge("body", f"more than {MOST_VALUES} values, which is the limit. Upload arrays, or send their keys")
