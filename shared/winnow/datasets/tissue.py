"""The nine tissue types of NCT-CRC-HE as amounts of haematoxylin and eosin, one painter each.

A field of view is about 112 µm, as in that set (224 pixels at 0.5 µm), so a lymphocyte's radius of 3.5 µm is 0.03.
Amounts are optical densities before the slide's stain is applied.
"""

from collections.abc import Callable

import numpy as np

from winnow.datasets.brush import Field, Points, fibres, nearest_two, noise, nuclei, scatter, stamp

Stains = tuple[Field, Field]
"""Haematoxylin and eosin, each (size, size) and at least 0."""


def adipose(rng: np.random.Generator, size: int) -> Stains:
    """Large empty cells with thin eosinophilic walls; a flat nucleus here and there in a wall."""
    nearest, second = nearest_two(size, scatter(rng, int(rng.integers(2, 5)), 0.75))
    wall = np.exp(-(((second - nearest) / np.float32(rng.uniform(0.012, 0.03))) ** 2))
    eosin = 0.02 + wall * np.float32(rng.uniform(0.25, 0.5)) * (1 + 0.3 * noise(rng, size, 8))
    haematoxylin = 0.02 + 0.06 * wall
    centres = scatter(rng, 6, 1.0, 0.5)
    keep = wall[_pixels(centres, size)] > 0.6
    stamp(haematoxylin, nuclei(rng, centres[keep][:4], radius=0.022, stretch=2.5, depth=0.7))
    return haematoxylin, np.maximum(eosin, 0)


def background(rng: np.random.Generator, size: int) -> Stains:
    """Bare glass: uneven light, and sometimes dust or a faint smear."""
    haze = np.float32(0.012) * (1 + noise(rng, size, 2))
    haematoxylin, eosin = np.maximum(haze, 0), np.maximum(haze + np.float32(rng.uniform(0, 0.04)), 0)
    dust = scatter(rng, 4, 1.0, float(rng.choice([0.0, 0.05, 0.15])))
    stamp(haematoxylin, nuclei(rng, dust, radius=0.012, spread=0.5, depth=0.25))
    return haematoxylin, eosin


def debris(rng: np.random.Generator, size: int) -> Stains:
    """Necrosis: granular eosinophilic ground with shrunken and broken nuclei, smeared chromatin."""
    clumps = noise(rng, size, 5, 3)
    grain = noise(rng, size, 32, 2)
    eosin = np.maximum(0.29 + 0.07 * clumps + 0.05 * grain, 0.03)
    haematoxylin = np.maximum(0.15 + 0.06 * noise(rng, size, 7, 2) + 0.05 * grain, 0)
    share = float(rng.uniform(0.2, 0.6))
    fragments = nuclei(rng, scatter(rng, 13, 1.0, share), radius=0.012, spread=0.45, depth=0.75)
    stamp(haematoxylin, fragments, ragged=0.35 * grain)
    ghosts = nuclei(rng, scatter(rng, 7, 1.0, 0.35), radius=0.032, spread=0.3, depth=0.4)
    stamp(haematoxylin, ghosts, ragged=0.4 * clumps)
    return haematoxylin, eosin


def lymphocytes(rng: np.random.Generator, size: int) -> Stains:
    """Crowded small, dark, round nuclei with scant cytoplasm."""
    eosin = np.maximum(0.17 + 0.04 * noise(rng, size, 6, 2), 0)
    haematoxylin = np.maximum(0.12 + 0.04 * noise(rng, size, 8), 0)
    across = int(rng.integers(9, 13))
    cells = nuclei(rng, scatter(rng, across, 0.7, float(rng.uniform(0.65, 0.95))), radius=0.033, spread=0.1, depth=0.85)
    stamp(haematoxylin, cells, ragged=0.08 * noise(rng, size, 24))
    return _chromatin(rng, haematoxylin, 0.12), eosin


