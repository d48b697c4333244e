"""Experiments in a final state, as the API shows them: they change no more, and most of a list are such.

They may be removed, though: whoever shows one by its id asks the database whether it is still there.
"""

import threading
from collections import OrderedDict

MOST = 2_000
"""Experiments remembered, some 4 kB each; those asked for longest ago go first."""


class FinalViews:
    """JSON by the experiment's id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views: OrderedDict[str, bytes] = OrderedDict()

    def get(self, id: str) -> bytes | None:
        with self._lock:
            view = self._views.get(id)
            if view is not None:
                self._views.move_to_end(id)
            return view

    def put(self, id: str, view: bytes) -> None:
        with self._lock:
            self._views[id] = view
            while len(self._views) > MOST:
                self._views.popitem(last=False)
