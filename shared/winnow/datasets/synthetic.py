"""Synthetic H&E: tissue painted as amounts of stain, turned into colour by Beer and Lambert's law.

    I = I0 · 10^-(h·H + e·E)        per channel, H and E the optical-density vectors of the stains

Stain vectors of Ruifrok & Johnston, "Quantification of histochemical staining by color deconvolution" (2001), and
the reference of Macenko et al., "A method for normalizing histology slides for quantitative analysis" (2009):
each slide's own lie between the two, with an intensity and a light of its own.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from winnow.datasets.brush import noise
from winnow.datasets.tissue import PAINTERS
from winnow.domain import TISSUE_TYPES, SyntheticTissue, derive_seed

RUIFROK = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
"""Haematoxylin and eosin, optical density in R, G, B."""
MACENKO = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])

_GOLDEN = (5**0.5 - 1) / 2
_SENSOR_NOISE = 2.5  # grey levels


@dataclass(frozen=True)
class Stain:
    """How one slide was stained: unit vectors (2, 3) for H and E, their strengths (2,), the light (3,) in 0..255."""

    vectors: NDArray[np.float64]
    strengths: NDArray[np.float64]
    light: NDArray[np.float64]


def layout(tissue: SyntheticTissue) -> tuple[list[str], list[int]]:
    """Tissue type and slide of each patch.

    Types follow `balance` within a patch or two at every length (a golden-ratio sequence), slides are dealt out in
    shuffled rounds: patch i is the same however many there are.
    """
    weights = np.array([tissue.balance.get(name, 1.0) for name in TISSUE_TYPES])
    start = np.random.default_rng(derive_seed(tissue.seed, "tissue types")).random()
    phase = (start + _GOLDEN * np.arange(tissue.patches)) % 1.0
    types = np.searchsorted(np.cumsum(weights / weights.sum()), phase, side="right")
    last = int(np.flatnonzero(weights)[-1])  # rounding may leave a sum just below 1
    labels = [TISSUE_TYPES[min(int(at), last)] for at in types]
    rounds = -(-tissue.patches // tissue.slides)
    dealt = [_rng(tissue.seed, "slides", number).permutation(tissue.slides) for number in range(rounds)]
    return labels, np.concatenate(dealt)[: tissue.patches].tolist()


def draw(tissue: SyntheticTissue, index: int, size: int) -> NDArray[np.uint8]:
    """Patch `index` as uint8 (size, size, 3); the same for every `patches` above it.

    Raises IndexError outside 0..patches-1.
    """
    labels, slides = _layout(tissue.model_dump_json())
    if not 0 <= index < len(labels):
        raise IndexError(f"patch {index} of {len(labels)}")
    rng = _rng(tissue.seed, "patch", index)
    thickness = np.exp(rng.normal(0, 0.12))
    haematoxylin, eosin = PAINTERS[labels[index]](rng, size)
    stain = stain_of(tissue, slides[index])
    amounts = np.stack([haematoxylin, eosin], -1).reshape(-1, 2) * np.float32(thickness)  # (S², 2)
    unevenness = 1 + 0.04 * noise(rng, size, 2)
    density = (amounts @ (stain.vectors * stain.strengths[:, None]).astype(np.float32)) * unevenness.reshape(-1, 1)
    colour = stain.light.astype(np.float32) * np.exp(np.float32(-np.log(10)) * density)  # (S², 3)
    colour += np.float32(_SENSOR_NOISE) * rng.standard_normal(colour.shape, np.float32)
    return np.clip(colour + 0.5, 0, 255).astype(np.uint8).reshape(size, size, 3)


def stain_of(tissue: SyntheticTissue, slide: int) -> Stain:
    """The stain of a slide."""
    rng = _rng(tissue.seed, "stain", slide)
    share = rng.uniform(0.3, 1.0, (2, 1))
    vectors = (1 - share) * RUIFROK + share * MACENKO + rng.normal(0, 0.03, (2, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    strengths = np.exp(rng.normal(0, [0.18, 0.22]))
    return Stain(vectors, strengths, rng.uniform(232, 248) + rng.normal(0, 2, 3))


def _rng(seed: int, purpose: str, number: int) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, purpose, number))


@lru_cache(maxsize=4)
def _layout(spec: str) -> tuple[list[str], list[int]]:
    return layout(SyntheticTissue.model_validate_json(spec))
