"""Experiments in a final state, as the API shows them: they change no more, and most of a list are such.

One that is removed is dropped: at once where it was removed, elsewhere by the steward's next step.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable

MOST = 2_000
"""Experiments remembered, some 4 kB each; those asked for longest ago go first. As many removed ones, by id alone."""


class FinalViews:
    """JSON by the experiment's id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views: OrderedDict[str, bytes] = OrderedDict()
        self._gone: OrderedDict[str, None] = OrderedDict()

    def get(self, id: str) -> bytes | None:
        with self._lock:
            view = self._views.get(id)
            if view is not None:
                self._views.move_to_end(id)
            return view

    def put(self, id: str, view: bytes) -> None:
        """Remember a view, unless it was read before its experiment was removed."""
        with self._lock:
            if id in self._gone:
                return
            self._views[id] = view
            while len(self._views) > MOST:
                self._views.popitem(last=False)

    def drop(self, ids: Iterable[str]) -> None:
        """Forget experiments that were removed."""
        with self._lock:
            for id in ids:
                self._views.pop(id, None)
                self._gone[id] = None
            while len(self._gone) > MOST:
                self._gone.popitem(last=False)
