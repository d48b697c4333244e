"""How the experiments stand that somebody follows: one look at the database for all event streams of this process."""

import asyncio
from collections import defaultdict

from starlette.concurrency import run_in_threadpool

from winnow.store import events
from winnow.store.events import Glance
from winnow_coordinator.context import Coordinator

LOOK_SECONDS = 0.5


class Board:
    """Answers everyone who asked during the last half second with one statement. Nobody asks: nobody looks.

    Belongs to one event loop.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._asked: defaultdict[str, list[asyncio.Future[Glance | None]]] = defaultdict(list)
        self._looking: set[asyncio.Task[None]] = set()

    async def look(self, experiment_id: str) -> Glance | None:
        """The experiment half a second from now; None if there is none. Raises what the database raises."""
        if not self._asked:
            task = asyncio.create_task(self._answer_soon())
            self._looking.add(task)  # a task that nobody holds may be collected before it ends
            task.add_done_callback(self._looking.discard)
        answer: asyncio.Future[Glance | None] = asyncio.get_running_loop().create_future()
        self._asked[experiment_id].append(answer)
        return await answer

    async def _answer_soon(self) -> None:
        await asyncio.sleep(LOOK_SECONDS)
        asked, self._asked = self._asked, defaultdict(list)
        waiting = [(id, answer) for id, answers in asked.items() for answer in answers]
        try:
            seen = await run_in_threadpool(self._read, list(asked))
        except Exception as error:  # whatever it is, it is for those who asked: this task has nobody to tell
            for _, answer in waiting:
                if not answer.done():
                    answer.set_exception(error)
            return
        for id, answer in waiting:
            if not answer.done():  # a client that left has cancelled its own
                answer.set_result(seen.get(id))

    def _read(self, ids: list[str]) -> dict[str, Glance]:
        with self._coordinator.database.read() as session:
            return events.glances(session, ids)
