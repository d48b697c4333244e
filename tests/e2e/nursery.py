"""Services as forks of one process that has imported them all: a start takes a moment instead of seconds.

A fork is a process like any other, with its own id, environment, log and end; a trainer's children are forks, too. Run
as a program, this is the process that forks: it hears requests, lines of JSON, on its standard input, and says on its
output who was born and who ended.
"""

import ctypes
import importlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

SERVICES = ("winnow_coordinator", "winnow_sampler", "winnow_trainer")
CHILD = "winnow_trainer.child"
IMPORTED = ("training", "ingesting", "warm")
"""What a trainer's child imports once it has a job."""
PR_SET_PDEATHSIG = 1


class Nursery:
    """The starter's side. Whatever was forked ends with it."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # a fork of a process with threads would wait for them
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        self._born: queue.Queue[int] = queue.Queue()
        self._codes: dict[int, int] = {}
        self._changed = threading.Condition()
        self._one_at_a_time = threading.Lock()
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._listener.start()

    def fork(self, service: str, log: Path, environment: Mapping[str, str], *arguments: str) -> "Fork":
        """A new process that serves, as `python -m SERVICE ARGUMENTS` would."""
        assert self._process.stdin is not None
        request = {"service": service, "environment": dict(environment), "log": str(log), "arguments": arguments}
        with self._one_at_a_time:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return Fork(self, self._born.get(timeout=300))

    def code_of(self, pid: int, timeout: float = 0) -> int | None:
        """How a fork ended, as subprocess has it; None while it runs."""
        with self._changed:
            self._changed.wait_for(lambda: pid in self._codes, timeout)
            return self._codes.get(pid)

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._listener.join()
        self._process.stdout.close()

    def _listen(self, said: IO[str]) -> None:
        for line in said:
            news = json.loads(line)
            if "code" not in news:
                self._born.put(news["pid"])
                continue
            with self._changed:
                self._codes[news["pid"]] = news["code"]
                self._changed.notify_all()


class Fork:
    """A forked process, with the part of subprocess.Popen that its owner uses."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid, self._nursery = pid, nursery

    def poll(self) -> int | None:
        return self._nursery.code_of(self.pid)

    def wait(self, timeout: float = 60) -> int:
        code = self._nursery.code_of(self.pid, timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"fork {self.pid}", timeout)
        return code

    def send_signal(self, sign: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sign)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Child(subprocess.Popen[bytes]):
    """What a trainer here starts its child with: all of Popen, but that torch is there already."""

    def _execute_child(self, command: list[str], *rest: Any) -> None:  # type: ignore[override]
        assert command[1:3] == ["-m", CHILD], command
        environment, pipes = rest[5], rest[9:15]  # each pair of ends: the child's stdin, its stdout, its stderr
        ends = (pipes[0], pipes[3], pipes[5])
        self.pid = os.fork()
        if self.pid == 0:
            _run_child(command[3:], environment, ends)
        self._child_created = True
        for end in ends:
            os.close(end)


def _run_child(arguments: list[str], environment: Mapping[str, str], ends: Sequence[int]) -> NoReturn:
    """Be the process that `python -m` would be. Whatever was the trainer's is left alone, and never closed in order."""
    code = 1
    try:
        os.setsid()
        for number, end in enumerate(ends):
            os.dup2(end, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.environ.update(environment)
        sys.argv = [CHILD, *arguments]
        importlib.import_module(CHILD).main()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Fork what is asked for, until nobody asks any more."""
    mains = {name: importlib.import_module(f"{name}.__main__").main for name in SERVICES}
    for name in IMPORTED:
        importlib.import_module(f"winnow_trainer.{name}")
    heard, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    begun = b""
    while True:
        ready, _, _ = select.select([0, heard], [], [])
        if heard in ready:
            os.read(heard, 4096)
            _tell_ends()
        if 0 in ready:
            if not (read := os.read(0, 65536)):
                os._exit(0)  # the forks end with it, and there is nothing to put away
            *lines, begun = (begun + read).split(b"\n")
            for line in lines:
                request = json.loads(line)
                if (pid := os.fork()) == 0:
                    os.close(heard)
                    os.close(wake)
                    _become(**request)
                    mains[request["service"]]()
                    return
                _tell(pid=pid)


def _become(service: str, environment: dict[str, str], log: str, arguments: list[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.environ.update(environment)
    sys.argv = [service, *arguments]
    if service == "winnow_trainer":
        subprocess.Popen = Child  # type: ignore[misc]
    for number, (path, flags) in enumerate(
        [(os.devnull, os.O_RDONLY), *[(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)] * 2]
    ):
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, number)
        os.close(opened)


def _tell_ends() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _tell(pid=pid, code=os.waitstatus_to_exitcode(status))


def _tell(**news: Any) -> None:
    os.write(1, json.dumps(news).encode() + b"\n")


if __name__ == "__main__":
    main()
