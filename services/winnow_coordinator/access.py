"""What a route is handed: the coordinator, and one transaction that ends before the response is sent."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from winnow_coordinator.context import Coordinator


def _here(request: Request) -> Coordinator:
    return request.app.state.coordinator


Here = Annotated[Coordinator, Depends(_here)]


def _write(coordinator: Here) -> Iterator[Session]:
    with coordinator.database.begin() as session:
        yield session


def _read(coordinator: Here) -> Iterator[Session]:
    with coordinator.database.read() as session:
        yield session


# scope="function": the default would commit after the response, and a client could read before its own write.
Writing = Annotated[Session, Depends(_write, scope="function")]
Reading = Annotated[Session, Depends(_read, scope="function")]
