"""Seconds and peak memory of every strategy and stage, each in a process of its own.

    python benchmarks/strategies.py [--rows 99000] [--width 512] [--budget 1000] [--only NAME ...]

Features are like an encoder's after its ReLU: cluster means, shared factors and noise, none negative. One JSON line a
run; `peak_gib` is all that the process held, inputs included.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.selection import Constraints, NearDuplicates, find_near_duplicates, select, strategies

STAGES = ("near_duplicates", "constraints")
Features = NDArray[np.float32]


def clustered(rows: int, width: int, *, seed: int = 0) -> Features:
    """(rows, width) features in 40 clusters of low rank, with noise."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(40, width)).astype(np.float32)
    factors = rng.normal(size=(32, width)).astype(np.float32) / 4
    features = np.empty((rows, width), np.float32)
    for start in range(0, rows, 8192):
        block = features[start : start + 8192]
        shared = rng.normal(size=(len(block), 32)).astype(np.float32) @ factors
        block[:] = means[rng.integers(0, 40, len(block))] + shared + 0.3 * rng.normal(size=block.shape)
    return np.maximum(features, 0, out=features)


def measure(name: str, rows: int, width: int, budget: int) -> dict[str, Any]:
    """Run one strategy or stage in this process, and say what it took."""
    rng = np.random.default_rng(1)
    pool = clustered(rows, width)
    probabilities = rng.dirichlet(np.full(9, 0.3), rows).astype(np.float32)
    slides = rng.integers(0, 86, rows)
    copies = min(1000, rows // 2)
    began = time.perf_counter()
    if name == "near_duplicates":
        pool[-copies:] = pool[:copies] + np.float32(1e-3)
        aside = find_near_duplicates(pool, NearDuplicates(0.99))
        notes = [f"{0 if aside is None else int(aside.sum())} set aside"]
    elif name == "constraints":
        keep = Constraints(slides, cap=-(-2 * budget // 86), quota={0: 1}, minimum_distance=10.0)
        notes = list(select("random", budget=budget, pool=pool, constraints=keep).notes)
    else:
        notes = list(select(name, budget=budget, pool=pool, probabilities=probabilities).notes)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"name": name, "rows": rows, "seconds": round(seconds, 2), "peak_gib": round(peak, 2), "notes": notes}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=99_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=(*strategies(), *STAGES), default=(*strategies(), *STAGES))
    asked = parser.parse_args()
    if len(asked.only) == 1:
        print(json.dumps(measure(asked.only[0], asked.rows, asked.width, asked.budget)), flush=True)
        return
    sizes = [f"--{name}={getattr(asked, name)}" for name in ("rows", "width", "budget")]
    for name in asked.only:
        subprocess.run([sys.executable, __file__, *sizes, "--only", name], check=True)


if __name__ == "__main__":
    main()
