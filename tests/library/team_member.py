"""One process of a team, started by torch's launcher (`train`): trains a round and writes what came out of it.

python -m torch.distributed.run --nproc-per-node 2 team_member.py OUT DEVICE CHANGES; alone without the launcher.
CHANGES are of the spec, as JSON.

The network computes in float64. In float32 another order of summation already moves some activations across ReLU's
edge, and Adam, whose first step is the gradient's sign, makes whole steps of that: a wrong gradient would hide there.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from library.arrays import tissue
from torch import nn

from winnow.domain import ExperimentSpec
from winnow.selection import k_center_greedy
from winnow.simclr import Rig, Team, embed, load_encoder, train_round

COUNT, SIZE = 83, 32
SPEC = ExperimentSpec.model_validate(
    {
        "name": "t",
        "dataset": "t",
        "positive_class": "TUM",
        "encoder": {"head_batch_norm": True},
        "simclr": {"epochs": 5, "batch_size": 20, "learning_rate": 1e-4, "checkpoint_every": 5},
    }
)


class Exact(Team):
    """A team whose network is float64 throughout."""

    def wrap(self, network: nn.Module) -> nn.Module:
        network.double().register_forward_pre_hook(lambda module, given: (given[0].double(),))
        return super().wrap(network)


def train(out: Path, *, processes: int, device: str = "cpu", **changes: Any) -> dict[str, Any]:
    """Have so many processes train together; what their leader found."""
    out.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    member = [__file__, str(out), device, json.dumps(changes)]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    started = subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), *member],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = started.communicate(timeout=300)
    except BaseException:
        os.killpg(started.pid, signal.SIGKILL)  # the launcher alone would leave its members behind
        raise
    assert started.returncode == 0, said[-3000:]
    return json.loads((out / "found.json").read_text())


def merged(spec: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    deeper = {name: merged(spec[name], value) for name, value in changes.items() if isinstance(value, dict)}
    return spec | changes | deeper


def main(out: Path, device: str, changes: str) -> None:
    torch.set_num_threads(1)
    team = Exact.join(device)
    images = tissue(COUNT, SIZE)[0]
    losses: list[float | None] = []
    spec = ExperimentSpec.model_validate(merged(SPEC.model_dump(mode="json"), json.loads(changes)))
    trained = train_round(
        images,
        np.arange(COUNT - 20, dtype=np.int64),
        spec=spec,
        number=0,
        workspace=out / "work",
        start=None,
        rig=Rig(device, team=team),
        on_progress=lambda progress: losses.append(progress.loss),
    )
    if team.leads:
        encoder = load_encoder(spec.encoder, trained.state, "cpu")
        features = embed(encoder, images, np.arange(COUNT, dtype=np.int64))
        picks = k_center_greedy(features[-20:], 8, centers=features[:-20])
        found = {"losses": losses, "visits": trained.visits, "picks": picks.indices.tolist()}
        (out / "found.json").write_text(json.dumps(found | {"size": team.size, "notes": trained.notes}))
    team.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
