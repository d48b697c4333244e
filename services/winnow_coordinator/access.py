"""What a route is handed: the coordinator, and one transaction that ends before the response is sent.

A read begins, ends and is rendered in the route's own thread. As a dependency with `yield` and an object for the
response model that would be four more changes of thread for each request, and the event loop would render lists of
hundreds of kilobytes while everything else waits for it.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Concatenate, ParamSpec, TypeVar

from fastapi import Depends, Request, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session

from winnow.failpoints import Failpoint, reach
from winnow_coordinator.board import Board
from winnow_coordinator.context import Coordinator

P = ParamSpec("P")
T = TypeVar("T")


async def _here(request: Request) -> Coordinator:  # async: it waits for nothing, so it needs no thread
    return request.app.state.coordinator


async def _board(request: Request) -> Board:
    return request.app.state.board


Here = Annotated[Coordinator, Depends(_here)]
Watching = Annotated[Board, Depends(_board)]


class Reads:
    """Calls a use-case that only reads, in one transaction."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._database = coordinator.database

    def __call__(self, use_case: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._database.read() as session:
            return use_case(session, *args, **kwargs)


def show(view: BaseModel) -> Response:
    """A view as JSON, rendered here and now."""
    return Response(view.model_dump_json(), media_type="application/json")


def _write(coordinator: Here) -> Iterator[Session]:
    with coordinator.database.begin() as session:
        yield session
    reach(Failpoint.REQUEST_COMMITTED)


async def _read(coordinator: Here) -> Reads:
    return Reads(coordinator)


# scope="function": the default would commit after the response, and a client could read before its own write.
Writing = Annotated[Session, Depends(_write, scope="function")]
Reading = Annotated[Reads, Depends(_read)]
