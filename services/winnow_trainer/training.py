"""The child's side of a round: train, embed, fit the proxy, evaluate, store (the paper's Algorithm 2, lines 5 to 8)."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from winnow import __version__, metrics
from winnow.artefacts import DirectoryStore, put_array
from winnow.datasets import PackedImages
from winnow.domain import Arm, ExperimentSpec, derive_seed
from winnow.simclr import (
    Progress,
    Proxy,
    Rig,
    TrainedRound,
    TrainingStopped,
    embed,
    fit_proxy,
    floors,
    load_encoder,
    train_round,
)
from winnow.simclr.checkpoint import COUNTERS, OPTIMIZER, WEIGHTS
from winnow_trainer.protocol import Line, Message, describe
from winnow_trainer.warm import Warm

Array = NDArray[Any]
JOB, START, WORK = "job.json", "start", "work"
"""In an attempt's scratch directory: what is asked for, the state to start from, the checkpoints of this round."""
REST = "rest"  # the negative class when the task is one class against all others
FITTED = {
    "labelled": "the same labels fit the picking proxy and the evaluated one",
    "validation": "the evaluated proxy is fitted on the validation labels, the picking one on the labelled",
}
KINDS = {"weights": WEIGHTS, "optimizer": OPTIMIZER, "counters": COUNTERS}


class Round:
    """One round in its child process: what the job asked for, and what was made so far."""

    def __init__(self, job: dict[str, Any], line: Line, warm: Warm) -> None:
        self.job, self.line = job, line
        self.spec = ExperimentSpec.model_validate(job["spec"])
        self.store = DirectoryStore(Path(job["artefact_dir"]))
        self.images = warm.images(self.store, job["location"])
        self.rig = warm.rig(job["device"], job["compile"])
        self.scratch = Path(job["scratch"])
        self.images.verify_once(self.scratch.parent / "verified", line.should_stop)
        self.artefacts: list[Message] = []
        self.seconds: dict[str, float] = {"load": 0.0, "train": 0.0, "embed": 0.0, "proxy": 0.0, "evaluate": 0.0}
        if job["threads"]:
            torch.set_num_threads(job["threads"])

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
        self.artefacts.append(put_file(self.store, self.job["prefix"], kind, path))

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


def train_and_store(job: dict[str, Any], line: Line, warm: Warm) -> dict[str, Any]:
    """The whole round; its result. Raises what the library raises."""
    round = Round(job, line, warm)
    trained = _train(round)
    _send(round, trained.state)  # whatever ends the phases below, the training is not done again
    for name, file in KINDS.items():
        round.keep_file(f"state/{name}", trained.state / file)
    encoder = load_encoder(round.spec.encoder, trained.state, round.rig.device)
    with round.phase("embed"):
        labelled = round.embed(round.array("labelled"), encoder)
        evaluated = round.embed(round.array("evaluated"), encoder)
        candidates = _embed_candidates(round, encoder)
    with round.phase("proxy"):
        proxy, curve = _fit(round, labelled, evaluated)
    if round.spec.fit_evaluator_on == "labelled":
        evaluator = proxy
    else:
        evaluator, curve = _fit_evaluator(round, encoder, evaluated)
    with round.phase("evaluate"):
        probabilities = evaluator.probabilities(evaluated)
        scores = _score(round, probabilities)
    _keep_features(round, proxy, labelled, probabilities)
    if candidates is not None:
        round.keep_array("candidates/probabilities", proxy.probabilities(candidates))
    return {
        "visits": job["visits_before"] + trained.visits,
        "seconds": round.seconds,
        "metrics": scores,
        "report": _report(round, trained, curve),
        "artefacts": round.artefacts,
    }


def _train(round: Round) -> TrainedRound:
    line, workspace = round.line, _workspace(round)
    _restore(round, "start", round.scratch / START)
    round.rig.team.say(str(round.scratch / JOB))
    trained = train_round(
        **_terms(round.job, round.spec, round.images, round.rig),
        workspace=workspace,
        on_progress=lambda progress: _tell(line, progress),
        on_checkpoint=lambda directory: _send(round, directory),
        should_stop=line.should_stop,
    )
    round.seconds |= trained.seconds
    return trained


def train_along(job: dict[str, Any], warm: Warm) -> None:
    """What the other processes of a team do of a round: train. The leader has laid out everything."""
    spec = ExperimentSpec.model_validate(job["spec"])
    images = warm.images(DirectoryStore(Path(job["artefact_dir"])), job["location"])
    with suppress(TrainingStopped):
        train_round(
            **_terms(job, spec, images, warm.rig(job["device"], job["compile"])), workspace=Path(job["scratch"]) / WORK
        )


def _terms(job: dict[str, Any], spec: ExperimentSpec, images: PackedImages, rig: Rig) -> dict[str, Any]:
    """What every process of a round's team trains by."""
    scratch = Path(job["scratch"])
    return {
        "images": images,
        "indices": np.load(scratch / "selected.npy", allow_pickle=False),
        "spec": spec,
        "number": job["number"],
        "start": scratch / START if job["start"] else None,
        "rig": rig,
        "epochs": spec.epochs_of(job["number"]),
        "max_visits": None if spec.visits is None else max(spec.visits - job["visits_before"], 0),
    }


def _workspace(round: Round) -> Path:
    """The directory of this attempt's checkpoints, with the newest stored one of an earlier attempt in it."""
    workspace = round.scratch / WORK
    workspace.mkdir()
    _restore(round, "checkpoint", workspace / "checkpoint-restored")
    return workspace


def _restore(round: Round, which: str, directory: Path) -> Path | None:
    keys: dict[str, str] | None = round.job[which]
    if keys is None:
        return None
    directory.mkdir()
    for name, file in KINDS.items():
        shutil.copyfile(round.store.local(keys[name]), directory / file)
    return directory


