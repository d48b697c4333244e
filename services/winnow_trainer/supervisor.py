"""Supervises the child of one claim: renews the lease, writes progress, passes on pause and cancel.

The claim is worth more than the work: a supervisor that cannot renew kills its child before the lease ends, so that no
two processes ever compute one round with both their claims alive. Whatever ends the work is told to the row.
"""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from winnow.artefacts import ArtefactStore
from winnow.errors import Fenced
from winnow.failpoints import Failpoint, reach
from winnow.settings import Settings
from winnow.store import Database, claims
from winnow.store.claims import TRAIN
from winnow.store.rounds import Cause, Patience
from winnow.telemetry import logger
from winnow_trainer import scratch
from winnow_trainer.assignments import Assignment
from winnow_trainer.devices import CPU, Device
from winnow_trainer.lease import Lease
from winnow_trainer.process import Child, failure
from winnow_trainer.protocol import Message
from winnow_trainer.reasons import explain
from winnow_trainer.standby import Standby

PROGRESS_SECONDS = 0.5
T = TypeVar("T")
Begin = Callable[[], AbstractContextManager[Session]]
_log = logger("trainer.supervisor")


class Supervisor:
    """Runs one claimed assignment to its end, whatever that is."""

    def __init__(
        self,
        assignment: Assignment,
        *,
        lease: Lease,
        settings: Settings,
        database: Database,
        store: ArtefactStore,
        leaving: threading.Event,
        device: Device,
        standby: Standby,
    ) -> None:
        self._assignment = assignment
        self._lease = lease
        self._settings = settings
        self._database = database
        self._store = store
        self._leaving = leaving
        self._device = device
        self._standby = standby
        self._scratch = scratch.place(settings.scratch_dir, assignment.id, assignment.attempt)
        self._log = _log.bind(table=assignment.work.table.__tablename__, id=assignment.id, attempt=assignment.attempt)
        self._progress: dict[str, Any] | None = None
        self._unrecorded: Message | None = None  # a checkpoint that the database was not there for
        self._end: Message | None = None
        self.device_worked: bool | None = None
        """Whether the device did the work or ended it, so that it is given back as lost; None where nobody knows."""

    def run(self) -> None:
        """Prepare the job, run the child, and store how it ended."""
        try:
            self._work(self._write_job())
        except Fenced:
            self._log.warning("claim.fenced", next="the work is discarded")
        except Exception as error:  # every reason must reach the row
            cause, message = explain(error, self._scratch)
            self._log.warning("attempt.stumbled", reason=message, exc_info=cause == "failed")
            self._give_back("failed" if cause == "sick" else cause, message)
        finally:
            scratch.remove(self._scratch)

    def _write_job(self) -> Path:
        settings, assignment = self._settings, self._assignment
        made = scratch.make(settings.scratch_dir, assignment.id, assignment.attempt)
        job = self._persist(lambda session: assignment.prepare(session, made), self._database.read)
        before = time.monotonic()
        self._persist(assignment.start)
        self._lease.renewed(before)
        path = made / "job.json"
        path.write_text(
            json.dumps(job | _circumstances(settings) | {"scratch": str(made), "device": self._device.name})
        )
        reach(Failpoint.JOB_WRITTEN)
        return path

    def _work(self, job: Path) -> None:
        while (end := self._attend(job))["type"] == "anew":
            self._log.warning("team.anew", limits=end["limits"], next="it begins anew from its last checkpoint")
            job.write_text(json.dumps(json.loads(job.read_text()) | {"limits": end["limits"]}))
        self._finish(end)

    def _attend(self, job: Path) -> Message:
        """Have a child do the job; how it ended."""
        self._end = None
        warm = self._assignment.work is TRAIN  # an ingest reads strangers' files: its process ends with it
        child = self._standby.take(self._device) if warm else self._standby.start(CPU)
        try:
            with self._lease.guard(partial(self._abandon, child)):
                child.begin(job)
                self._watch(child)
        except BaseException:
            child.kill()
            child.close()
            raise
        if warm and child.is_well and self._end is not None and self._end["type"] in ("result", "stopped"):
            self._standby.keep(child, self._device)
            return self._end
        child.leave()
        ended = child.close()
        return self._end or child.end or failure(ended)

    def _abandon(self, child: Child) -> None:
        message = f"the claim could not be renewed within its {self._settings.lease_seconds:g} s; is the database well?"
        self._log.error("lease.unrenewed", reason=message, next="the child is killed before somebody else begins")
        child.kill({"type": "error", "cause": "lost", "message": message})

    def _watch(self, child: Child) -> None:
        """Until the child has said its last: take its messages, renew the claim, pass on what people want."""
        wrote = 0.0
        while self._end is None:
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
        elif kind == "taken_over":
            self._log.info("ingest.begins", **message)
        else:
            self._end = {"type": kind, **message}

    def _renew(self, child: Child) -> None:
        """Extend the lease and hear what the row says. A database that is away is waited for while the lease lasts."""
        assignment, seconds = self._assignment, self._settings.lease_seconds
        before = time.monotonic()
        try:
            with self._database.begin() as session:
                claims.renew(session, assignment.work, assignment.id, assignment.attempt, seconds, self._progress)
                wanted = assignment.wanted(session)
        except OperationalError as error:
            self._log.warning("renewal.failed", reason=str(error.orig), next="tried again until the lease ends")
            return
        reach(Failpoint.LEASE_RENEWED)
        self._lease.renewed(before)
        self._progress = None
        if self._unrecorded is not None:
            self._keep_checkpoint(self._unrecorded)
        if not wanted.lets_work:
            child.stop()

    def _keep_checkpoint(self, message: Message) -> None:
        reach(Failpoint.CHECKPOINT_HEARD)
        try:
            with self._database.begin() as session:
                replaced = self._assignment.record(session, message)
        except OperationalError as error:
            self._unrecorded = message
            self._log.warning("checkpoint.unrecorded", reason=str(error.orig), next="tried again with the next renewal")
            return
        self._unrecorded = None
        reach(Failpoint.CHECKPOINT_RECORDED)
        self._delete(replaced)

    def _delete(self, prefixes: Iterable[str]) -> None:
        left = iter(prefixes)
        while True:
            try:
                if (prefix := next(left, None)) is None:
                    return
                self._store.delete(prefix)
            except OSError as error:  # one that cannot be listed ends there
                self._log.warning("artefact.undeleted", reason=str(error), next="it takes up room until it is swept")

    def _finish(self, end: Message) -> None:
        if end["type"] == "result":
            reach(Failpoint.RESULT_HEARD)
            for store in self._assignment.slices(end):
                # All that is decoded is kept, and more slices may be left than there is time for.
                if self._leaving.is_set():
                    self._give_back("stopped", None)
                    return
                self._store_slice(store)
            left = self._persist(lambda session: self._assignment.complete(session, end))
            reach(Failpoint.WORK_FINISHED)
            self.device_worked = True
            self._delete(left)
            self._log.info("work.done")
        elif end["type"] == "stopped":
            self._give_back("stopped", None)
        elif end["cause"] == "sick":
            self.device_worked = False
            self._give_back("lost", end["message"])
        else:
            self._give_back(end["cause"], end["message"])

    def _store_slice(self, store: Callable[[Session], bool]) -> None:
        is_left = True
        while is_left:
            before = time.monotonic()
            is_left = self._persist(store)
            self._lease.renewed(before)
            reach(Failpoint.SAMPLES_STORED)

    def _give_back(self, cause: Cause, message: str | None) -> None:
        settings = self._settings
        patience = Patience(settings.max_losses, settings.max_failures, settings.retry_seconds)
        self._log.warning("work.given_back", cause=cause, reason=message)
        try:
            if (checkpoint := self._unrecorded) is not None:
                self._persist(lambda session: self._assignment.record(session, checkpoint))
            left = self._persist(lambda session: self._assignment.give_back(session, cause, message, patience))
        except Fenced:
            self._log.warning("claim.fenced", next="nothing is left to give back")
            return
        reach(Failpoint.WORK_GIVEN_BACK)
        self._delete(left)

    def _persist(self, use: Callable[[Session], T], begin: Begin | None = None) -> T:
        """Use the database, as often as the lease allows while it is away. Raises Fenced."""
        pause = threading.Event()
        while True:
            try:
                with (begin or self._database.begin)() as session:
                    return use(session)
            except OperationalError as error:
                if self._lease.left < 0:
                    table = self._assignment.work.table.__tablename__
                    raise Fenced(table, self._assignment.id, self._assignment.attempt) from error
                self._log.warning("database.down", reason=str(error.orig), next="tried again in a second")
                pause.wait(1)


def _circumstances(settings: Settings) -> dict[str, Any]:
    """What a job needs to know of the machine it runs on."""
    return {
        "artefact_dir": str(settings.artefact_dir),
        "cache_dir": str(settings.scratch_dir / "cache"),
        "cache_bytes": int(settings.cache_gib * 2**30),
        "compile": settings.compile,
        "profile_dir": str(settings.profile_dir) if settings.profile_dir else None,
        "threads": settings.threads,
    }
