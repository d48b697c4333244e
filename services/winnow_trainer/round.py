"""One round inside its training process: what the job asks for, what was made so far, and where it is stored."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from winnow import __version__
from winnow.artefacts import DirectoryStore, put_array
from winnow.domain import ExperimentSpec
from winnow.simclr import TrainingStopped, embed
from winnow_trainer.protocol import Line, Message, describe
from winnow_trainer.warm import Warm

Array = NDArray[Any]
PHASES = ("load", "train", "checkpoint", "embed", "proxy", "evaluate")
REST = "rest"  # the negative class when the task is one class against all others


class Round:
    """One round in its child process: what the job asked for, and what was made so far."""

    def __init__(self, job: dict[str, Any], line: Line, warm: Warm) -> None:
        self.job, self.line = job, line
        self.spec = ExperimentSpec.model_validate(job["spec"])
        self.store = DirectoryStore(Path(job["artefact_dir"]))
        self.images = warm.images(job, line.should_stop)
        self.rig = warm.rig(job)
        self.notes = list(warm.notes)
        self.scratch = Path(job["scratch"])
        self.artefacts: list[Message] = []
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)

    def array(self, name: str) -> Array:
        """One of the arrays that came with the job."""
        return np.load(self.scratch / f"{name}.npy", allow_pickle=False)

    @property
    def classes(self) -> list[str]:
        if self.spec.proxy.task == "positive":
            return [REST, str(self.spec.positive_class)]
        return self.job["classes"]

    def targets(self, role: str) -> NDArray[np.int64]:
        """(n,) class numbers of `labelled`, `fitted` or `evaluated`, in the terms of `classes`."""
        labels = self.array(f"{role}_labels")
        if self.spec.proxy.task == "classes":
            return labels
        return (labels == self.job["classes"].index(self.spec.positive_class)).astype(np.int64)

    def go_on(self) -> None:
        """Between two steps that cannot be interrupted. Raises TrainingStopped when the supervisor said stop."""
        if self.line.should_stop():
            raise TrainingStopped(self.scratch)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of a phase and say that it began, unless it is time to stop. Raises TrainingStopped."""
        self.go_on()
        began = time.perf_counter()
        self.line.tell("progress", phase=name)
        yield
        self.seconds[name] += time.perf_counter() - began

    def keep_file(self, kind: str, path: Path) -> None:
        key = key_of(self.job["prefix"], kind, path.suffix)
        self.artefacts.append(put_file(self.store, key, kind, path))

    def keep_array(self, kind: str, array: Array) -> None:
        stored = put_array(self.store, key_of(self.job["prefix"], kind, ".npy"), array)
        shape = {"shape": list(array.shape), "dtype": str(array.dtype)}
        self.artefacts.append(describe(stored, kind, **shape, **versions()))

    def embed(self, indices: NDArray[np.int64], encoder: torch.nn.Module) -> NDArray[np.float32]:
        """h of some samples, telling how far it is."""
        return embed(
            encoder,
            self.images,
            indices,
            rig=self.rig,
            precision=self.spec.simclr.precision,
            on_progress=lambda done, total: self.line.progress(phase="embed", step=done, steps=total),
            should_stop=self.line.should_stop,
        )


def put_file(store: DirectoryStore, key: str, kind: str, path: Path) -> Message:
    """Store a file, and describe it as one of this kind."""
    return describe(store.put(key, path), kind, **versions())


def key_of(prefix: str, kind: str, suffix: str) -> str:
    """The artefact key of a kind in an attempt's prefix."""
    return f"{prefix}/{kind.replace('/', '-')}{suffix}"


def versions() -> dict[str, str]:
    """What made an artefact."""
    return {"winnow": __version__, "torch": torch.__version__, "numpy": np.__version__}
