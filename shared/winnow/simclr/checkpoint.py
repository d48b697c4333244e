"""What a round can go on from: weights and Adam's moments as safetensors, counters as JSON. No pickle.

A state is a directory. It is written under a temporary name beside its own, fsynced and renamed, so that a reader
sees all of it or none of it. It is replaced and removed under a hidden name too: what has a name is whole.
"""

import json
import os
import secrets
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from winnow.failpoints import Failpoint, reach

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
COUNTERS = "state.json"
FILES = (WEIGHTS, OPTIMIZER, COUNTERS)


@dataclass
class Counters:
    """Where training stands: the round, the next epoch and step, image visits of the round, mean loss by epoch,
    seconds by phase over all attempts.

    `loss_sum` and `loss_images` belong to the epoch under way.
    """

    round: int
    epoch: int = 0
    step: int = 0
    visits: int = 0
    loss_sum: float = 0.0
    loss_images: int = 0
    losses: list[float] = field(default_factory=list[float])
    seconds: dict[str, float] = field(default_factory=lambda: {"load": 0.0, "train": 0.0, "checkpoint": 0.0})


def save(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, counters: Counters) -> Path:
    """Write a state to `directory`, replacing one of that name. Raises OSError; nothing half-written remains."""
    temporary = _hidden(directory)
    temporary.mkdir(parents=True)
    replaced = _hidden(directory)
    try:
        save_file(_contiguous(model.state_dict()), temporary / WEIGHTS)
        save_file(_contiguous(_moments(optimizer)), temporary / OPTIMIZER)
        (temporary / COUNTERS).write_text(json.dumps(asdict(counters), sort_keys=True))
        reach(Failpoint.CHECKPOINT_WRITTEN)
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        reach(Failpoint.CHECKPOINT_SYNCED)
        if directory.exists():
            directory.replace(replaced)
        temporary.replace(directory)
    except BaseException:
        if replaced.exists() and not directory.exists():
            replaced.replace(directory)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(directory.parent)
    reach(Failpoint.CHECKPOINT_RENAMED)
    shutil.rmtree(replaced, ignore_errors=True)  # the new state stands, whatever becomes of the old one
    return directory


def remove(directory: Path) -> None:
    """Remove a state; a kill in between leaves nothing that looks like one. Raises OSError."""
    hidden = _hidden(directory)
    directory.replace(hidden)
    shutil.rmtree(hidden)


def load_weights(model: nn.Module, directory: Path) -> None:
    """Fill `model` with the weights and BatchNorm buffers saved in `directory`."""
    model.load_state_dict(load_file(directory / WEIGHTS))


def load_optimizer(optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """Fill `optimizer` with the moments saved in `directory`; its learning rate and betas stay as they are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in load_file(directory / OPTIMIZER).items():
        number, _, part = name.partition(".")
        moments.setdefault(int(number), {})[part] = _laid_out_as(value, parameters[int(number)])
    state: dict[str, Any] = {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]}
    optimizer.load_state_dict(state)


def _laid_out_as(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` with the strides of its weight: fused optimisers walk through both as they lie in memory."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device="cpu").copy_(value)


def load_counters(directory: Path) -> Counters:
    """The counters saved in `directory`."""
    counters = Counters(**json.loads((directory / COUNTERS).read_text()))
    counters.seconds = Counters(counters.round).seconds | counters.seconds
    return counters


def newest(workspace: Path, round: int) -> Path | None:
    """The furthest whole checkpoint of `round` in a workspace, or None."""
    whole = [path for path in workspace.glob("checkpoint-*") if all((path / name).is_file() for name in FILES)]
    found = [path for path in whole if load_counters(path).round == round]
    return max(found, key=lambda path: path.name, default=None)


def name_of(counters: Counters) -> str:
    """A directory name that sorts by progress."""
    return f"checkpoint-{counters.epoch:06d}-{counters.step:08d}"


def _hidden(directory: Path) -> Path:
    """A name beside `directory` that no reader looks for."""
    return directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{number}.{part}": value for number, parts in state.items() for part, value in parts.items()}


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
