"""API keys that were looked up a moment ago: a page that sends twenty requests has its key looked up once.

A revoked key reads for a second more at most, and on the coordinator that revoked it not at all. What writes asks the
database each time (winnow_coordinator.auth).
"""

import threading
import time
from collections import OrderedDict

from winnow.store import keys
from winnow.store.tables import ApiKey

TRUSTED_SECONDS = 1.0
MOST = 1_000
"""Keys remembered; those looked up longest ago go first."""


class KnownKeys:
    """Live keys by the digest of their text: the text itself is not kept. Wrong keys are not remembered."""

    def __init__(self, seconds: float = TRUSTED_SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[float, ApiKey]] = OrderedDict()
        self._forgotten = 0.0

    def get(self, text: str) -> ApiKey | None:
        """The key, unless the last look is too long ago."""
        found = self._known.get(keys.digest_of(text))
        return found[1] if found and time.monotonic() - found[0] < self._seconds else None

    def put(self, text: str, key: ApiKey, looked: float) -> None:
        """Remember what the database said. `looked`: time.monotonic() before it was asked."""
        digest = keys.digest_of(text)
        with self._lock:
            if looked <= self._forgotten:
                return  # it was asked before a key was revoked
            self._known[digest] = (looked, key)
            self._known.move_to_end(digest)
            while len(self._known) > MOST:
                self._known.popitem(last=False)

    def forget(self) -> None:
        """Ask the database about every key again."""
        with self._lock:
            self._forgotten = time.monotonic()
            self._known.clear()
