"""Brushes for synthetic tissue: fields over the unit square, drawn as arrays without a loop over pixels.

Lengths are shares of the patch's side: a patch of any size shows the same field of view.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
"""(size, size), float32 as drawn."""
Points = NDArray[np.float64]


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[Field, Field]:
    """x and y of the pixel centres, each (size, size), in 0..1."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    return x, y


@lru_cache(maxsize=64)
def _upsampling(size: int, cells: int) -> Field:
    """Smooth interpolation from cells + 1 knots to size pixels, (size, cells + 1)."""
    at = (np.arange(size) + 0.5) / size * cells
    left = np.minimum(at.astype(np.int64), cells - 1)
    share = at - left
    share = share * share * (3 - 2 * share)
    weights = np.zeros((size, cells + 1), np.float32)
    weights[np.arange(size), left] = 1 - share
    weights[np.arange(size), left + 1] += share
    return weights


def noise(rng: np.random.Generator, size: int, cells: int, octaves: int = 1) -> Field:
    """Value noise (size, size) around 0, of deviation near 0.7; each octave is twice as fine and half as strong."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        knots = cells << octave
        weights = _upsampling(size, knots)
        values = rng.standard_normal((knots + 1, knots + 1)).astype(np.float32)
        total += (weights @ values @ weights.T) * np.float32(0.5**octave)
    return total


def scatter(rng: np.random.Generator, across: int, jitter: float = 0.8, share: float = 1.0) -> Points:
    """About across² points (k, 2) spaced as cells are: a jittered grid reaching past the edges, thinned to `share`."""
    step = 1 / across
    cells = np.arange(-1, across + 1)
    x, y = np.meshgrid(cells, cells)
    points = np.stack([x.ravel(), y.ravel()], 1) + 0.5 + rng.uniform(-0.5, 0.5, (x.size, 2)) * jitter
    points[:, 0] += 0.5 * (y.ravel() % 2)  # rows are staggered, so that no columns show
    shift = rng.uniform(-0.5, 0.5, 2)
    return ((points + shift) * step)[rng.random(len(points)) < share]


@dataclass(frozen=True)
class Nuclei:
    """Ellipses to stamp: centres (k, 2), half axes (k,), angles (k,) in radians, depths (k,) of optical density."""

    centres: Points
    long: Points
    short: Points
    angles: Points
    depths: Points


def nuclei(
    rng: np.random.Generator,
    centres: Points,
    *,
    radius: float,
    spread: float = 0.15,
    stretch: float = 1.2,
    angles: Points | float | None = None,
    depth: float = 1.0,
) -> Nuclei:
    """Nuclei around `radius` (log-normal with `spread`), stretched along their angle (random by default)."""
    count = len(centres)
    size = radius * np.exp(rng.normal(0, spread, count))
    ratio = np.sqrt(stretch * np.exp(rng.normal(0, spread, count)))
    turned = rng.uniform(0, np.pi, count) if angles is None else np.broadcast_to(angles, (count,))
    return Nuclei(centres, size * ratio, size / ratio, turned, depth * np.exp(rng.normal(0, 0.18, count)))


def stamp(canvas: Field, drawn: Nuclei, *, ragged: Field | None = None, rim: float = 0.0) -> None:
    """Draw nuclei into `canvas` (size, size), in place; where they overlap the deeper one shows.

    `ragged` is a noise field that makes outlines irregular; `rim` makes nuclei vesicular: paler inside than at
    the membrane.
    """
    size = canvas.shape[0]
    drawn = _visible(drawn)
    if len(drawn.centres) == 0:
        return
    half = int(np.ceil(float(drawn.long.max()) * size * 1.3)) + 1
    offsets = np.arange(-half, half + 1)
    corner = np.floor(drawn.centres * size).astype(np.int64)  # (k, 2)
    column = corner[:, 0, None, None] + offsets[None, None, :]  # (k, 1, w)
    row = corner[:, 1, None, None] + offsets[None, :, None]  # (k, w, 1)
    dx = ((column + 0.5) / size - drawn.centres[:, 0, None, None]).astype(np.float32)
    dy = ((row + 0.5) / size - drawn.centres[:, 1, None, None]).astype(np.float32)
    cos, sin = (f(drawn.angles).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    long, short, depth = (v.astype(np.float32)[:, None, None] for v in (drawn.long, drawn.short, drawn.depths))
    along, aside = (dx * cos + dy * sin) / long, (dy * cos - dx * sin) / short
    distance = np.sqrt(along * along + aside * aside)  # (k, w, w), 1 on the outline
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    flat = np.clip(row, 0, size - 1) * size + np.clip(column, 0, size - 1)
    if ragged is not None:
        distance += ragged.ravel()[flat]
    edge = np.clip((1 - distance) * short * size + 0.5, 0, 1)  # one pixel wide
    body = edge * depth * (1 - rim * np.clip(1 - distance, 0, 1))
    shown = inside & (edge > 0)
    np.maximum.at(canvas.reshape(-1), flat[shown], body[shown])


def _visible(drawn: Nuclei) -> Nuclei:
    """Those that reach into the patch."""
    reach = 1.3 * drawn.long[:, None]
    keep = ((drawn.centres > -reach) & (drawn.centres < 1 + reach)).all(axis=1)
    return Nuclei(*(value[keep] for value in (drawn.centres, drawn.long, drawn.short, drawn.angles, drawn.depths)))


def nearest_two(size: int, centres: Points) -> tuple[Field, Field]:
    """Distances (size, size) of each pixel to the nearest and the second nearest of at least two centres."""
    x, y = grid(size)
    points = centres.astype(np.float32)
    squared = (x[None] - points[:, 0, None, None]) ** 2 + (y[None] - points[:, 1, None, None]) ** 2
    nearest = np.sqrt(np.partition(squared, 1, axis=0)[:2])
    return nearest[0], nearest[1]


def fibres(size: int, angle: float, spacing: float, warp: Field) -> Field:
    """Parallel stripes in 0..1 running along `angle`, `spacing` apart, bent by `warp` (in spacings)."""
    x, y = grid(size)
    across = (y * np.float32(np.cos(angle)) - x * np.float32(np.sin(angle))) / np.float32(spacing)
    return 0.5 + 0.5 * np.sin(2 * np.float32(np.pi) * (across + warp))
