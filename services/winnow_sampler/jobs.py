"""Work as jobs: the same request is computed once, kept in the artefact store, waits for memory, and can be cancelled.

A cancelled job keeps what it had: the first picks of k-center are the answer to a smaller budget. They are kept apart,
so that the same request, sent again, is computed to its end.

An answer lies in the store and not in memory, which counts what jobs under way take alone: a job that has ended is its
id and what became of it, and whoever asks is given the file.

The id of a job is the digest of its request and arrays. Where a file must be read for that, the job begins under an id
of the file's state instead, and is known by both once it has the digest.
"""

import json
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from winnow.artefacts import ArtefactStore, get_json
from winnow.errors import ArtefactCorrupt, InvalidInput, NotFound, Unavailable, WinnowError
from winnow.failpoints import Failpoint, reach
from winnow.telemetry import logger
from winnow_sampler.digests import Stopped
from winnow_sampler.memory import DoesNotFit

WORKERS = 2
MOST_WAITING = 100
"""Jobs in the queue: each holds its request."""
LOOK_SECONDS = 0.5
_ENDS = (b"}\n", b"\n}")
"""Of a result as it is written now, and as it was once: nothing else in either ends so."""
_ID = re.compile("[A-Za-z0-9]{1,64}")
REMEMBERED = 1000  # ended jobs: ids, and what made them fail
Json = dict[str, Any]
_log = logger("sampler.jobs")


@dataclass(eq=False)
class Job:
    """One piece of work: how much memory it takes, and how far it is. `kind` names the results' folder."""

    kind: str
    id: str
    need: int
    work: "Work | None"
    identify: "Identify | None" = None
    holds: frozenset[str] = frozenset()
    status: str = "queued"
    place: int = 0
    progress: dict[str, int] = field(default_factory=lambda: {"done": 0, "total": 0})
    error: WinnowError | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def document(self) -> Json:
        """How far the job is, as the API shows it."""
        found: Json = {"id": self.id, "status": self.status, "progress": self.progress, "need_bytes": self.need}
        return found | ({"place": self.place} if self.place else {})

    def advance(self, done: int, total: int) -> None:
        self.progress = {"done": done, "total": total}

    def end(self) -> None:
        """Let go of what it worked on, and of those who wait for it."""
        self.work = self.identify = None
        self.ended.set()


Work = Callable[[Job], Json]
"""Computes a job's result: a document with `status`, done or cancelled."""
Identify = Callable[[Job], str]
"""The id that a job's result is kept under. May take long, and raise Stopped once the job is cancelled."""
Answer = Json | Path
"""How far a job is, or the file that holds its result as JSON."""


