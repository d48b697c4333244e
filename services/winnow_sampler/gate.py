"""What a request passes before its route sees it.

The framework reads a body before it asks whose it is, and makes objects of its JSON where every other request waits.
Here the token comes first; then a limit of bytes, and one of lists and of named values, which for their bytes are the
dearest objects; the rest is done in a thread, for one request at a time. The JSON parser and pydantic let no other
thread in while they work: the limits keep it short.
"""

import json
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from anyio import to_thread
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from winnow_sampler.context import authorise, here_of

Validate = Callable[[Any], tuple[Any, list[Any]]]
"""From JSON to the model that a route takes, and what is wrong with it."""
_ARRAYS = 3
_NUMBER = 32
"""Bytes of a number as JSON, with what stands around it."""
_LABELS = 8 << 20
"""Bytes of all that is no array: the labels of half a million candidates, or rows to exclude."""
_BRACKETS = 1 << 18
"""In labels, which are not told from those of lists."""
MOST_NAMED = 100_000
"""Values with a name, and objects to hold them: a cap and a quota of each of fifty thousand groups."""
_COLONS = 1 << 20
"""In labels, which are not told from those behind names."""


def most_body(inline_limit: int) -> int:
    """Bytes of a request's JSON, where an inline array may hold so many numbers. Labels may take the arrays' room."""
    return _LABELS + _ARRAYS * _NUMBER * inline_limit


def most_lists(inline_limit: int) -> int:
    """Lists in a request's JSON: a row has a number or more."""
    return _BRACKETS + _ARRAYS * inline_limit


class GatedRoute(APIRoute):
    """A route behind the gate."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer, body = super().get_route_handler(), self.body_field
        validate = partial(body.validate, loc=("body",)) if body else None

        async def pass_on(request: Request) -> Response:
            await authorise(request)
            if validate is None:
                return await answer(request)
            try:
                return await answer(_Asked(request, validate))
            except _Unfit as found:
                raise RequestValidationError(found.errors) from None

        return pass_on


class _Asked(Request):
    """A request whose JSON is the model that its route takes, made in a thread; the framework lets that pass."""

    def __init__(self, request: Request, validate: Validate) -> None:
        super().__init__(request.scope, request.receive)
        self._validate, self._here = validate, here_of(request)

    async def json(self) -> Any:
        return await to_thread.run_sync(self._read, await self.body(), limiter=self._here.reading)

    def _read(self, body: bytes) -> Any:
        most = most_lists(self._here.settings.inline_limit)
        if body.count(b"[") > most:
            raise HTTPException(413, f"body: more than {most} lists, which is the limit; upload the arrays")
        if body.count(b":") + body.count(b"{") > MOST_NAMED + _COLONS:  # all names of an object are made before it is
            raise _too_many_names()
        model, errors = self._validate(json.loads(body, object_pairs_hook=_Named().take))
        if errors:
            raise _Unfit(errors)
        return model


class _Named:
    """Makes a request's objects, up to a number of them and of what they hold."""

    def __init__(self) -> None:
        self._left = MOST_NAMED

    def take(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self._left -= 1 + len(pairs)
        if self._left < 0:
            raise _too_many_names()
        return dict(pairs)


def _too_many_names() -> HTTPException:
    return HTTPException(413, f"body: more than {MOST_NAMED} named values, which is the limit")


class _Unfit(HTTPException):
    """What is wrong with a request, on its way through the framework, which says 400 of any other error in reading."""

    def __init__(self, errors: list[Any]) -> None:
        super().__init__(422)
        self.errors = errors
