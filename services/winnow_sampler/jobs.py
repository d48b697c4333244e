"""Selections as jobs: the same request is computed once, kept in the artefact store, and can be cancelled."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.artefacts import ArtefactStore, digest_of, get_array, get_json, put_json
from winnow.errors import InvalidInput, NotFound, WinnowError
from winnow.problems import TooLarge
from winnow.selection import select
from winnow.telemetry import logger
from winnow_sampler.schemas import ArrayRef, SelectionRequest, SelectionView

WORKERS = 2
REMEMBERED = 1000  # ended jobs kept in memory; results are in the store
ARRAYS = ("pool", "centers", "probabilities")
Array = NDArray[Any]
_log = logger("sampler.jobs")


@dataclass
class Job:
    """One selection: what is asked, and how far it is."""

    id: str
    request: SelectionRequest
    arrays: dict[str, Array]
    status: str = "queued"
    progress: dict[str, int] = field(default_factory=lambda: {"done": 0, "total": 0})
    result: dict[str, Any] | None = None
    error: WinnowError | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def view(self) -> SelectionView:
        """The job as the API shows it. Raises what made it fail."""
        if self.error is not None:
            raise self.error
        if self.result is not None:
            return SelectionView.model_validate(self.result)
        return SelectionView.model_validate({"id": self.id, "status": self.status, "progress": self.progress})


class Jobs:
    """All selections of this process. `on_computed` hears the strategy and the seconds of each that was computed."""

    def __init__(
        self, store: ArtefactStore, inline_limit: int, *, on_computed: Callable[[str, float], None] | None = None
    ) -> None:
        self._store = store
        self._inline_limit = inline_limit
        self._on_computed = on_computed
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="selection")

    def close(self) -> None:
        """Stop what runs and wait for it."""
        with self._lock:
            for job in self._jobs.values():
                job.cancelled.set()
        self._pool.shutdown(cancel_futures=True)

    def submit(self, request: SelectionRequest, *, wait: float) -> SelectionView:
        """The selection, waited for `wait` seconds at most.

        Raises InvalidInput for arrays that cannot be used, TooLarge, NotFound, ArtefactCorrupt.
        """
        arrays, digests = self._load(request)
        id = _identify(request, digests)
        if (stored := self._stored(id)) is not None:
            return stored
        job = self._join(id, request, arrays)
        job.ended.wait(wait)
        return job.view()

    def get(self, id: str) -> SelectionView:
        """A selection by id. Raises NotFound, and what made it fail."""
        with self._lock:
            job = self._jobs.get(id)
        if job is not None:
            return job.view()
        if (stored := self._stored(id)) is not None:
            return stored
        raise NotFound("selection", id)

    def cancel(self, id: str) -> SelectionView:
        """Stop a selection under way; one that is done stays. Raises NotFound."""
        with self._lock:
            job = self._jobs.get(id)
        if job is None:
            return self.get(id)
        job.cancelled.set()
        job.ended.wait(10)
        return job.view()

    @property
    def running(self) -> int:
        """Selections that have not ended."""
        with self._lock:
            return sum(not job.ended.is_set() for job in self._jobs.values())

    def _join(self, id: str, request: SelectionRequest, arrays: dict[str, Array]) -> Job:
        """The job that computes this selection: the one under way, or a new one."""
        with self._lock:
            job = self._jobs.get(id)
            if job is None or job.error is not None or job.cancelled.is_set():
                job = self._jobs[id] = Job(id, request, arrays)
                self._forget_old()
                self._pool.submit(self._run, job)
            return job

    def _forget_old(self) -> None:
        ended = [id for id, job in self._jobs.items() if job.ended.is_set()]
        for id in ended[: max(0, len(self._jobs) - REMEMBERED)]:
            del self._jobs[id]

    def _run(self, job: Job) -> None:
        try:
            job.status = "running"
            if job.cancelled.is_set():
                job.status = "cancelled"
                return
            self._compute(job)
        except ValueError as error:
            name, _, reason = str(error).partition(": ")
            job.error = InvalidInput(name, reason) if reason else InvalidInput("request", name)
        except OSError as error:
            job.error = WinnowError(f"the result could not be stored: {error}")
        except Exception as error:  # the caller must hear of it
            _log.error("selection.failed", id=job.id, exc_info=error)
            job.error = WinnowError(f"{type(error).__name__}: {error}")
        finally:
            job.arrays = {}
            job.ended.set()

    def _compute(self, job: Job) -> None:
        request, began = job.request, time.perf_counter()

        def advance(done: int, total: int) -> None:
            job.progress = {"done": done, "total": total}

        picked = select(
            request.strategy,
            budget=request.budget,
            n=request.size,
            seed=request.seed,
            direction=request.direction,
            on_progress=advance,
            should_stop=job.cancelled.is_set,
            **{name: job.arrays.get(name) for name in ARRAYS},
        )
        if job.cancelled.is_set():
            job.status = "cancelled"
            return
        seconds = time.perf_counter() - began
        if self._on_computed is not None:
            self._on_computed(request.strategy, seconds)
        result = SelectionView(
            id=job.id,
            status="done",
            indices=picked.indices.tolist(),
            scores=[float(score) for score in picked.scores],
            radius=picked.radius,
            seconds=seconds,
            notes=_notes(request, picked.scores),
        ).as_json()
        put_json(self._store, _key(job.id), result)
        job.result, job.status = result, "done"
        _log.info("selection.done", id=job.id, strategy=request.strategy, picks=len(picked.indices))

    def _stored(self, id: str) -> SelectionView | None:
        try:
            return SelectionView.model_validate(get_json(self._store, _key(id)))
        except NotFound:
            return None

    def _load(self, request: SelectionRequest) -> tuple[dict[str, Array], dict[str, str]]:
        arrays: dict[str, Array] = {}
        digests: dict[str, str] = {}
        for name in ARRAYS:
            reference: ArrayRef | None = getattr(request, name)
            if reference is not None:
                arrays[name], digests[name] = self._resolve(name, reference)
        return arrays, digests

    def _resolve(self, name: str, reference: ArrayRef) -> tuple[Array, str]:
        if reference.key is not None:
            array = get_array(self._store, reference.key, sha256=reference.sha256)
            return array, reference.sha256 or digest_of(self._store.local(reference.key))
        numbers = sum(len(row) for row in reference.inline or [])
        if numbers > self._inline_limit:
            reason = f"{numbers} inline numbers; the limit is {self._inline_limit}. Store the array and send its key"
            raise TooLarge(name, reason)
        array = reference.inline_array()
        return array, hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()


def _identify(request: SelectionRequest, digests: dict[str, str]) -> str:
    """sha256 of everything that the answer depends on."""
    asked = {name: value for name, value in request.model_dump().items() if name not in ARRAYS}
    return hashlib.sha256(json.dumps(asked | digests, sort_keys=True).encode()).hexdigest()


def _key(id: str) -> str:
    if not id.isalnum():
        raise NotFound("selection", id)
    return f"selections/{id}.json"


def _notes(request: SelectionRequest, scores: NDArray[np.float32]) -> list[str]:
    if request.strategy == "k_center" and len(scores) and scores[-1] == 0:
        return [f"{int((scores == 0).sum())} picks coincide with an earlier pick or a centre (distance 0)"]
    return []