def mucus(rng: np.random.Generator, size: int) -> Stains:
    """Pale blue pools in streaks, almost without cells."""
    angle = rng.uniform(0, np.pi)
    warp = 0.9 * noise(rng, size, 3, 2)
    streaks = fibres(size, angle, float(rng.uniform(0.1, 0.25)), warp) * np.clip(
        0.7 + 0.4 * noise(rng, size, 4), 0, 1.5
    )
    strands = fibres(size, angle, 0.05, 2.0 * warp) ** 4
    haematoxylin = np.maximum(0.07 + 0.15 * streaks + 0.05 * strands, 0)
    eosin = np.maximum(0.03 + 0.06 * streaks + 0.05 * noise(rng, size, 3), 0.01)
    floating = nuclei(rng, scatter(rng, 6, 1.0, float(rng.uniform(0, 0.15))), radius=0.028, spread=0.3, depth=0.75)
    stamp(haematoxylin, floating)
    return haematoxylin, eosin


def muscle(rng: np.random.Generator, size: int) -> Stains:
    """Smooth muscle: dense parallel eosinophilic fibres, with cigar-shaped nuclei along them."""
    angle = float(rng.uniform(0, np.pi))
    bend = 1.1 * noise(rng, size, 2)
    bands = fibres(size, angle, float(rng.uniform(0.08, 0.13)), bend)
    threads = fibres(size, angle, 0.031, 3.2 * bend + 0.3 * noise(rng, size, 8))
    eosin = np.maximum(0.27 + 0.1 * bands + 0.04 * threads + 0.03 * noise(rng, size, 4), 0)
    haematoxylin = 0.06 + 0.04 * threads
    centres = scatter(rng, 6, 0.9, float(rng.uniform(0.2, 0.5)))
    along = angle + rng.normal(0, 0.12, len(centres))
    stamp(haematoxylin, nuclei(rng, centres, radius=0.03, stretch=4.5, angles=along, depth=0.75))
    return _chromatin(rng, haematoxylin, 0.1), eosin


def normal(rng: np.random.Generator, size: int) -> Stains:
    """Colon mucosa: round glands, basal nuclei in a ring around goblet cells and a lumen, cells in between."""
    across = 1 if rng.random() < 0.4 else 2
    centres = scatter(rng, across, 0.25)
    radius = float(rng.uniform(0.36, 0.42)) / across
    wobble = 0.04 * noise(rng, size, 4)
    nearest, _ = nearest_two(size, centres)
    depth = nearest / np.float32(radius) + wobble  # 0 in the middle, 1 at the basement membrane
    gland = _step(1.0 - depth, 0.04)
    lumen = _step(0.2 - depth, 0.06)
    vacuoles = _step(noise(rng, size, 14 * across) - 0.25, 0.3) * _step(0.66 - depth, 0.08)
    eosin = 0.21 + 0.05 * noise(rng, size, 7, 2) * (1 - gland)
    eosin = np.maximum(eosin * (1 - 0.8 * lumen) - 0.13 * vacuoles * gland, 0.02)
    haematoxylin = np.maximum(0.08 + 0.07 * gland - 0.05 * lumen + 0.05 * noise(rng, size, 6), 0)
    ring, outwards = _ring(rng, centres, 0.86 * radius, max(int(30 / across), 14))
    epithelium = nuclei(rng, ring, radius=0.03, stretch=1.9, angles=outwards, depth=0.75)
    stamp(haematoxylin, epithelium, ragged=0.12 * noise(rng, size, 20))
    between = scatter(rng, 9, 1.0, float(rng.uniform(0.35, 0.8)))
    between = between[gland[_pixels(between, size)] < 0.1]
    stamp(haematoxylin, nuclei(rng, between, radius=0.026, spread=0.2, stretch=1.5, depth=0.9))
    return _chromatin(rng, haematoxylin, 0.12), eosin


