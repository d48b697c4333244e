"""Supervises the child of one claim: renews the lease, writes progress, passes on pause and cancel.

The claim is worth more than the work: a supervisor that cannot renew kills its child before the lease ends, so that no
two processes ever compute one round with both their claims alive.
"""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from winnow.artefacts import ArtefactStore
from winnow.domain import ExperimentStatus
from winnow.errors import Fenced, InvalidInput
from winnow.settings import Settings
from winnow.store import Database, claims
from winnow.store.rounds import Cause, Patience
from winnow.telemetry import logger
from winnow_trainer.assignments import Assignment
from winnow_trainer.protocol import STOP, Message

PROGRESS_SECONDS = 0.5
STOP_SECONDS = 30.0
"""How long a child may take to write its checkpoint once it is told to stop."""
T = TypeVar("T")
_log = logger("trainer.supervisor")


class Child:
    """The process that computes, in a process group of its own, and the messages it sends."""

    def __init__(self, job: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "winnow_trainer.child", str(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | environment,
            start_new_session=True,
        )
        self.messages: queue.Queue[Message | None] = queue.Queue()
        self._last_words: deque[str] = deque(maxlen=20)
        self._stopping_since: float | None = None
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read, self._read_errors)]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """Ask it to stop; kill it if it was asked long ago."""
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
            try:
                assert self._process.stdin is not None
                self._process.stdin.write(STOP)
                self._process.stdin.flush()
            except OSError:
                return  # it is gone already; its last message says how
        elif time.monotonic() - self._stopping_since > STOP_SECONDS:
            self.kill()

    def kill(self) -> None:
        """End it and everything it started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def close(self) -> str:
        """Wait for its end; how it ended, for a person."""
        code = self._process.wait()
        for reader in self._readers:
            reader.join(5)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                _close(pipe)
        if code == -signal.SIGKILL:
            return "the training process was killed (SIGKILL); if nobody did that, the machine ran out of memory"
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the training process ended with {ended}: {' | '.join(list(self._last_words)[-3:])}"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.messages.put(json.loads(line))
        self.messages.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            text = line.decode(errors="replace").rstrip()
            self._last_words.append(text)
            sys.stderr.write(f"{text}\n")


class Supervisor:
    """Runs one claimed assignment to its end, whatever that is."""

    def __init__(
        self,
        assignment: Assignment,
        *,
        settings: Settings,
        database: Database,
        store: ArtefactStore,
        leaving: threading.Event,
        device: str,
        environment: dict[str, str],
    ) -> None:
        self._assignment = assignment
        self._settings = settings
        self._database = database
        self._store = store
        self._leaving = leaving
        self._device = device
        self._environment = environment
        self._log = _log.bind(table=assignment.work.table.__tablename__, id=assignment.id, attempt=assignment.attempt)
        self._renewed = time.monotonic()
        self._progress: dict[str, Any] | None = None
        self._end: Message | None = None

    def run(self) -> None:
        """Prepare the job, run the child, and store how it ended."""
        assignment = self._assignment
        scratch = self._settings.scratch_dir / f"{assignment.id}-a{assignment.attempt}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            with self._database.begin() as session:
                job = assignment.prepare(session, scratch)
            self._work(self._write_job(job, scratch))
        except Fenced:
            self._log.warning("claim.fenced", next="the work is discarded")
        except InvalidInput as error:
            self._give_back("rejected", str(error))
        except OSError as error:
            self._give_back("failed", f"the trainer's scratch directory {scratch}: {error}")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _write_job(self, job: dict[str, Any], scratch: Path) -> Path:
        settings = self._settings
        here = {"parent": os.getpid(), "scratch": str(scratch), "artefact_dir": str(settings.artefact_dir)}
        path = scratch / "job.json"
        path.write_text(json.dumps(job | here | {"device": self._device, "threads": settings.threads}))
        return path

    def _work(self, job: Path) -> None:
        child = Child(job, self._environment)
        self._log.info("child.started", pid=child.pid)
        try:
            self._watch(child)
        except BaseException:
            child.kill()
            child.close()
            raise
        ended = child.close()
        self._finish(ended)

    def _watch(self, child: Child) -> None:
        """Until the child has ended: take its messages, renew the claim, pass on what people want."""
        wrote = 0.0
        while True:
            try:
                message = child.messages.get(timeout=PROGRESS_SECONDS / 2)
                if message is None:
                    return
                self._take(message)
            except queue.Empty:
                pass
            if self._leaving.is_set():
                child.stop()
            now = time.monotonic()
            due = self._settings.renew_seconds if self._progress is None else PROGRESS_SECONDS
            if now - wrote >= due:
                wrote = now
                self._renew(child)

    def _take(self, message: Message) -> None:
        kind = message.pop("type")
        if kind == "progress":
            self._progress = message
        elif kind == "checkpoint":
            self._keep_checkpoint(message)
        else:
            self._end = {"type": kind, **message}

    def _renew(self, child: Child) -> None:
        """Extend the lease and hear what the row says. A database that is away is waited for, but not too long."""
        assignment, lease = self._assignment, self._settings.lease_seconds
        before = time.monotonic()
        try:
            with self._database.begin() as session:
                claims.renew(session, assignment.work, assignment.id, assignment.attempt, lease, self._progress)
                wanted = assignment.wanted(session)
        except OperationalError as error:
            self._log.warning("renewal.failed", reason=str(error.orig), next="tried again until the lease ends")
            if before - self._renewed > lease - max(2 * PROGRESS_SECONDS, lease / 10):
                raise Fenced(assignment.work.table.__tablename__, assignment.id, assignment.attempt) from error
            return
        self._renewed, self._progress = before, None
        if wanted in (ExperimentStatus.PAUSING, ExperimentStatus.CANCELLING):
            child.stop()

    def _keep_checkpoint(self, message: Message) -> None:
        try:
            with self._database.begin() as session:
                replaced = self._assignment.record(session, message)
        except OperationalError as error:
            self._log.warning("checkpoint.unrecorded", reason=str(error.orig), next="the next one will be")
            return
        self._delete(replaced)

    def _delete(self, keys: list[str]) -> None:
        for key in keys:
            self._store.delete(key)

    def _finish(self, ended: str) -> None:
        end = self._end or {"type": "error", "cause": "failed", "message": ended}
        if end["type"] == "result":
            self._delete(self._persist(lambda session: self._assignment.complete(session, end)))
            self._log.info("work.done")
        elif end["type"] == "stopped":
            self._give_back("stopped", None)
        else:
            self._give_back(end["cause"], end["message"])

    def _give_back(self, cause: Cause, message: str | None) -> None:
        settings = self._settings
        patience = Patience(settings.max_losses, settings.max_failures, settings.retry_seconds)
        self._log.warning("work.given_back", cause=cause, reason=message)
        try:
            self._persist(lambda session: self._assignment.give_back(session, cause, message, patience))
        except Fenced:
            self._log.warning("claim.fenced", next="nothing is left to give back")

    def _persist(self, write: Callable[[Session], T]) -> T:
        """Write the end of the work, as often as the lease allows while the database is away. Raises Fenced."""
        pause = threading.Event()
        while True:
            try:
                with self._database.begin() as session:
                    return write(session)
            except OperationalError as error:
                if time.monotonic() - self._renewed > self._settings.lease_seconds:
                    table = self._assignment.work.table.__tablename__
                    raise Fenced(table, self._assignment.id, self._assignment.attempt) from error
                self._log.warning("result.unwritten", reason=str(error.orig), next="tried again in a second")
                pause.wait(1)


def _close(pipe: Any) -> None:
    try:
        pipe.close()
    except OSError:
        return  # a stop that nobody was left to read
