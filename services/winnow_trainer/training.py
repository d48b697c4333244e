"""The training of a round in its process, alone or in a team (the paper's Algorithm 2, line 5), and its result."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from winnow.datasets import PackedImages
from winnow.domain import ExperimentSpec
from winnow.failpoints import Failpoint, reach
from winnow.simclr import PROFILED_STEPS, Limits, Progress, Rig, TrainedRound, TrainingStopped, train_round
from winnow.simclr.checkpoint import COUNTERS, OPTIMIZER, WEIGHTS
from winnow_trainer.evaluation import evaluate
from winnow_trainer.protocol import Line, Message
from winnow_trainer.round import Round, key_of, put_file
from winnow_trainer.warm import Warm

JOB, START, WORK = "job.json", "start", "work"
"""In an attempt's scratch directory: what is asked for, the state to start from, the checkpoints of this round."""
KINDS = {"weights": WEIGHTS, "optimizer": OPTIMIZER, "counters": COUNTERS}


def train_and_store(job: dict[str, Any], line: Line, warm: Warm) -> dict[str, Any]:
    """The whole round; its result. Raises what the library raises."""
    round = Round(job, line, warm)
    trained = _train(round)
    reach(Failpoint.TRAINING_ENDED)
    with ThreadPoolExecutor(1, thread_name_prefix="state") as aside:
        sent = aside.submit(_send, round, trained.state)  # whatever ends the evaluation, the training is not done again
        scores, report = evaluate(round, trained)
        made = sent.result()
    reach(Failpoint.ROUND_EVALUATED)
    round.artefacts += [part | {"kind": f"state/{name}"} for name, part in zip(KINDS, made, strict=True)]
    return {
        "visits": job["visits_before"] + trained.visits,
        "seconds": round.seconds,
        "metrics": scores,
        "report": report,
        "artefacts": round.artefacts,
    }


def _train(round: Round) -> TrainedRound:
    line, workspace, trace = round.line, _workspace(round), _trace(round)
    _restore(round, "start", round.scratch / START)
    round.rig.team.say(str(round.scratch / JOB))
    trained = train_round(
        **_terms(round.job, round.spec, round.images, round.rig),
        workspace=workspace,
        profile=trace,
        on_progress=lambda progress: _tell(line, progress),
        on_checkpoint=lambda directory: _send(round, directory),
        should_stop=line.should_stop,
    )
    round.seconds |= trained.seconds
    if trace is not None:
        few = f"no profiler trace: it takes {PROFILED_STEPS} steps, and there were fewer"
        round.notes.append(f"profiler trace: {trace}" if trace.exists() else few)
    return trained


def _trace(round: Round) -> Path | None:
    """Where this attempt leaves a profiler trace, on a worker that was asked for them."""
    if round.job["profile_dir"] is None:
        return None
    directory = Path(round.job["profile_dir"])
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        round.notes.append(f"no profiler trace: {error}")
        return None
    if not os.access(directory, os.W_OK):
        round.notes.append(f"no profiler trace: {directory} cannot be written to")
        return None
    return directory / f"{round.job['prefix'].replace('/', '-')}.json.gz"


def train_along(job: dict[str, Any], warm: Warm) -> None:
    """What the other processes of a team do of a round: train. The leader has laid out everything."""
    spec = ExperimentSpec.model_validate(job["spec"])
    images = warm.images(job)
    with suppress(TrainingStopped):
        train_round(**_terms(job, spec, images, warm.rig(job)), workspace=Path(job["scratch"]) / WORK)


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
        "visits_before": job["visits_before"],
        "limits": Limits(**job["limits"]) if "limits" in job else None,
    }


def _workspace(round: Round) -> Path:
    """The directory of this attempt's checkpoints, with the newest stored one of an earlier attempt in it.

    One that is there is of a team that began anew: what it left is newer.
    """
    workspace = round.scratch / WORK
    if not workspace.exists():
        workspace.mkdir()
        _restore(round, "checkpoint", workspace / "checkpoint-restored")
    return workspace


def _restore(round: Round, which: str, directory: Path) -> None:
    keys: dict[str, str] | None = round.job[which]
    if keys is None or directory.exists():
        return
    directory.mkdir()
    for name, file in KINDS.items():
        (directory / file).symlink_to(round.store.local(keys[name]))


def _send(round: Round, directory: Path) -> list[Message]:
    """Store a checkpoint, so that another machine can go on from it, and say so; its parts in the order of KINDS."""
    made: list[Message] = []
    for name, file in KINDS.items():
        path = directory / file
        key = key_of(round.job["prefix"], f"{directory.name}/{name}", path.suffix)
        made.append(put_file(round.store, key, f"checkpoint/{name}", path))
    reach(Failpoint.CHECKPOINT_STORED)
    round.line.tell("checkpoint", artefacts=made)
    return made


def _tell(line: Line, progress: Progress) -> None:
    line.progress(**{name: value for name, value in vars(progress).items() if value is not None})
