"""What costs nothing and belongs beside every curve: on small data these can beat a half-trained encoder."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from winnow.domain import ExperimentSpec, derive_seed
from winnow.errors import InvalidInput
from winnow.simclr.embed import embed
from winnow.simclr.model import Images, untrained_encoder
from winnow.simclr.proxy import fit_proxy
from winnow.simclr.rig import Rig

Indices = NDArray[np.int64]
Probabilities = NDArray[np.float32]
BINS = 8  # a channel; the joint RGB histogram has BINS^3 values
_BLOCK = 512


def colour_histogram_floor(
    images: Images, labelled: Indices, labels: Indices, evaluated: Indices, *, classes: int, seed: int = 0
) -> Probabilities:
    """Logistic regression on joint RGB histograms (8 bins a channel, square-rooted).

    Args:
        labelled: (n,) samples to fit on, labels: (n,) in 0 .. classes - 1. evaluated: (m,) samples to score.

    Returns:
        (m, classes) probabilities; a class without a labelled sample gets 0.

    Raises:
        InvalidInput: one class only among the labels.
    """
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) < 2:
        raise InvalidInput("labelled", "all labelled samples are of one class; label some of another one")
    model = LogisticRegression(C=100.0, max_iter=2000, random_state=seed % 2**32)
    model.fit(histograms(images, labelled), labels)
    result = np.zeros((len(evaluated), classes), np.float32)
    if len(evaluated):
        result[:, model.classes_] = model.predict_proba(histograms(images, evaluated))
    return result


def untrained_floor(
    images: Images,
    labelled: Indices,
    labels: Indices,
    evaluated: Indices,
    *,
    classes: int,
    spec: ExperimentSpec,
    rig: Rig | None = None,
) -> Probabilities:
    """The arm's own proxy, on the encoder's random starting weights. Shapes and errors as above."""
    rig = rig or Rig()
    encoder = untrained_encoder(spec.encoder, derive_seed(spec.seed, "weights"), rig.device)
    features = embed(encoder, images, labelled, rig=rig)
    seed = derive_seed(spec.seed, "floor")
    proxy = fit_proxy(features, labels, classes=classes, spec=spec.proxy, seed=seed, epochs=spec.proxy_epochs)
    return proxy.probabilities(embed(encoder, images, evaluated, rig=rig))


def histograms(images: Images, indices: Indices) -> NDArray[np.float64]:
    """(n,) samples → (n, 512): the square root of each colour's share (Hellinger distance becomes Euclidean)."""
    rows = [np.zeros((0, BINS**3)), *(_shares(block) for block in _blocks(images, indices))]
    return np.sqrt(np.concatenate(rows))


def _blocks(images: Images, indices: Indices) -> Iterator[NDArray[np.uint8]]:
    for first in range(0, len(indices), _BLOCK):
        yield images.take(indices[first : first + _BLOCK])


def _shares(block: NDArray[np.uint8]) -> NDArray[np.float64]:
    level = (block >> 5).astype(np.int64)  # (k, H, W, 3)
    colour = (level[..., 0] * BINS + level[..., 1]) * BINS + level[..., 2]  # (k, H, W)
    flat = colour.reshape(len(block), -1) + np.arange(len(block))[:, None] * BINS**3
    counts = np.bincount(flat.ravel(), minlength=len(block) * BINS**3)
    return counts.reshape(len(block), -1) / flat.shape[1]
