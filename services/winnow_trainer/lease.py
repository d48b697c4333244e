"""How long a claim is ours for sure, watched apart from the thread that renews it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

RESERVE = 0.1
"""The share of a lease that is left for ending the work before somebody else may begin it."""


class Lease:
    """Measured here, from before the claim or its renewal was asked for: the database's lease never ends earlier.

    Args:
        seconds: how long each renewal lasts. since: when the claim was asked for, by time.monotonic().
    """

    def __init__(self, seconds: float, since: float) -> None:
        self._seconds, self._since = seconds, since

    def renewed(self, since: float) -> None:
        """It was renewed by a call that began at `since`."""
        self._since = since

    @property
    def left(self) -> float:
        """Seconds until it may have ended."""
        return self._since + self._seconds - time.monotonic()

    @contextmanager
    def guard(self, act: Callable[[], None]) -> Iterator[None]:
        """Call `act`, once, when the lease is nearly over, even if the renewing thread waits for a silent database."""
        done = threading.Event()
        watch = threading.Thread(target=self._watch, args=(done, act), name="lease", daemon=True)
        watch.start()
        try:
            yield
        finally:
            done.set()
            watch.join()

    def _watch(self, done: threading.Event, act: Callable[[], None]) -> None:
        reserve = RESERVE * self._seconds
        while not done.wait(max(self.left - reserve, 0)):
            if self.left <= reserve:
                act()
                return
