"""Jobs as tests run them: work that goes on until it is let go, and results that are read."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.sampler.conftest import Json

from winnow_sampler import jobs
from winnow_sampler.jobs import Answer, Job


def read(answer: Answer) -> Json:
    return json.loads(answer.read_text()) if isinstance(answer, Path) else answer


class Jobs(jobs.Jobs):
    """Jobs whose results are read."""

    def submit(self, *args: Any, **more: Any) -> Json:
        return read(super().submit(*args, **more))

    def get(self, kind: str, id: str) -> Json:
        return read(super().get(kind, id))

    def cancel(self, kind: str, id: str) -> Json:
        return read(super().cancel(kind, id))


class Held:
    """Work that goes on until it is let go, with one pick more, or cancelled."""

    def __init__(self, picks: Sequence[int] = (1, 2)) -> None:
        self.let_go, self._picks = threading.Event(), list(picks)

    def __call__(self, job: Job) -> Json:
        while not self.let_go.wait(0.01):
            if job.cancelled.is_set():
                return {"id": job.id, "status": "cancelled", "indices": self._picks}
        return {"id": job.id, "status": "done", "indices": [*self._picks, 3]}
