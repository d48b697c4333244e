"""How much memory selections may take together, and how much one needs."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from winnow.errors import InvalidInput
from winnow.problems import STATUS

GIB = 1 << 30
SHARE = 0.75
"""Of what the machine or the container has, where no setting says how much."""
OVERHEAD = 64 << 20
"""Blocks that a strategy looks at, whatever the size of the pool."""
PICK = 250
"""Of an answer while it is made and written: its row, its score, and the text of both."""
ORIGIN = 1750
"""Beside it, of where the pick came from: file, row, place on the slide or key."""
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class DoesNotFit(InvalidInput):
    """More memory than all selections may take together: waiting would not help."""

    code = "does-not-fit"

    def __init__(self, needed_bytes: int, budget_bytes: int) -> None:
        reason = f"needs about {needed_bytes} bytes of memory; the sampler has {budget_bytes} for all selections"
        super().__init__("request", f"{reason}. Pick from fewer candidates, or raise WINNOW_SAMPLER_MEMORY_GIB")
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes


STATUS[DoesNotFit] = 413


@dataclass(frozen=True)
class Size:
    """What a selection's memory depends on: n candidates of d dimensions and c classes, m centres, b picks."""

    n: int
    d: int
    c: int
    m: int
    b: int


def budget_of(gib: float) -> int:
    """Bytes that selections may take together: `gib`, or a share of what there is where it is 0."""
    return int(gib * GIB) if gib else int(SHARE * there_is())


def there_is(limits: tuple[Path, ...] = _LIMITS) -> int:
    """Bytes of memory that this process may use: the machine's, or the container's where it has fewer."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(limit for path in limits if (limit := _read(path)))])


def _read(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit


def _k_center(size: Size) -> int:
    return 4 * 4 * size.n + 12 * size.d * (size.m + size.b)


def _ranking(size: Size) -> int:
    """Of all rows: constraints need that, and so do ties at the edge of the budget."""
    return 48 * size.n


def _draw(size: Size) -> int:
    return 16 * size.n


def _neighbours(size: Size) -> int:
    """Neighbour lists and clusters over a contiguous copy of the pool."""
    return 8 * size.n * size.d + 512 * size.n + 8 * size.d * (size.m + size.b)


def _graph(size: Size) -> int:
    """ProbCover's graph too: the neighbours of at most 10,000 rows, 2^26 of them at most."""
    return _neighbours(size) + 4 * min(1 << 26, min(10_000, size.n) * size.n)


ESTIMATES: dict[str, Callable[[Size], int]] = {
    "k_center": _k_center,
    "entropy": _ranking,
    "margin": _ranking,
    "least_confidence": _ranking,
    "random": _draw,
    "prob_cover": _graph,
}


def estimate(strategy: str, size: Size) -> int:
    """Bytes that a strategy takes beyond its inputs; the most careful guess for one that is not listed."""
    return OVERHEAD + ESTIMATES.get(strategy, _neighbours)(size) + 32 * size.b
