"""Processes that a bench starts, kills, pauses and starts again, and that none of them outlives.

A guard process knows every one of them and kills what is left once the bench is gone, however it went.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")
PORTS = (10_000, 32_000)
"""Below the range that the kernel takes for outgoing connections: a port stays free while its server is dead."""


def wait_until(predicate: Callable[[], T | None], timeout: float, what: str) -> T:
    """The first truthy value of `predicate`. Raises TimeoutError with what it saw last."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not (seen := predicate()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what}; last saw {seen!r}")
        pause.wait(0.05)
    return seen


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    while True:
        port = random.randrange(*PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Guard:
    """A process that kills the others when its standard input closes, that is, when their starter ends."""

    def __init__(self) -> None:
        program = [sys.executable, str(Path(__file__).with_name("guard.py"))]
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, start_new_session=True)
        self._lock = threading.Lock()

    def watch(self, pid: int) -> None:
        self._say(f"+{pid}")

    def forget(self, pid: int) -> None:
        self._say(f"-{pid}")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(f"{word}\n".encode())
            self._process.stdin.flush()


class Member:
    """One process of a deployment: its command, its environment, its log, and how it does.

    Args:
        environment: beside this process's own; may be changed between two starts.
        launch: an attribute: how a process of this environment is started, where it is not by its command.
        answers: whether it serves; None for one that serves nothing.
        user: who runs it, where this process may choose.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        guard: Guard,
        *,
        environment: Mapping[str, str] | None = None,
        answers: Callable[[], bool] | None = None,
        user: str | None = None,
        goodbye: signal.Signals = signal.SIGTERM,
        patience: float = 45.0,
    ) -> None:
        self.name, self.log = name, log
        self.command = list(command)
        self.environment = dict(environment or {})
        self.goodbye, self.patience = goodbye, patience
        self.starts = 0
        self.started_at = 0.0
        self._guard, self._answers, self._user = guard, answers, user
        self._process: subprocess.Popen[bytes] | None = None
        self.launch: Callable[[Mapping[str, str]], subprocess.Popen[bytes]] = self._launch

    @property
    def pid(self) -> int:
        """Raises ProcessLookupError when it does not run."""
        if not self.is_alive():
            raise ProcessLookupError(f"{self.name} does not run; its log: {self.log}")
        assert self._process is not None
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def is_ready(self) -> bool:
        """Whether it runs and, if it serves anything, answers."""
        return self.is_alive() and (self._answers is None or self._answers())

    def start(self, **extra: str) -> None:
        """Start it unless it runs. `extra` is environment for this one start."""
        if self.is_alive():
            return
        self._reap()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._process = self.launch(os.environ | self.environment | extra)
        self._guard.watch(self._process.pid)
        self.starts += 1
        self.started_at = time.monotonic()

    def _launch(self, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=self._user,
                extra_groups=[] if self._user else None,
                cwd="/",
            )

    def wait_ready(self, timeout: float = 60) -> None:
        """Raises TimeoutError when it does not answer."""
        wait_until(self.is_ready, timeout, f"{self.name} to answer; its log: {self.log}")

    def signal(self, sign: signal.Signals) -> None:
        os.kill(self.pid, sign)

    def pause(self) -> None:
        """SIGSTOP, to it and all it started."""
        for process in reversed(self.family()):
            _send(process, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT, the other way round."""
        for process in self.family():
            _send(process, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. What it started is told by nobody."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
        self._reap()

    def kill_family(self) -> None:
        """SIGKILL to it and to all it started, as when a machine goes."""
        family = self.family()
        for process in family:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(family[1:], 10)
        self.kill()

    def stop(self) -> int:
        """Ask it to end, kill it when its patience is over; its exit code."""
        if self._process is None:
            return 0
        if self.is_alive():
            self.resume()
            self._process.send_signal(self.goodbye)
        try:
            return self._process.wait(self.patience)
        except subprocess.TimeoutExpired:
            self.kill_family()
            return -signal.SIGKILL
        finally:
            self._reap()

    def wait(self, timeout: float) -> int:
        """Its exit code once it ended by itself. Raises subprocess.TimeoutExpired."""
        assert self._process is not None
        code = self._process.wait(timeout)
        self._reap()
        return code

    def family(self) -> list[psutil.Process]:
        """It and all processes that it started, itself first; empty when it does not run."""
        try:
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        except (ProcessLookupError, psutil.NoSuchProcess):
            return []

    def _reap(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._guard.forget(self._process.pid)
            self._process = None


def _send(process: psutil.Process, sign: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(sign)
