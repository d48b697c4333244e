"""What child and supervisor tell each other, a line at a time.

On the child's standard input: `job PATH` (do this one, a JSON file), `stop` (end the job under way with a checkpoint),
`leave` (there are no more jobs). Its standard output carries JSON objects; the last four end a job:

{"type": "progress", ...}                           where it stands
{"type": "checkpoint", "artefacts": [...]}          stored artefacts that the round can go on from
{"type": "taken_over", "patches": ...}              how many patches of earlier attempts an ingest keeps
{"type": "result", ...}                             the end; artefacts, metrics, seconds
{"type": "stopped"}                                 it stopped because it was told to
{"type": "anew", "limits": {...}}                   a process of a team met a limit: the job is begun anew within it
{"type": "error", "cause": ..., "message": ...}     it cannot go on; `rejected` means never, `sick` not on this device,
                                                    `full` not before there is room

Of a team the leader speaks; another process says only what ended it, and no more than the first end is heard.
"""

import json
import os
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from winnow.artefacts import Stored

PROGRESS_SECONDS = 0.25
STOP, LEAVE, JOB = b"stop", b"leave", b"job "
Message = dict[str, Any]


class Voice:
    """What a child says. Standard output belongs to the protocol; whatever else prints goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._one_at_a_time = threading.Lock()

    def tell(self, type: str, **fields: Any) -> None:
        """Send a message."""
        with self._one_at_a_time:
            self._out.write(json.dumps({"type": type, **fields}) + "\n")


class Line(Voice):
    """The end of a child that is spoken to: it hears as well."""

    def __init__(self) -> None:
        super().__init__()
        self._stop = threading.Event()
        self._jobs: queue.Queue[Path | None] = queue.Queue()
        self._told_at = 0.0
        threading.Thread(target=self._listen, name="stdin", daemon=True).start()

    def jobs(self) -> Iterator[dict[str, Any]]:
        """Jobs as they come, until the supervisor says leave."""
        while (path := self._jobs.get()) is not None:
            yield json.loads(path.read_text())

    def should_stop(self) -> bool:
        """Whether the supervisor said stop to the job under way."""
        return self._stop.is_set()

    def progress(self, **fields: Any) -> None:
        """Send where the work stands, a few times a second at most."""
        now = time.monotonic()
        if now - self._told_at >= PROGRESS_SECONDS:
            self._told_at = now
            self.tell("progress", **fields)

    def _listen(self) -> None:
        # Unbuffered: a buffered reader's lock, held by this thread, would crash the interpreter's end.
        begun = b""
        while heard := os.read(0, 4096):
            *lines, begun = (begun + heard).split(b"\n")
            for line in lines:
                self._hear(line)
        os._exit(3)  # the supervisor is gone, and its claim with it

    def _hear(self, line: bytes) -> None:
        if line.startswith(JOB):
            self._stop.clear()  # a stop that came too late for the job before
            self._jobs.put(Path(os.fsdecode(line[len(JOB) :])))
        elif line == STOP:
            self._stop.set()
        elif line == LEAVE:
            self._jobs.put(None)


def describe(stored: Stored, kind: str, **manifest: Any) -> Message:
    """An artefact as the protocol sends it."""
    return {"kind": kind, **stored.as_dict(), "manifest": manifest}
