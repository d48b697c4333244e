"""The training process that stays up between rounds: what it has loaded, compiled and put on the device is ready.

A process serves one set of devices. It is let go when it failed, when another set is wanted, and when it was idle for
long: a GPU's memory is not held for work that may never come.
"""

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from winnow.telemetry import logger
from winnow_trainer import memory
from winnow_trainer.devices import Device
from winnow_trainer.process import Child

_log = logger("trainer.standby")


class Standby:
    """At most one idle process.

    Args:
        idle_seconds: how long it is kept without work.
    """

    def __init__(self, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._waiting: tuple[Child, Device] | None = None
        self._since = 0.0
        # A child asks the kernel to die with the thread that started it, so that thread must last.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="starter")

    def take(self, device: Device) -> Child:
        """The process that waits for work on `device`, or a new one."""
        with self._lock:
            found, self._waiting = self._waiting, None
        if found is not None:
            child, its_device = found
            if its_device == device and child.is_well:
                _log.info("child.warm", pid=child.pid)
                return child
            _dismiss(child)
        return self.start(device)

    def start(self, device: Device) -> Child:
        """A new process."""
        program = ["winnow_trainer.child", str(os.getpid())]
        if device.count > 1:
            program = ["winnow_trainer.launcher", str(os.getpid()), str(device.count), device.name]
        environment = device.environment | memory.environment()
        child = self._starter.submit(Child, [sys.executable, "-m", *program], environment).result()
        _log.info("child.started", pid=child.pid)
        return child

    def keep(self, child: Child, device: Device) -> None:
        """Have a process that is well wait for the next job."""
        with self._lock:
            before, self._waiting = self._waiting, (child, device)
            self._since = time.monotonic()
        if before is not None:
            _dismiss(before[0])

    @property
    def device(self) -> Device | None:
        """What the process that waits holds on to: its memory is there, so nobody else may lease it."""
        with self._lock:
            return self._waiting[1] if self._waiting else None

    def age(self) -> None:
        """Let a process go that has been idle for long."""
        self._end("it was idle for long", after=self._idle_seconds)

    def let_go(self, device: Device) -> None:
        """Let the process that waits on this device go: another worker has it."""
        self._end("another worker has its device", on=device)

    def close(self) -> None:
        """Let everything go."""
        self._end("the worker ends")
        self._starter.shutdown()

    def _end(self, reason: str, *, after: float = 0.0, on: Device | None = None) -> None:
        with self._lock:
            if self._waiting is None or time.monotonic() - self._since < after or on not in (None, self._waiting[1]):
                return
            (child, _), self._waiting = self._waiting, None
        _log.info("child.let_go", pid=child.pid, reason=reason)
        _dismiss(child)


def _dismiss(child: Child) -> None:
    child.leave()
    child.close()
