"""The events of several experiments as they come."""

import threading
from collections.abc import Iterator, Sequence
from queue import SimpleQueue

from winnow.client import ApiProblem, Client, Event
from winnow.domain import ExperimentStatus, is_final

LOOK_SECONDS = 1.0
"""Between looks at an experiment that is at rest, which somebody may resume while others go on."""
Heard = tuple[str, Event | Exception | None]
"""An experiment's id with an event of it, with the reason why nothing more is heard, or with None while it rests."""


def hear(client: Client, ids: Sequence[str]) -> Iterator[tuple[str, Event]]:
    """Events with the ids of their experiments, until all of these have ended or are paused.

    Raises what `Client.events` raises, of whichever experiment is the first. Threads that hear nothing end with their
    streams, the last of them a minute after this does.
    """
    heard: SimpleQueue[Heard] = SimpleQueue()
    over = threading.Event()
    for id in ids:
        threading.Thread(target=_listen, args=(client, id, heard, over), daemon=True).start()
    resting: set[str] = set()
    try:
        while len(resting) < len(ids) or not all(_rests(client, id) for id in ids):
            id, what = heard.get()
            if isinstance(what, Exception):
                raise what
            if what is None:
                resting.add(id)
            else:
                resting.discard(id)
                yield id, what
    finally:
        over.set()


def _listen(client: Client, id: str, heard: SimpleQueue[Heard], over: threading.Event) -> None:
    last, known = 0, False
    try:
        while not over.is_set():
            seen = _status(client, id)
            known = True
            for event in client.events(id, after=last, until_paused=True):
                heard.put((id, event))
                last = event.id or last
                if over.is_set():
                    return
            heard.put((id, None))
            if is_final(seen):  # before the stream, which has told all then
                return
            over.wait(LOOK_SECONDS)
    except Exception as error:  # it is for whoever waits for the events
        heard.put((id, None if known and _is_gone(error) else error))


def _rests(client: Client, id: str) -> bool:
    """Whether nothing more happens to it by itself; what was removed meanwhile rests, too."""
    try:
        return _status(client, id).is_at_rest
    except ApiProblem as problem:
        if not _is_gone(problem):
            raise
        return True


def _is_gone(error: Exception) -> bool:
    return isinstance(error, ApiProblem) and error.is_not_found


def _status(client: Client, id: str) -> ExperimentStatus:
    return ExperimentStatus(client.experiment(id)["status"])
