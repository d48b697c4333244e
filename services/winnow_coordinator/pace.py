"""How fast one key may ask: a bucket for each, filled at the settings' rate. Each coordinator counts for itself."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from winnow.errors import TooManyRequests

BURST_SECONDS = 2.0
"""What a key left unasked for this long, it may ask for at once."""


@dataclass
class _Bucket:
    left: float
    at: float


class Pace:
    """Buckets by the id of a key; there are no more of them than keys.

    Args:
        per_second: requests that a key may ask for in the long run; 0 counts nothing.
        clock: seconds that only grow.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = per_second, clock
        self._most = max(1.0, per_second * BURST_SECONDS)
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def take(self, id: str) -> None:
        """Count a request of the key `id`. Raises TooManyRequests with the seconds until the next may come."""
        if not self._rate:
            return
        with self._lock:
            now = self._clock()
            bucket = self._buckets.setdefault(id, _Bucket(self._most, now))
            bucket.left = min(self._most, bucket.left + (now - bucket.at) * self._rate)
            bucket.at = now
            if bucket.left < 1:
                raise TooManyRequests(self._rate, math.ceil((1 - bucket.left) / self._rate))
            bucket.left -= 1