class Jobs:
    """All jobs of this process. Those under way need no more than `memory` bytes together."""

    def __init__(self, store: ArtefactStore, memory: int) -> None:
        self._store = store
        self._memory = memory
        self._used = 0
        self._closing = False
        self._jobs: dict[tuple[str, str], Job] = {}
        self._waiting: list[Job] = []
        self._running: set[Job] = set()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="selection")

    def close(self) -> None:
        """Stop what runs and wait for it. Nothing of it is kept: nobody cancelled it."""
        with self._lock:
            self._closing = True
            for job in [*self._waiting, *self._running]:
                job.cancelled.set()
            self._waiting.clear()
        self._pool.shutdown(cancel_futures=True)

    def submit(
        self,
        kind: str,
        id: str,
        need: int,
        work: Work,
        *,
        wait: float,
        identify: Identify | None = None,
        holds: frozenset[str] = frozenset(),
    ) -> Answer:
        """The result, waited for `wait` seconds at most.

        Args:
            need: bytes of memory. identify: called first, where `id` only stands for the id or is not proven.
            holds: the uploads that it works on.

        Raises DoesNotFit, Unavailable while too many wait, and what made the job fail.
        """
        if (file := self._file_of(kind, id)) is not None:
            return file
        if need > self._memory:
            raise DoesNotFit(need, self._memory)
        job = self._join(Job(kind, id, need, work, identify, holds))
        job.ended.wait(wait)
        return self._document(job)

    def get(self, kind: str, id: str) -> Answer:
        """A job by id, or what is kept of it. Raises NotFound, and what made it fail."""
        with self._lock:
            job = self._jobs.get((kind, id))
        return self._kept(kind, id) if job is None else self._document(job)

    def cancel(self, kind: str, id: str) -> Answer:
        """Stop a job, and keep what it had; one that is done stays. Raises NotFound."""
        with self._lock:
            job = self._jobs.get((kind, id))
            same = [one for one in [*self._running, *self._waiting] if one is job or (one.kind, one.id) == (kind, id)]
            for one in same:
                one.cancelled.set()  # under the lock: whoever sends the request from now on begins it anew
            queued = [one for one in same if one in self._waiting]
            for one in queued:
                self._waiting.remove(one)
                one.status, one.place = "cancelled", 0
                one.end()
            self._start_what_fits()
        if job is None:
            return self._kept(kind, id)
        for one in queued:
            self._keep_nothing(one)
        job.ended.wait(10)
        return self._document(job)

    def held(self) -> set[str]:
        """The uploads that jobs which have not ended work on."""
        with self._lock:
            return {upload for job in [*self._running, *self._waiting] for upload in job.holds}

    @property
    def running(self) -> int:
        """Jobs that have not ended."""
        with self._lock:
            return len(self._running) + len(self._waiting)

    def _document(self, job: Job) -> Answer:
        """A job as the API shows it. Raises NotFound for an answer that was removed, and what made it fail."""
        if job.error is not None:
            raise _without_frames(job.error)
        if job.status in ("queued", "running"):  # another one may have left the answer meanwhile
            return self._file_of(job.kind, job.id) or job.document()
        try:
            return self._kept(job.kind, job.id)
        except NotFound:
            if job.status == "done":
                raise
            return job.document()  # cancelled before it had anything

    def _kept(self, kind: str, id: str) -> Path:
        """The answer with this id, or the picks that it had when it was cancelled. Raises NotFound."""
        kept = self._file_of(kind, id) or self._file_of(kind, id, prefix=True)
        if kept is None:
            raise NotFound(kind.removesuffix("s"), id)
        return kept

    def _join(self, new: Job) -> Job:
        """The job that computes this: the one under way, or the new one, which looks for the answer once more."""
        with self._lock:
            job = self._jobs.get((new.kind, new.id))
            if job is None or job.ended.is_set() or job.cancelled.is_set():
                if len(self._waiting) >= MOST_WAITING:
                    raise Unavailable(f"{MOST_WAITING} jobs wait; send the request again when some have ended")
                job = self._jobs[new.kind, new.id] = new
                self._forget_old()
                self._waiting.append(job)
                self._start_what_fits()
            return job

    def _start_what_fits(self) -> None:
        """Start waiting jobs in their order. A large one at the head is waited for, so that small ones never starve it.

        The lock is held.
        """
        while self._waiting and len(self._running) < WORKERS and self._used + self._waiting[0].need <= self._memory:
            job = self._waiting.pop(0)
            self._used += job.need
            self._running.add(job)
            job.place = 0
            self._pool.submit(self._run, job)
        for place, job in enumerate(self._waiting, start=1):
            job.place = place

    def _forget_old(self) -> None:
        ended = [key for key, job in self._jobs.items() if job.ended.is_set()]
        for key in ended[: max(0, len(self._jobs) - REMEMBERED)]:
            del self._jobs[key]

    def _run(self, job: Job) -> None:
        try:
            job.status = "running"
            reach(Failpoint.SELECTION_BEGUN)
            self._finish(job)
        except Stopped:
            job.status = "cancelled"
            self._keep_nothing(job)
        except WinnowError as error:
            job.error = _without_frames(error)
        except ValueError as error:
            job.error = InvalidInput.of(error)
        except MemoryError:
            job.error = WinnowError(f"out of memory, where {job.need} bytes were expected")
        except Exception as error:  # the caller must hear of it
            _log.error("job.failed", kind=job.kind, id=job.id, exc_info=error)
            job.error = WinnowError(f"{type(error).__name__}: {error}")
        finally:
            self._leave(job)
            job.end()

    def _finish(self, job: Job) -> None:
        """Compute the result, or find it."""
        assert job.work is not None
        if job.identify is not None:
            id = job.identify(job)
            while (other := self._rename(job, id)) is not None:
                other.ended.wait(LOOK_SECONDS)
                if job.cancelled.is_set():
                    raise Stopped
        if self._file_of(job.kind, job.id) is not None:
            job.status = "done"
        else:
            self._keep(job, job.work(job))

    def _rename(self, job: Job, id: str) -> Job | None:
        """Let the job be known by its digest, too. The job that computes the same, where it runs and is wanted."""
        with self._lock:
            job.id = id
            other = self._jobs.get((job.kind, id))
            if other in self._running and other is not job and not other.cancelled.is_set():
                return other
            self._jobs[job.kind, id] = job
            return None

    def _leave(self, job: Job) -> None:
        with self._lock:
            self._running.discard(job)
            self._used -= job.need
            if not self._closing:
                self._start_what_fits()

    def _keep(self, job: Job, result: Json) -> None:
        reach(Failpoint.ANSWER_COMPUTED)
        is_done = result["status"] == "done"
        if is_done or not self._closing:
            self._put(job, result, prefix=not is_done)
            reach(Failpoint.ANSWER_STORED)
        job.status = result["status"]
        _log.info(f"{job.kind.removesuffix('s')}.{result['status']}", id=job.id, seconds=result.get("seconds"))

    def _keep_nothing(self, job: Job) -> None:
        """What was cancelled before it had a pick is so after a restart, too, if there is room to note it. Not where
        another one goes on under its id.
        """
        with self._lock:
            is_last = self._jobs.get((job.kind, job.id)) is job and not self._closing
        try:
            if is_last:
                self._put(job, {"id": job.id, "status": "cancelled"}, prefix=True)
        except Unavailable as error:
            _log.warning("job.not_noted", kind=job.kind, id=job.id, reason=str(error))

    def _put(self, job: Job, result: Json, *, prefix: bool) -> None:
        """Store a result; but of two cancelled runs the picks of the one that had more are kept. Raises Unavailable."""
        key = _key(job.kind, job.id, prefix=prefix)
        try:
            if not prefix or self._extent_of(key) <= _extent(result):
                self._store.put(key, f"{json.dumps(result, sort_keys=True)}\n".encode())
        except OSError as error:
            reason = f"the answer could not be stored ({error.strerror}); send the request again once it can be"
            raise Unavailable(reason) from error

    def _extent_of(self, key: str) -> int:
        try:
            return _extent(get_json(self._store, key))
        except (NotFound, FileNotFoundError, ArtefactCorrupt):
            return 0

    def _file_of(self, kind: str, id: str, *, prefix: bool = False) -> Path | None:
        """The file of a result, if it is there and whole: one that is not is made again."""
        key = _key(kind, id, prefix=prefix)
        try:
            path = self._store.local(key)
            with path.open("rb") as file:
                file.seek(-2, os.SEEK_END)
                if file.read() in _ENDS:
                    return path
        except (NotFound, FileNotFoundError):
            return None
        except OSError as error:
            _log.warning("result.unreadable", key=key, reason=str(error))
            return None
        _log.warning("result.unreadable", key=key, reason="it is cut off")
        return None


def _without_frames(error: WinnowError) -> WinnowError:
    """The same error with no traceback, whose frames would keep the arrays and requests that it passed through."""
    found = type(error).__new__(type(error), *error.args)
    found.__dict__.update(error.__dict__)
    return found


def _extent(result: Json) -> int:
    """How far a cancelled job came: its picks, or the strategies that had ended."""
    return len(result.get("indices") or result.get("strategies") or ())


def _key(kind: str, id: str, *, prefix: bool = False) -> str:
    if not _ID.fullmatch(id):  # anything else is no name of a file, or too long for one
        raise NotFound(kind.removesuffix("s"), id)
    return f"cancelled/{kind}/{id}.json" if prefix else f"{kind}/{id}.json"
