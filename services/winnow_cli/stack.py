"""The embedded stack: coordinator, sampler and one trainer under one state directory, on loopback."""

import fcntl
import json
import os
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

import httpx

from winnow.errors import InvalidInput, Unavailable, WinnowError
from winnow.settings import Settings
from winnow_cli.service import Service

Say = Callable[[str], None]
READY_SECONDS = 60.0
LOOK_SECONDS = 0.25
PREFERRED_PORT = 8000
PATIENCE = {"trainer": 45.0, "coordinator": 15.0, "sampler": 10.0}
"""Seconds that each service may take to end, in the order of stopping: a trainer writes a checkpoint first."""


class AlreadyUp(WinnowError):
    """Another process runs a stack on this state directory."""

    code = "already-up"


class Stack:
    """The services of one state directory. One stack at a time: the directory is locked while it is up.

    Args:
        state_dir: database, broker, artefacts, scratch, logs and `stack.json`; made if it is not there.
        data_roots: folders that datasets may be read from, or files beside which they may; none given: those of
            the last time.
        port: the coordinator's; None: that of the last time, or 8000, or any that is free.
        profile: where each round leaves a torch profiler trace.
    """

    def __init__(
        self, state_dir: Path, data_roots: Sequence[Path], port: int | None, say: Say, *, profile: Path | None = None
    ) -> None:
        self.state_dir, self._say = state_dir.absolute(), say
        self._profile = profile.absolute() if profile else None
        self._roots, self._port = data_roots, port
        self._lock: IO[str] | None = None
        self._port_claim: IO[str] | None = None
        self.services: list[Service] = []
        self.data_roots: list[str] = []
        self.url = self.sampler_url = ""

    @property
    def record(self) -> Path:
        """`stack.json`: where coordinator and sampler are and which processes serve."""
        return self.state_dir / "stack.json"

    @property
    def logs(self) -> Path:
        return self.state_dir / "logs"

    def start(self) -> None:
        """Bring all services up and wait until they answer. Raises AlreadyUp, InvalidInput, Unavailable."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        from winnow.store import Database  # takes longer to import than most commands take to run

        before = read_record(self.state_dir)
        settings = self._settings(before)
        if settings.failpoint:
            self._say(f"WINNOW_FAILPOINT is set: a service dies at {settings.failpoint}; unset it unless you test")
        with closing(Database(settings.database_url)) as database:
            database.migrate()
        self.url, self.sampler_url = settings.coordinator_url, settings.sampler_url
        self.data_roots = [str(root) for root in settings.data_roots]
        environment = _environment(settings)
        self.services = [
            Service(name, environment, self.logs / f"{name}.log", patience=patience)
            for name, patience in PATIENCE.items()
        ]
        for service in reversed(self.services):
            service.start()
        self._write_record(running=True)
        self._wait_until_ready(settings)

    def watch(self, ended: Callable[[], bool]) -> None:
        """Start again what dies, until `ended` says so."""
        pause = threading.Event()
        while not ended():
            self.look()
            pause.wait(LOOK_SECONDS)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch from a thread of its own until the block ends, whatever the block waits for."""
        over = threading.Event()
        watcher = threading.Thread(target=self.watch, args=(over.is_set,), name="watch", daemon=True)
        watcher.start()
        try:
            yield
        finally:  # before anything is stopped: what is stopped must not be started again
            over.set()
            watcher.join()

    def look(self) -> None:
        """Start again what died."""
        news = [said for service in self.services if (said := service.look())]
        for said in news:
            self._say(said)
        if news:
            self._write_record(running=True)

    def stop(self) -> None:
        """End the trainer first, with a checkpoint, then the others."""
        for service in self.services:
            if problem := service.stop():
                self._say(problem)
        if self.services:
            self._write_record(running=False)
        self._unlock()

    def kill(self) -> None:
        """End everything at once. Nothing is lost: leases end, and the work is taken up again."""
        for service in self.services:
            service.kill()
        self._unlock()

    def _unlock(self) -> None:
        self.services = []
        for held in (self._lock, self._port_claim):
            if held is not None:
                held.close()

    def _take_lock(self) -> IO[str]:
        file = (self.state_dir / "up.lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who, where = file.read().strip(), read_record(self.state_dir).get("coordinator_url", "")
            file.close()
            raise AlreadyUp(f"a stack is up on {self.state_dir} (process {who}) {where}; stop it first") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        return file

    def _settings(self, before: dict[str, Any]) -> Settings:
        given_roots = [_folder_of(root.resolve()) for root in self._roots]
        known_roots = [Path(root) for root in before.get("data_roots", [])]
        roots = given_roots or known_roots
        if dropped := [str(root) for root in known_roots if root not in roots]:
            self._say(f"no longer a data root: {', '.join(dropped)}; to keep it, name it by --data-root, too")
        for root in roots:
            if not root.is_dir():
                raise InvalidInput("data-root", f"{root} is no folder; name the folder that holds your patches")
        port, self._port_claim = claim_port(self._port or before.get("port"), PREFERRED_PORT)
        if self._port and port != self._port:
            raise InvalidInput("port", f"{self._port} is taken; leave it out, and a free one is chosen")
        sampler = _free_port()
        given = Settings()
        if profile := self._profile or given.profile_dir:
            _require_writable("profile", profile)
        places: dict[str, Any] = {
            "state_dir": self.state_dir,
            "coordinator_port": port,
            "coordinator_url": f"http://127.0.0.1:{port}",
            "sampler_port": sampler,
            "sampler_url": f"http://127.0.0.1:{sampler}",
            "sampler_token": secrets.token_urlsafe(24),
        }
        return Settings(**places, data_roots=tuple(roots) or given.data_roots, profile_dir=profile)

    def _write_record(self, *, running: bool) -> None:
        services = {service.name: {"pid": service.pid, "log": str(service.log)} for service in self.services}
        record = {
            "running": running,
            "coordinator_url": self.url,
            "sampler_url": self.sampler_url,
            "port": int(self.url.rpartition(":")[2]),
            "data_roots": self.data_roots,
            "services": services if running else {},
        }
        temporary = self.record.with_name(".stack.json.new")
        temporary.write_text(json.dumps(record, indent=1))
        temporary.replace(self.record)

    def _wait_until_ready(self, settings: Settings) -> None:
        deadline = time.monotonic() + READY_SECONDS
        pause = threading.Event()
        waiting = {"coordinator": f"{settings.coordinator_url}/readyz", "sampler": f"{settings.sampler_url}/readyz"}
        while waiting:
            self.look()
            waiting = {name: url for name, url in waiting.items() if not _answers(url)}
            if waiting and time.monotonic() > deadline:
                name = next(iter(waiting))
                log = self.logs / f"{name}.log"
                raise Unavailable(f"the {name} did not answer within {READY_SECONDS:g} s; its log: {log}")
            pause.wait(LOOK_SECONDS)


def read_record(state_dir: Path) -> dict[str, Any]:
    """What the stack of a state directory wrote down last; empty where there was none."""
    try:
        found = json.loads((state_dir / "stack.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def until_told(stack: Stack) -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second Ctrl-C kills what still runs."""
    told = threading.Event()

    def hear(sign: int, frame: FrameType | None) -> None:
        if told.is_set():
            stack.kill()
            os._exit(130)
        told.set()

    before = {sign: signal.signal(sign, hear) for sign in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


def _environment(settings: Settings) -> dict[str, str]:
    """Everything the services need to know, as variables; the secret travels nowhere else."""
    roots = ":".join(map(str, settings.data_roots))
    return {
        "WINNOW_STATE_DIR": str(settings.state_dir),
        "WINNOW_COORDINATOR_PORT": str(settings.coordinator_port),
        "WINNOW_COORDINATOR_URL": settings.coordinator_url,
        "WINNOW_SAMPLER_PORT": str(settings.sampler_port),
        "WINNOW_SAMPLER_URL": settings.sampler_url,
        "WINNOW_SAMPLER_TOKEN": settings.sampler_token.get_secret_value(),
        "WINNOW_DATA_ROOTS": roots,
        "WINNOW_PROFILE_DIR": str(settings.profile_dir or ""),
    }


def _require_writable(name: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(name, f"{folder} cannot be made ({error.strerror}); name a folder that can") from error
    if not os.access(folder, os.W_OK):
        raise InvalidInput(name, f"{folder} cannot be written to; change its owner, or name another folder")


def _folder_of(place: Path) -> Path:
    """A folder, or the one that a file is in."""
    return place.parent if place.is_file() else place


def claim_port(*preferred: int | None) -> tuple[int, IO[str] | None]:
    """The first of `preferred` that is free on loopback, or any, and what keeps it from other stacks until closed.

    A port is free until somebody listens: two stacks that start together would choose the same one, and the second
    would talk to the first one's coordinator.
    """
    for port in preferred:
        if port is None or _free_port(port) != port:
            continue
        try:
            claim = (Path(tempfile.gettempdir()) / f"winnow-port-{port}.lock").open("a")
        except OSError:  # somebody else's: they have the port
            continue
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return port, claim
        except BlockingIOError:
            claim.close()
    return _free_port(), None


def _free_port(*preferred: int | None) -> int:
    """The first of `preferred` that is free on loopback, or any."""
    for port in [*preferred, 0]:
        if port is None:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise Unavailable("no TCP port is free on loopback")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.TransportError:
        return False