def _send(round: Round, directory: Path) -> None:
    """Store a checkpoint, so that another machine can go on from it, and say so."""
    prefix = f"{round.job['prefix']}/{directory.name}"
    made = [put_file(round.store, prefix, f"checkpoint/{name}", directory / file) for name, file in KINDS.items()]
    round.line.tell("checkpoint", artefacts=made)


def _tell(line: Line, progress: Progress) -> None:
    line.progress(**{name: value for name, value in vars(progress).items() if value is not None})


def _embed_candidates(round: Round, encoder: torch.nn.Module) -> NDArray[np.float32] | None:
    """Store what the next batch is picked from. Arms that do not look at features do not pay for them."""
    index = round.array("candidates")
    if not round.job["picks"]:
        return None
    round.keep_array("candidates/index", index)
    if round.spec.arm is Arm.RANDOM:
        return None
    candidates = round.embed(index, encoder)
    round.keep_array("candidates/embeddings", candidates)
    if round.spec.arm is Arm.K_CENTER:
        selected = round.array("selected")
        round.keep_array("selected/index", selected)
        round.keep_array("selected/embeddings", round.embed(selected, encoder))
    return candidates


def _fit_evaluator(
    round: Round, encoder: torch.nn.Module, evaluated: NDArray[np.float32]
) -> tuple[Proxy, list[dict[str, Any]]]:
    """A proxy of its own for the metrics, fitted on labels that the picks never saw."""
    with round.phase("embed"):
        features = round.embed(round.array("fitted"), encoder)
    with round.phase("proxy"):
        evaluator, curve = _fit(round, features, evaluated, role="fitted")
    round.keep_array("fitted/index", round.array("fitted"))
    round.keep_array("fitted/embeddings", features)
    evaluator.save(round.scratch / "evaluator.safetensors")
    round.keep_file("evaluator", round.scratch / "evaluator.safetensors")
    return evaluator, curve


def _fit(
    round: Round, features: NDArray[np.float32], evaluated: NDArray[np.float32], role: str = "labelled"
) -> tuple[Proxy, list[dict[str, Any]]]:
    """The proxy; for the full arm also its scores along the way, as the paper's benchmark reports them."""
    spec, curve = round.spec, list[dict[str, Any]]()
    full = spec.arm is Arm.FULL

    def look(epoch: int, proxy: Proxy) -> None:
        round.go_on()
        if full and epoch % spec.proxy.full_evaluate_every == 0:
            scores = _score(round, proxy.probabilities(evaluated))
            curve.append({"epoch": epoch, "f1": scores["f1"], "macro_f1": scores["macro_f1"]})

    proxy = fit_proxy(
        features,
        round.targets(role),
        classes=len(round.classes),
        spec=spec.proxy,
        seed=derive_seed(spec.seed, "proxy", round.job["number"]),
        epochs=spec.proxy_epochs,
        on_epoch=look,
    )
    return proxy, curve


def _score(round: Round, probabilities: NDArray[np.float32]) -> dict[str, Any]:
    targets = round.targets("evaluated")
    return metrics.score(probabilities, targets, classes=round.classes, positive=round.spec.positive_class)


def _keep_features(
    round: Round, proxy: Proxy, labelled: NDArray[np.float32], probabilities: NDArray[np.float32]
) -> None:
    round.keep_array("labelled/index", round.array("labelled"))
    round.keep_array("labelled/embeddings", labelled)
    round.keep_array("evaluated/index", round.array("evaluated"))
    round.keep_array("evaluated/probabilities", probabilities)
    proxy.save(round.scratch / "proxy.safetensors")
    round.keep_file("proxy", round.scratch / "proxy.safetensors")


def _report(round: Round, trained: TrainedRound, curve: list[dict[str, Any]]) -> dict[str, Any]:
    report: dict[str, Any] = {
        "losses": trained.losses,
        "images_per_second": _rounded(trained.images_per_second),
        "waiting_share": _rounded(trained.waiting_share),
        "labelled": len(round.array("labelled")),
        "evaluated": len(round.array("evaluated")),
        "candidates": len(round.array("candidates")),
        "fitted": len(round.array("fitted")),
        "device": round.rig.device,
        "notes": [*trained.notes, FITTED[round.spec.fit_evaluator_on]],
    }
    if curve:
        report["proxy_curve"] = curve
    if round.spec.floors and round.job["number"] == 0:
        report["floors"] = _floors(round)
    return report


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _floors(round: Round) -> dict[str, Any]:
    round.go_on()
    fitted, evaluated = round.array("fitted"), round.array("evaluated")
    targets, count, spec = round.targets("fitted"), len(round.classes), round.spec
    colour = floors.colour_histogram_floor(
        round.images, fitted, targets, evaluated, classes=count, seed=derive_seed(spec.seed, "floor")
    )
    round.go_on()
    untrained = floors.untrained_floor(
        round.images, fitted, targets, evaluated, classes=count, spec=spec, rig=round.rig
    )
    return {"colour_histogram": _score(round, colour), "untrained_encoder": _score(round, untrained)}


def put_file(store: DirectoryStore, prefix: str, kind: str, path: Path) -> Message:
    """Store a file under the key of its kind."""
    return describe(store.put(key_of(prefix, kind, path.suffix), path), kind, **versions())


def key_of(prefix: str, kind: str, suffix: str) -> str:
    """The artefact key of a kind in an attempt's prefix."""
    return f"{prefix}/{kind.replace('/', '-')}{suffix}"


def versions() -> dict[str, str]:
    """What made an artefact."""
    return {"winnow": __version__, "torch": torch.__version__, "numpy": np.__version__}
