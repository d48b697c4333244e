"""What the child tells its supervisor: one JSON object a line on standard output. It hears "stop" on standard input.

{"type": "progress", ...}                           where it stands
{"type": "checkpoint", "artefacts": [...]}          stored artefacts that the round can go on from
{"type": "result", ...}                             the end; artefacts, metrics, seconds
{"type": "stopped"}                                 it stopped because it was told to
{"type": "error", "cause": ..., "message": ...}     it cannot go on; `rejected` means never
"""

import json
import os
import threading
import time
from typing import Any

from winnow.artefacts import Stored

PROGRESS_SECONDS = 0.25
STOP = b"stop\n"
Message = dict[str, Any]


class Line:
    """The child's end. Standard output belongs to the protocol; whatever else prints goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._stop = threading.Event()
        self._told_at = 0.0
        threading.Thread(target=self._listen, name="stdin", daemon=True).start()

    def should_stop(self) -> bool:
        """Whether the supervisor said stop."""
        return self._stop.is_set()

    def tell(self, type: str, **fields: Any) -> None:
        """Send a message."""
        self._out.write(json.dumps({"type": type, **fields}) + "\n")

    def progress(self, **fields: Any) -> None:
        """Send where the work stands, a few times a second at most."""
        now = time.monotonic()
        if now - self._told_at >= PROGRESS_SECONDS:
            self._told_at = now
            self.tell("progress", **fields)

    def _listen(self) -> None:
        # Unbuffered: a buffered reader's lock, held by this thread, would crash the interpreter's end.
        while heard := os.read(0, 4096):
            if STOP.strip() in heard:
                self._stop.set()
        os._exit(3)  # the supervisor is gone, and its claim with it


def describe(stored: Stored, kind: str, **manifest: Any) -> Message:
    """An artefact as the protocol sends it."""
    return {"kind": kind, **stored.as_dict(), "manifest": manifest}
