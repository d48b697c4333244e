"""Run in a process of its own: the memory in bytes that one strategy takes beyond its inputs, a line a size.

python memory_of.py STRATEGY ROWS,WIDTH,CENTRES,BUDGET ...
"""

import ctypes
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from winnow.selection import NearDuplicates, find_near_duplicates, requirements, select
from winnow.selection.comparison import largest_left, mean_nearest

CLASSES = 9


def main() -> None:
    strategy, sizes = sys.argv[1], [tuple(map(int, text.split(","))) for text in sys.argv[2:]]
    run(strategy, draw(300, 8, 20), 20)  # imports, thread pools
    for rows, width, known, budget in sizes:
        given = draw(rows, width, known)
        print(peak_of(lambda: run(strategy, given, budget)), flush=True)  # noqa: B023 - called at once


def peak_of(work: Callable[[], None]) -> int:
    """Anonymous memory at its highest, beyond what there was, with nothing free left to be used again."""
    ctypes.CDLL(None).malloc_trim(0)
    before = anonymous()
    seen, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return max(*seen, anonymous()) - before


def draw(rows: int, width: int, known: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    middles = rng.normal(size=(20, width)).astype(np.float32)
    pool = np.maximum(middles[rng.integers(0, 20, rows)] + rng.normal(0, 0.5, (rows, width)).astype(np.float32), 0)
    centers = rng.normal(size=(known, width)).astype(np.float32)
    return {"pool": pool, "centers": centers, "probabilities": rng.dirichlet(np.ones(CLASSES), rows).astype(np.float32)}


def run(strategy: str, given: dict[str, Any], budget: int) -> None:
    pool = given["pool"]
    if strategy == "near_duplicates":
        find_near_duplicates(pool, NearDuplicates(0.99))
    elif strategy == "measures":
        picks = np.arange(budget)
        largest_left(pool, picks, given["centers"])
        mean_nearest(pool, picks)
    else:
        needs = requirements(strategy)
        names = set() if needs.counts_rows else {*needs.requires, *needs.reads}
        select(strategy, budget=budget, n=len(pool), **{name: given[name] for name in names & given.keys()})


def anonymous() -> int:
    return 1024 * int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0])


if __name__ == "__main__":
    main()
