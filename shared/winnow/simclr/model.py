"""The encoder f and the projection head g (the paper's Eq. 2), from torchvision's residual networks."""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from winnow.domain import EncoderSpec
from winnow.simclr import checkpoint
from winnow.simclr.convolutions import converted
from winnow.simclr.pooling import MaxPool2d


class Images(Protocol):
    """What training and embedding read from: packed patches."""

    @property
    def image_size(self) -> int: ...

    def take(self, indices: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """(n,) sample indices → (n, H, W, 3), in `out` where it is given."""
        ...


class SimclrModel(nn.Module):
    """`encoder`: (n, 3, H, W) → h (n, 512 or 2048). `head`: h → z (n, d). Calling it gives z."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def build(spec: EncoderSpec, seed: int) -> SimclrModel:
    """Random weights from `seed` alone; the global generators are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        encoder = getattr(torchvision.models, spec.name)(weights=None)
        encoder.fc = nn.Identity()
        # The largest of what a ReLU lets through is what it lets through of the largest: a quarter as many values.
        encoder.relu, encoder.maxpool = nn.Identity(), nn.Sequential(MaxPool2d(), encoder.relu)
        model = SimclrModel(converted(encoder), _head(spec))
    return model.to(memory_format=torch.channels_last)


def unfilled(spec: EncoderSpec, device: str = "cpu") -> SimclrModel:
    """The model for weights that are loaded: what lies in it means nothing. Drawing random ones takes four times as
    long.
    """
    with torch.device("meta"):
        model = build(spec, 0)
    return model.to_empty(device=device)


def load_encoder(spec: EncoderSpec, state: Path, device: str) -> nn.Module:
    """The encoder saved in the directory `state`, in evaluation mode, to be used and not trained."""
    model = unfilled(spec)
    checkpoint.load_weights(model, state)
    return _folded(model.encoder.eval()).to(device)


def untrained_encoder(spec: EncoderSpec, seed: int, device: str) -> nn.Module:
    """The encoder as round 0 starts from it, in evaluation mode, to be used and not trained."""
    return _folded(build(spec, seed).encoder.eval()).to(device)


def _folded(network: nn.Module) -> nn.Module:
    """`network` with each BatchNorm made part of the convolution before it: one pass over the map instead of two."""
    before: tuple[str, nn.Conv2d] | None = None
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d) and before is not None:
            setattr(network, before[0], fuse_conv_bn_eval(before[1], child))
            setattr(network, name, nn.Identity())
        before = (name, child) if isinstance(child, nn.Conv2d) else None
        _folded(child)
    return network


def _head(spec: EncoderSpec) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = spec.features
    for number, units in enumerate(spec.head):
        last = number == len(spec.head) - 1
        layers.append(nn.Linear(width, units))
        if not last:
            layers += [nn.BatchNorm1d(units)] if spec.head_batch_norm else []
            layers.append(nn.ReLU(inplace=True))
        width = units
    return nn.Sequential(*layers)
