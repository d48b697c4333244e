"""An experiment's events as server-sent events that resume where a client left off."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import OperationalError
from starlette.concurrency import run_in_threadpool

from winnow.domain import ExperimentStatus, is_final
from winnow.store import events, experiments, rounds
from winnow.store.tables import Event
from winnow.telemetry import logger
from winnow_coordinator.context import Coordinator

LOOK_SECONDS = 0.5
QUIET_SECONDS = 15.0
_log = logger("coordinator.events")


@dataclass(frozen=True)
class Seen:
    """What one look at the database found."""

    events: list[Event]
    progress: dict[str, Any]
    ended: bool


def look(coordinator: Coordinator, experiment_id: str, after: int) -> Seen:
    """Events later than `after` and how far the newest round is. Raises NotFound."""
    with coordinator.database.read() as session:
        status = ExperimentStatus(experiments.get(session, experiment_id).status)
        found = events.after(session, experiment_id, after)
        newest = rounds.newest(session, experiment_id)
        progress = {"round": newest.number, **newest.progress} if newest and newest.progress else {}
        return Seen(found, progress, ended=is_final(status) and not found)


async def follow(coordinator: Coordinator, experiment_id: str, after: int) -> AsyncIterator[str]:
    """Frames until the experiment has ended and all is sent, or this process stops; a client then resumes.

    A process that stops looks once all the same: a stream without events means that there were none.
    """
    yield "retry: 2000\n\n"
    progress: dict[str, Any] = {}
    quiet = 0.0
    while True:
        try:
            seen = await run_in_threadpool(look, coordinator, experiment_id, after)
        except OperationalError as error:  # the client comes back with its Last-Event-ID
            _log.warning("stream.cut", experiment=experiment_id, reason=str(error))
            return
        if seen.ended:
            return
        changed = bool(seen.progress) and seen.progress != progress
        for event in seen.events:
            yield frame(event.type, {**event.data, "at": event.at}, seq=event.seq)
            after = event.seq
        if changed:
            progress = seen.progress
            yield frame("progress", progress)
        quiet = 0.0 if seen.events or changed else quiet + LOOK_SECONDS
        if quiet >= QUIET_SECONDS:  # proxies close what stays silent
            quiet = 0.0
            yield ": still here\n\n"
        if coordinator.stopping.is_set():
            return
        if not seen.events:
            await asyncio.sleep(LOOK_SECONDS)


def frame(type: str, data: dict[str, Any], *, seq: int | None = None) -> str:
    """One event on the wire. Without `seq` a client's Last-Event-ID stays as it was."""
    number = f"id: {seq}\n" if seq is not None else ""
    return f"{number}event: {type}\ndata: {json.dumps(data)}\n\n"
