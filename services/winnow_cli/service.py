"""One service of the embedded stack: started, watched, started again, stopped."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
LAST_BYTES = 500
"""Of a log, looked through for the reason why its service ended."""
STEADY_SECONDS = 60.0
"""A service that lived this long did not die of how it was started: the next pause is the first again."""


class Service:
    """A process of the stack, with its log. Lives on a leash: it ends when this process does."""

    def __init__(self, name: str, environment: Mapping[str, str], log: Path, *, patience: float) -> None:
        self.name, self.log, self.patience = name, log, patience
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._file: IO[bytes] | None = None
        self._started = self._again_at = 0.0
        self._pause = FIRST_PAUSE

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it. Its standard output and error go to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "winnow_cli.leash", f"winnow_{self.name}"],
            env=os.environ | self._environment,
            stdin=subprocess.PIPE,
            stdout=self._file,
            stderr=self._file,
            start_new_session=True,  # Ctrl-C is the stack's to hear: it stops its services in order
        )
        self._started = time.monotonic()

    def look(self) -> str | None:
        """Start it again if it ended, after a pause that doubles. What happened, or None."""
        now = time.monotonic()
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return None
            self._pause = FIRST_PAUSE if now - self._started > STEADY_SECONDS else self._pause
            self._again_at = now + self._pause
            self._forget()
            why = f"{_describe(code)}: {_last_line(self.log)}"
            said = f"{self.name} ended ({why}); starts again in {self._pause:g} s; its log: {self.log}"
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            return said
        if now >= self._again_at:
            self.start()
            return f"{self.name} started again, pid {self.pid}"
        return None

    def stop(self) -> str | None:
        """Ask it to end, and kill it when its patience is over. What went wrong, or None."""
        if self._process is None:
            return None
        self._process.terminate()
        try:
            self._process.wait(self.patience)
            return None
        except subprocess.TimeoutExpired:
            self.kill()
            return f"{self.name} did not end within {self.patience:g} s and was killed; its log: {self.log}"
        finally:
            self._forget()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _forget(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        if self._file is not None:
            self._file.close()
        self._process = None


def _last_line(log: Path) -> str:
    """What a service said last, shortened."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LAST_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError as error:
        return f"its log cannot be read, {error.strerror}"
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing said")


def _describe(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
