"""One process of a team, started by torch's launcher: trains a round and writes what came out of it.

python -m torch.distributed.run --nproc-per-node 2 team_member.py OUT; alone without the launcher.

The network computes in float64. In float32 another order of summation already moves some activations across ReLU's
edge, and Adam, whose first step is the gradient's sign, makes whole steps of that: a wrong gradient would hide there.
"""

import json
import sys
from pathlib import Path

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


def main(out: Path) -> None:
    torch.set_num_threads(1)
    team = Exact.join("cpu")
    images = tissue(COUNT, SIZE)[0]
    losses: list[float | None] = []
    trained = train_round(
        images,
        np.arange(COUNT - 20, dtype=np.int64),
        spec=SPEC,
        number=0,
        workspace=out / "work",
        start=None,
        rig=Rig(team=team),
        on_progress=lambda progress: losses.append(progress.loss),
    )
    if team.leads:
        encoder = load_encoder(SPEC.encoder, trained.state, "cpu")
        features = embed(encoder, images, np.arange(COUNT, dtype=np.int64))
        picks = k_center_greedy(features[-20:], 8, centers=features[:-20])
        found = {"losses": losses, "visits": trained.visits, "picks": picks.indices.tolist(), "size": team.size}
        (out / "found.json").write_text(json.dumps(found))
    team.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
