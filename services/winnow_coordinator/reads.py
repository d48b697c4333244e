"""Reads, answered by a few threads that each take all that waits: the busier the coordinator, the less a read costs.

A thread of its own for each request would spend more on handing over than on the reading: waking a thread, taking a
connection and a session, and waking the event loop again. Here that is shared by what came in meanwhile, and requests
for the same thing share its answer. Nobody is answered from a read that began before they asked.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, TypeVarTuple

from anyio import CapacityLimiter, to_thread
from fastapi import Response
from pydantic import BaseModel
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError
from sqlalchemy.orm import Session

from winnow.store import Database

T = TypeVar("T")
Args = TypeVarTuple("Args")
READERS = 2
"""One waits for the database while the other renders; more would only wait for the interpreter."""
MOST = 16
"""Reads that a reader takes at once: what a request may wait for beside its own."""
DOWN = (OperationalError, InterfaceError, TimeoutError)
"""Errors that the rest of a batch is spared: each read would wait as long for a database that does not answer."""

_Read = tuple[Callable[..., Any], tuple[Any, ...], Callable[[Any], Any]]


class Reads:
    """Calls use-cases that only read, several in one transaction. Belongs to one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[_Read, asyncio.Future[Any]] = {}
        self._readers: set[asyncio.Task[None] | None] = set()
        self._threads = CapacityLimiter(READERS)

    async def __call__(self, use_case: Callable[[Session, *Args], T], *args: *Args) -> T:
        """What `use_case` returns or raises. Reads with equal arguments are the same, and share what is returned."""
        return await self._ask((use_case, args, _as_it_is))

    async def show(self, use_case: Callable[[Session, *Args], BaseModel | bytes], *args: *Args) -> Response:
        """The same, as JSON: rendered by the reader, since lists have hundreds of kilobytes."""
        return Response(await self._ask((use_case, args, _as_json)), media_type="application/json")

    async def _ask(self, read: _Read) -> Any:
        answer = self._waiting.get(read)
        if answer is None:
            answer = self._waiting[read] = asyncio.get_running_loop().create_future()
            if len(self._readers) < READERS:
                self._readers.add(asyncio.create_task(self._work()))
        return await asyncio.shield(answer)  # others may wait for it, too

    async def _work(self) -> None:
        """Answer what waits until nothing does."""
        try:
            while taken := list(self._waiting.items())[:MOST]:
                for read, _ in taken:
                    del self._waiting[read]
                await self._answer(taken)
        finally:  # by itself: a callback of the task comes too late for what is asked in the moment between
            self._readers.discard(asyncio.current_task())

    async def _answer(self, taken: Sequence[tuple[_Read, asyncio.Future[Any]]]) -> None:
        try:
            outcomes = await to_thread.run_sync(self._read, [read for read, _ in taken], limiter=self._threads)
        except asyncio.CancelledError:
            for _, answer in taken:
                answer.cancel()
            raise
        for (_, answer), outcome in zip(taken, outcomes, strict=True):
            if isinstance(outcome, Exception):
                answer.set_exception(outcome)
                answer.exception()  # whoever asked may have left
            else:
                answer.set_result(outcome)

    def _read(self, reads: Sequence[_Read]) -> list[Any]:
        """What each returns, or the error that it raises, in order."""
        outcomes: list[Any] = []
        with self._database.read() as session:
            for use_case, args, render in reads:
                try:
                    outcomes.append(render(use_case(session, *args)))
                except DOWN as error:
                    return outcomes + [error] * (len(reads) - len(outcomes))
                except Exception as error:  # whatever it is, it is for those who asked
                    outcomes.append(error)
        return outcomes


def _as_it_is(found: T) -> T:
    return found


def _as_json(view: BaseModel | bytes) -> bytes:
    return view if isinstance(view, bytes) else view.model_dump_json().encode()
