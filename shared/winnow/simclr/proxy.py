"""The proxy f_p: one linear layer on frozen features, fitted from random weights every round (section II-B)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from winnow.domain import ProxySpec
from winnow.errors import InvalidInput

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Proxy:
    """weights (k, d) and bias (k,), with k = 1 for two classes; mean and deviation (d,) of the standardisation."""

    weights: Features
    bias: Features
    mean: Features
    deviation: Features

    def probabilities(self, features: Features) -> Features:
        """(n, d) features → (n, classes) probabilities; each row sums to 1."""
        logits = ((features - self.mean) / self.deviation).astype(np.float64) @ self.weights.T + self.bias
        if len(self.weights) == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        return (shifted / shifted.sum(1, keepdims=True)).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write to a safetensors file."""
        arrays = {"weights": self.weights, "bias": self.bias, "mean": self.mean, "deviation": self.deviation}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)

    @classmethod
    def load(cls, path: Path) -> "Proxy":
        """Read what `save` wrote."""
        return cls(**load_file(path))


def fit_proxy(
    features: Features,
    labels: NDArray[np.int64],
    *,
    classes: int,
    spec: ProxySpec,
    seed: int,
    epochs: int | None = None,
    on_epoch: Callable[[int, Proxy], None] | None = None,
) -> Proxy:
    """Fit by Adam: binary cross-entropy on one logit for two classes, softmax cross-entropy for more.

    Args:
        features: (n, d). labels: (n,) in 0 .. classes - 1. epochs: by default the spec's.
        on_epoch: called with the number of epochs done and the proxy as it then is.

    Raises:
        InvalidInput: the labels hold one class only, so there is nothing to tell apart.
    """
    if len(np.unique(labels)) < 2:
        raise InvalidInput("labelled", "all labelled samples are of one class; label some of another one")
    mean, deviation = _standardisation(features, spec.standardise)
    x = torch.from_numpy((features - mean) / deviation)  # (n, d)
    y = torch.from_numpy(labels)  # (n,)
    generator = torch.Generator().manual_seed(seed % 2**63)
    layer = _layer(x.shape[1], 1 if classes == 2 else classes, generator)
    optimizer = torch.optim.Adam(layer.parameters(), lr=spec.learning_rate)
    for epoch in range(spec.epochs if epochs is None else epochs):
        for batch in torch.randperm(len(x), generator=generator).split(spec.batch_size):
            loss = _loss(layer(x[batch]), y[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if on_epoch is not None:
            on_epoch(epoch + 1, _frozen(layer, mean, deviation))
    return _frozen(layer, mean, deviation)


def _layer(features: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(features, outputs)
    bound = features**-0.5  # nn.Linear's own initialisation, from our generator
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return layer


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels.float())
    return F.cross_entropy(logits, labels)


def _standardisation(features: Features, wanted: bool) -> tuple[Features, Features]:
    width = features.shape[1]
    if not wanted:
        return np.zeros(width, np.float32), np.ones(width, np.float32)
    deviation = features.std(0)
    return features.mean(0), np.where(deviation > 1e-6, deviation, 1).astype(np.float32)


def _frozen(layer: nn.Linear, mean: Features, deviation: Features) -> Proxy:
    weights, bias = (p.detach().numpy().copy() for p in (layer.weight, layer.bias))
    return Proxy(weights, bias, mean, deviation)
