"""An experiment's events as server-sent events that resume where a client left off."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import OperationalError
from starlette.concurrency import run_in_threadpool

from winnow.domain import has_ended
from winnow.errors import NotFound
from winnow.store import events
from winnow.store.events import Glance
from winnow.store.tables import Event
from winnow.telemetry import logger
from winnow_coordinator.board import Board
from winnow_coordinator.context import Coordinator

QUIET_SECONDS = 15.0
_log = logger("coordinator.events")


@dataclass(frozen=True)
class Seen:
    """An experiment at a glance, and the events that a client does not have yet, or the first of them."""

    glance: Glance
    events: list[Event]

    def is_last(self, until_paused: bool) -> bool:
        """Whether a stream that ends with the experiment, or at a pause, too, ends here."""
        status = self.glance.status
        return not self.events and (status.is_at_rest if until_paused else has_ended(status))


def look(coordinator: Coordinator, experiment_id: str, after: int) -> Seen:
    """Events later than `after`, and how far the newest round is. Raises NotFound."""
    with coordinator.database.read() as session:
        glance = events.glances(session, [experiment_id]).get(experiment_id)
        if glance is None:
            raise NotFound("experiment", experiment_id)
        return Seen(glance, events.after(session, experiment_id, after))


async def follow(
    coordinator: Coordinator, board: Board, experiment_id: str, after: int, seen: Seen, *, until_paused: bool = False
) -> AsyncIterator[str]:
    """Frames until the experiment has ended (or is paused) and all is sent, or this process stops; clients then resume.

    Args:
        seen: the first look. A process that stops sends what it saw all the same: a stream without events means that
            there were none.
        until_paused: end at a pause, too.
    """
    yield "retry: 2000\n\n"
    progress: dict[str, Any] = {}
    spoken = time.monotonic()
    while not seen.is_last(until_paused):
        for event in seen.events:
            yield frame(event.type, {**event.data, "at": event.at}, seq=event.seq)
            after = event.seq
        changed = bool(seen.glance.progress) and seen.glance.progress != progress
        if changed:
            progress = seen.glance.progress
            yield frame("progress", progress)
        if seen.events or changed:
            spoken = time.monotonic()
        elif time.monotonic() - spoken >= QUIET_SECONDS:  # proxies close what stays silent
            spoken = time.monotonic()
            yield ": still here\n\n"
        if coordinator.stopping.is_set():
            return
        try:
            seen = await _look_again(coordinator, board, experiment_id, after, seen)
        except (NotFound, OperationalError) as error:  # the client comes back with its Last-Event-ID
            _log.warning("stream.cut", experiment=experiment_id, reason=str(error))
            return


async def _look_again(coordinator: Coordinator, board: Board, experiment_id: str, after: int, last: Seen) -> Seen:
    """At once where there may be more events than one look takes; else with everybody else."""
    if not last.events:
        glance = await board.look(experiment_id)
        if glance is None:
            raise NotFound("experiment", experiment_id)
        if glance.newest <= after:
            return Seen(glance, [])
    return await run_in_threadpool(look, coordinator, experiment_id, after)


def frame(type: str, data: dict[str, Any], *, seq: int | None = None) -> str:
    """One event on the wire. Without `seq` a client's Last-Event-ID stays as it was."""
    number = f"id: {seq}\n" if seq is not None else ""
    return f"{number}event: {type}\ndata: {json.dumps(data)}\n\n"