def stroma(rng: np.random.Generator, size: int) -> Stains:
    """Wavy collagen with gaps, and sparse spindle-shaped nuclei."""
    angle = float(rng.uniform(0, np.pi))
    warp = 0.7 * noise(rng, size, 3, 2)
    bundles = fibres(size, angle, float(rng.uniform(0.12, 0.2)), warp)
    threads = fibres(size, angle, 0.05, 2.4 * warp + 0.5 * noise(rng, size, 12))
    loose = float(rng.uniform(0.06, 0.22))
    eosin = np.maximum(0.3 - loose + loose * 1.2 * bundles + 0.04 * threads + 0.05 * noise(rng, size, 6, 3), 0.03)
    haematoxylin = np.maximum(0.05 + 0.05 * threads + 0.02 * noise(rng, size, 8), 0)
    centres = scatter(rng, 7, 1.0, float(rng.uniform(0.15, 0.45)))
    along = angle + rng.normal(0, 0.5, len(centres))
    stamp(haematoxylin, nuclei(rng, centres, radius=0.024, spread=0.25, stretch=3.2, angles=along, depth=0.8))
    lymph = scatter(rng, 8, 1.0, float(rng.choice([0.0, 0.04, 0.12])))
    stamp(haematoxylin, nuclei(rng, lymph, radius=0.03, spread=0.1))
    return _chromatin(rng, haematoxylin, 0.1), eosin


def tumour(rng: np.random.Generator, size: int) -> Stains:
    """Adenocarcinoma: crowded, large, irregular vesicular nuclei, disordered, with a ragged lumen at times."""
    cytoplasm = noise(rng, size, 6, 2)
    eosin = np.maximum(0.22 + 0.05 * cytoplasm, 0.03)
    haematoxylin = np.maximum(0.15 + 0.04 * noise(rng, size, 8, 2), 0)
    across = int(rng.integers(7, 10))
    centres = scatter(rng, across, 0.9, float(rng.uniform(0.7, 0.95)))
    gap = _step(noise(rng, size, 2) - float(rng.choice([1.0, 1.4, 3.0])), 0.2)
    centres = centres[gap[_pixels(centres, size)] < 0.3]
    bulk = nuclei(rng, centres, radius=0.4 / across, spread=0.24, stretch=1.45, depth=0.7)
    stamp(haematoxylin, bulk, ragged=0.22 * noise(rng, size, 18), rim=0.3)
    eosin *= 1 - 0.85 * gap
    return _chromatin(rng, haematoxylin * (1 - 0.7 * gap), 0.25), eosin


PAINTERS: dict[str, Callable[[np.random.Generator, int], Stains]] = {
    "ADI": adipose,
    "BACK": background,
    "DEB": debris,
    "LYM": lymphocytes,
    "MUC": mucus,
    "MUS": muscle,
    "NORM": normal,
    "STR": stroma,
    "TUM": tumour,
}


def _chromatin(rng: np.random.Generator, haematoxylin: Field, strength: float) -> Field:
    """Speckle where the stain is deep: chromatin is not even."""
    speckle = noise(rng, haematoxylin.shape[0], 40)
    return np.maximum(haematoxylin * (1 + np.float32(strength) * speckle * (haematoxylin > 0.4)), 0)


def _step(value: Field, softness: float) -> Field:
    return np.clip(value / np.float32(softness) + 0.5, 0, 1)


def _pixels(points: Points, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the pixel under each point, at the edge for those outside."""
    at = np.clip((points * size).astype(np.int64), 0, size - 1)
    return at[:, 1], at[:, 0]


def _ring(rng: np.random.Generator, centres: Points, radius: float, count: int) -> tuple[Points, Points]:
    """Points on circles around the centres, and the angle from which each looks outwards."""
    turn = (np.arange(count) + rng.uniform(-0.3, 0.3, (len(centres), count))) * (2 * np.pi / count)
    away = radius * rng.normal(1, 0.05, turn.shape)
    points = centres[:, None] + away[..., None] * np.stack([np.cos(turn), np.sin(turn)], -1)
    return points.reshape(-1, 2), turn.ravel()
