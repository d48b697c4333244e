"""The events of several experiments as they come."""

import threading
from collections.abc import Iterator, Sequence
from queue import SimpleQueue

from winnow.client import Client, Event

Heard = tuple[str, Event | Exception | None]
"""An experiment's id with an event of it, with the reason why nothing more is heard, or with None at its end."""


def hear(client: Client, ids: Sequence[str]) -> Iterator[tuple[str, Event]]:
    """Events with the ids of their experiments, until each of these has ended or is paused.

    Raises what `Client.events` raises, of whichever experiment is the first.
    """
    heard: SimpleQueue[Heard] = SimpleQueue()
    for id in ids:
        threading.Thread(target=_listen, args=(client, id, heard), daemon=True).start()
    left = len(ids)
    while left:
        id, what = heard.get()
        if isinstance(what, Exception):
            raise what
        if what is None:
            left -= 1
        else:
            yield id, what


def _listen(client: Client, id: str, heard: SimpleQueue[Heard]) -> None:
    try:
        for event in client.events(id, until_paused=True):
            heard.put((id, event))
    except Exception as error:  # it is for whoever waits for the events
        heard.put((id, error))
    else:
        heard.put((id, None))
