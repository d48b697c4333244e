"""ProbCover: the rows whose balls of one radius cover most of the pool, for small budgets."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from winnow.selection.batch import (
    Floats,
    Limits,
    Progress,
    Selection,
    Stop,
    require_budget,
    require_integer,
    require_seed,
    row_blocks,
)
from winnow.selection.choice import Unlimited
from winnow.selection.clusters import find_clusters
from winnow.selection.k_center import k_center_greedy
from winnow.selection.neighbours import (
    Features,
    Mask,
    Origin,
    Positions,
    as_features,
    nearest_squares,
    pairs_within,
    require_centers,
    require_features,
    rows_near,
    rows_near_point,
    tiles,
)

PURITY = 0.95  # alpha in the paper
CLASSES = 10
PROBES = 1024  # rows whose balls are looked into for their purity
TARGETS = 10_000  # rows that coverage is counted on: a share of them is off by half a percent of the pool at most
MOST_EDGES = 1 << 26  # 256 MiB of row numbers
GROUP_EDGES = 1 << 24


def prob_cover(
    pool: Floats,
    budget: int,
    *,
    delta: float | None = None,
    classes: int | None = None,
    purity: float = PURITY,
    targets: int = TARGETS,
    centers: Floats | None = None,
    selected: tuple[int, ...] = (),
    seed: int = 0,
    limits: Limits | None = None,
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Selection:
    """Pick `budget` rows whose balls of radius `delta` cover most rows (Yehuda et al., NeurIPS 2022, Algorithm 1).

    Greedy maximum coverage: each pick is the row whose ball holds most rows not covered yet, the lowest of those
    that tie. Once every row is covered, the rest of the budget is k-center's, with score 0.

    pool         (n, d) candidates
    delta        the radius; None estimates it as the paper does (section 3.3): the largest for which the share
                 `purity` of balls holds rows of one pseudo-label, by k-means with `classes` clusters
    classes      how many classes there are thought to be; None means 10
    targets      coverage is counted on so many rows, drawn with `seed`, or on all where there are no more: the
                 paper's probability, estimated from a sample. The graph holds an edge from each target to the
                 rows that cover it, 2^26 at most: once it is full, the targets so far are all there are
    centers      (m, d) features selected earlier, or None: their balls are covered
    selected     rows of the pool that are picked already: the same
    limits       rows that it forbids are not picked; covering them still counts
    should_stop  asked before every round of k-means, every group of targets and every pick

    Scores are the share of targets that each pick newly covers; they never ascend. `notes` tell the radius, the
    targets and their coverage. Distances at the rim of a ball are settled in float64: the same bits for any number
    of threads.

    Raises ValueError that says which: pool, centers, budget, delta (negative or not finite), classes, targets
    (below 1), purity (not above 0 and at most 1), seed.
    """
    features = require_features("pool", pool)
    budget = require_budget("pool", len(features), budget)
    known = require_centers(centers, features.shape[1])
    _require_options(delta, classes, purity, targets)
    limits = limits or Unlimited(len(features), selected)
    stop, report = should_stop or _never, on_progress or _ignore
    report(0, budget)
    random = np.random.default_rng(require_seed(seed))
    radius = delta if delta is not None else _pure_radius(features, classes or CLASSES, purity, random, stop)
    if radius is None:
        return Selection(np.empty(0, np.int64), np.empty(0, np.float32))
    covering = np.concatenate([known, features[list(selected)]])
    graph = _Graph(features, radius, random.permutation(len(features))[:targets], stop)
    graph.cover_near(covering)
    picks, shares = _greedy(graph, budget, limits, stop, report)
    scores = np.zeros(budget, np.float32)
    scores[: len(picks)] = shares
    notes = (_note(radius, graph, len(features), len(picks)),)
    if len(picks) < budget and not stop():
        rest = k_center_greedy(
            features,
            budget - len(picks),
            centers=np.concatenate([covering, features[picks]]) if len(covering) + len(picks) else None,
            seed=seed,
            limits=limits,
            on_progress=_after(len(picks), budget, report),
            should_stop=stop,
        )
        picks += rest.indices.tolist()
    return Selection(np.array(picks, np.int64), scores[: len(picks)], notes=notes)


def _greedy(
    graph: "_Graph", budget: int, limits: Limits, stop: Stop, report: Progress
) -> tuple[list[int], list[float]]:
    """Picks and their shares, until the budget is met or no ball covers anything new."""
    picks: list[int] = []
    shares: list[float] = []
    while len(picks) < budget and not stop():
        row, share = graph.best(limits.allowed)
        if share == 0:
            break
        limits.take(row)
        graph.cover(row)
        picks.append(row)
        shares.append(share)
        report(len(picks), budget)
    return picks, shares


def _after(picks: int, budget: int, report: Progress) -> Progress:
    """Progress of the rest of the budget, once so many picks were made."""
    return lambda done, _: report(picks + done, budget) if done else None


def _note(radius: float, graph: "_Graph", rows: int, picks: int) -> str:
    covered = f"{graph.is_covered.mean():.1%} of {len(graph.targets)} of {rows} candidates"
    return f"balls of radius {radius:.6g} cover {covered} after {picks} picks"


def _require_options(delta: float | None, classes: int | None, purity: float, targets: int) -> None:
    if delta is not None and not (np.isfinite(delta) and delta >= 0):
        raise ValueError(f"delta: needs a finite number of 0 or more, got {delta!r}")
    if classes is not None and require_integer("classes", classes) < 1:
        raise ValueError(f"classes: needs 1 or more, got {classes}")
    if require_integer("targets", targets) < 1:
        raise ValueError(f"targets: needs 1 or more, got {targets}")
    if not 0 < purity <= 1:
        raise ValueError(f"purity: needs a number above 0 and at most 1, got {purity!r}")


def _pure_radius(pool: Features, classes: int, purity: float, random: np.random.Generator, stop: Stop) -> float | None:
    """The largest radius for which the share `purity` of balls is pure; infinite where there is one pseudo-label.

    A ball is pure up to the distance of the nearest row of another pseudo-label, so this is a quantile of these.
    None if `stop` ended it.
    """
    found = find_clusters(pool, classes, seed=int(random.integers(2**32)), should_stop=stop)
    if found is None:
        return None
    probes = np.sort(random.permutation(len(pool))[:PROBES])
    others = np.full(len(probes), np.inf)
    for rows in row_blocks(*pool.shape):
        block, labels = as_features(pool[rows]), found.labels[rows]
        for label in np.unique(found.labels[probes]):
            mine, foreign = np.flatnonzero(found.labels[probes] == label), block[labels != label]
            if len(foreign):
                squares, _ = nearest_squares(as_features(pool[probes[mine]]), foreign, 1, found.origin)
                others[mine] = np.minimum(others[mine], squares[:, 0])
    rim = np.sort(np.sqrt(others))[int((1 - purity) * len(probes) + 1e-9)]
    return float(np.nextafter(rim, 0.0)) if np.isfinite(rim) else float("inf")


@dataclass(eq=False)
class _Graph:
    """Which rows cover which targets, and how many uncovered targets each row would cover (n,)."""

    def __init__(self, pool: Features, radius: float, drawn: Positions, stop: Stop) -> None:
        self._pool, self._radius = pool, radius
        self._edges: list[npt.NDArray[np.int32]] = []  # for each target, the rows within the radius of it
        self.degrees = np.zeros(len(pool), np.int64)
        origin = Origin(pool)
        height = max(1, min(1024, GROUP_EDGES // len(pool)))
        total = 0
        for start in range(0, len(drawn), height):
            if stop() or total > MOST_EDGES:
                break
            group = self._covering(drawn[start : start + height], origin)
            total += sum(map(len, group))
            self._edges += group
        self.targets = drawn[: len(self._edges)]
        self.is_covered = np.zeros(len(self.targets), np.bool_)
        self._features = as_features(pool[self.targets])

    def _covering(self, group: Positions, origin: Origin) -> list[npt.NDArray[np.int32]]:
        """The rows within the radius of each target of `group`, which are counted in the degrees."""
        left = as_features(self._pool[group])
        found: list[list[npt.NDArray[np.int32]]] = [[] for _ in group]
        for _, columns in tiles(len(group), len(self._pool)):
            rows, near = pairs_within(left, as_features(self._pool[columns]), self._radius, origin)
            near = (near + columns.start).astype(np.int32)
            self.degrees += np.bincount(near, minlength=len(self.degrees))
            for place, part in enumerate(np.split(near, np.searchsorted(rows, np.arange(1, len(group))))):
                found[place].append(part)
        return [np.concatenate(parts) for parts in found]

    def best(self, allowed: Mask) -> tuple[int, float]:
        """The allowed row that covers most uncovered targets, and their share of all."""
        row = int(np.argmax(np.where(allowed, self.degrees, -1)))
        return row, float(self.degrees[row] / len(self.targets)) if allowed[row] and len(self.targets) else 0.0

    def cover(self, row: int) -> None:
        """Cover the targets in the ball of `row`."""
        self._cover(rows_near_point(self._features, as_features(self._pool[row]), self._radius))

    def cover_near(self, points: Features) -> None:
        """Cover the targets in the balls of `points` (m, d)."""
        if len(points) and len(self.targets):
            self._cover(rows_near(self._features, points, self._radius))

    def _cover(self, near: Mask) -> None:
        new = np.flatnonzero(near & ~self.is_covered)
        for start in range(0, len(new), 64):
            edges = np.concatenate([self._edges[target] for target in new[start : start + 64]])
            self.degrees -= np.bincount(edges, minlength=len(self.degrees))
        self.is_covered |= near


def _never() -> bool:
    return False


def _ignore(done: int, total: int) -> None:
    pass
