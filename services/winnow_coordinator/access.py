"""What a route is handed: the coordinator, its board, or one transaction that ends before the response is sent."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from winnow.failpoints import Failpoint, reach
from winnow_coordinator.board import Board
from winnow_coordinator.context import Coordinator


async def _here(request: Request) -> Coordinator:  # async: it waits for nothing, so it needs no thread
    return request.app.state.coordinator


async def _board(request: Request) -> Board:
    return request.app.state.board


Here = Annotated[Coordinator, Depends(_here)]
Watching = Annotated[Board, Depends(_board)]


def _write(coordinator: Here) -> Iterator[Session]:
    with coordinator.database.begin() as session:
        yield session
    reach(Failpoint.REQUEST_COMMITTED)


# scope="function": the default would commit after the response, and a client could read before its own write.
Writing = Annotated[Session, Depends(_write, scope="function")]
