"""The process that computes: started, heard, told to stop, killed, and how it ended."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from winnow import confinement
from winnow.telemetry import Unfailing
from winnow_trainer.protocol import JOB, LEAVE, STOP, Message

STOP_SECONDS = 30.0
"""How long a child may take to write its checkpoint once it is told to stop. Whoever stops a trainer waits longer."""
EXIT_SECONDS = 10.0
"""How long a child may take to end after its last message."""
DEATH_SECONDS = 10.0
"""How long one that was killed may take; with the time to end, less than a lease."""


class Child:
    """A process in a process group of its own, and the messages it sends; None is the last.

    `end` is what its end means where this side brought it about: a child that we killed did not run out of memory.
    """

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], *, stop_seconds: float = STOP_SECONDS
    ) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=confinement.environment() | environment,
            start_new_session=True,
        )
        self.messages: queue.Queue[Message | None] = queue.Queue()
        self.end: Message | None = None
        self._last_words: deque[str] = deque(maxlen=20)
        self._stop_seconds = stop_seconds
        self._stopping_since: float | None = None
        self._has_spoken = False
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read, self._read_errors)]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_well(self) -> bool:
        """Whether it runs and was not killed: fit for another job."""
        return self._process.poll() is None and self.end is None

    def begin(self, job: Path) -> None:
        """Give it a job, a JSON file."""
        self._stopping_since = None
        self._say(JOB + os.fsencode(job))

    def leave(self) -> None:
        """Ask it to end: there are no more jobs."""
        self._say(LEAVE)

    def stop(self) -> None:
        """Ask it to stop its job; kill it if it was asked long ago, or still starts: it has made nothing, and hears
        nothing while it imports torch."""
        if not self._has_spoken:
            self.kill({"type": "stopped"})
        elif self._stopping_since is None:
            self._stopping_since = time.monotonic()
            self._say(STOP)
        elif time.monotonic() - self._stopping_since > self._stop_seconds:
            self.kill({"type": "stopped"})

    def kill(self, end: Message | None = None) -> None:
        """End it and everything it started. `end` is what this means; the first reason stands."""
        self.end = self.end or end
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def close(self) -> str:
        """Wait for its end; how it ended, for a person."""
        try:
            code = self._wait()
        except subprocess.TimeoutExpired:
            hangs = "a driver or a file system hangs, and the machine may need a restart"
            text = f"process {self.pid} was killed and did not end within {DEATH_SECONDS:g} s: {hangs}"
            self.end = {"type": "error", "cause": "sick", "message": text}
            return text
        for reader in self._readers:
            reader.join(5)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                _close(pipe)
        said = "" if code == -signal.SIGKILL else f": {' | '.join(list(self._last_words)[-3:])}"
        return f"the training process ended with {confinement.describe_end(code)}{said}"

    def _say(self, words: bytes) -> None:
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(words + b"\n")
            self._process.stdin.flush()
        except OSError:
            return  # it is gone already; its last message says how

    def _wait(self) -> int:
        try:
            return self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill(failure(f"the training process went silent and did not end within {EXIT_SECONDS:g} s"))
            return self._process.wait(DEATH_SECONDS)

    def _read(self) -> None:
        assert self._process.stdout is not None
        line = b""
        try:
            for line in self._process.stdout:
                if not line.endswith(b"\n"):
                    return  # it died in mid-line: how it died says more
                self.messages.put(json.loads(line))
                self._has_spoken = True
        except ValueError:
            self.kill(failure(f"the training process sent a line that is not JSON: {line[:200]!r}"))
        finally:
            self.messages.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        out = Unfailing(sys.stderr)  # or a full disk ends this thread, and a child that nobody hears waits for ever
        for line in self._process.stderr:
            text = line.decode(errors="replace").rstrip()
            self._last_words.append(text)
            out.write(f"{text}\n")


def failure(message: str) -> Message:
    """The message of a child that failed, for one that cannot send it."""
    return {"type": "error", "cause": "failed", "message": message}


def _close(pipe: Any) -> None:
    try:
        pipe.close()
    except OSError:
        return  # a stop that nobody was left to read
