"""What a selection must and must not hold: caps and quotas per group, exclusions, pinned rows, distances to keep.

Every strategy meets them the same way: before each pick it asks which rows are still allowed, and tells the pick.
Caps are never broken. Quotas steer late: a strategy picks as it likes until the rest of the budget is just what the
groups are still owed, and from then on only among these groups; so each quota is met, and the picks before that are
those of the free run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from winnow.selection.batch import Floats, require_integer
from winnow.selection.neighbours import Mask, Positions, as_features, rows_near, rows_near_point

Label = int | str
GREEDY = ". Picks are never taken back, and others might have fitted: try a smaller distance, another seed, or"


@dataclass(frozen=True, eq=False, slots=True)
class Constraints:
    """Constraints of one selection from n candidates.

    groups            (n,) integer or string labels, say the slide or the patient; needed by cap and quota
    cap               the most picks of any group, or a mapping from labels to the most of theirs
    quota             how many picks each group must have at least
    quota_is_exact    whether the groups of `quota` must have just that many
    exclude           rows that are never picked
    pinned            rows that are picked first, in this order; they count in the budget, caps and quotas, and
                      neither `minimum_distance` nor the near-duplicate stage holds them back
    minimum_distance  L2 distance that every pick must exceed to each earlier pick and to the centers

    Rows that may not be picked still count where a strategy looks at density, coverage or the radius.
    """

    groups: Sequence[Label] | npt.NDArray[Any] | None = None
    cap: int | Mapping[Any, int] | None = None
    quota: Mapping[Any, int] | None = None
    quota_is_exact: bool = False
    exclude: Sequence[int] | npt.NDArray[Any] = ()
    pinned: Sequence[int] | npt.NDArray[Any] = ()
    minimum_distance: float | None = None


class Ledger:
    """The `Limits` of one run: what has been picked, and what that leaves to pick.

    Built with the constraints, it takes the pinned rows at once. Raises ValueError for constraints that contradict
    each other or that cannot be met, then or at the pick after which they no longer can: it says how many picks
    were possible, and what stopped the rest.
    """

    def __init__(
        self,
        rows: int,
        budget: int,
        constraints: Constraints | None = None,
        *,
        pool: Floats | None = None,
        centers: Floats | None = None,
        duplicates: Mask | None = None,
    ) -> None:
        given = constraints or Constraints()
        self.budget = budget
        self.taken: list[int] = []
        self._pool = pool
        self._distance = _require_distance(given.minimum_distance, pool)
        self._labels, self._group_of = _require_groups(given, rows)
        self._counts = np.zeros(len(self._labels), np.int64)
        self._quotas = self._per_group("quota", given.quota or {}, 0)
        self._caps = self._require_caps(given)
        self._allowed = np.ones(rows, np.bool_)
        self._reasons: list[str] = []
        pinned = require_rows("pinned", given.pinned, rows)
        excluded = require_rows("exclude", given.exclude, rows)
        self._forbid(_mask(rows, excluded), "exclude")
        self._require_pins(pinned)
        if duplicates is not None:
            self._forbid(duplicates & ~_mask(rows, pinned), "the near-duplicate stage")
        if self._distance and centers is not None and len(centers) and pool is not None:
            self._forbid(rows_near(pool, centers, self._distance), "minimum_distance to the centers")
        self._require_possible(pinned)
        self._close(self._counts >= self._caps)
        for row in pinned:
            self._count(int(row))
        if self._distance and len(pinned):  # once all are in: no distance holds one of them back
            self._require_rest()

    @property
    def allowed(self) -> Mask:
        """(n,) the rows that may still be picked. A row that is False once stays so."""
        return self._allowed

    def take(self, row: int) -> None:
        """Count the pick of `row`. Raises ValueError when the rest of the budget can no longer be picked."""
        self._count(row)
        if self._distance:
            self._require_rest()

    def _count(self, row: int) -> None:
        group = self._group_of[row]
        self.taken.append(row)
        self._counts[group] += 1
        self._allowed[row] = False
        if self._distance and self._pool is not None:
            near = rows_near_point(self._pool, as_features(self._pool[row]), self._distance)
            self._allowed &= ~near
        full = np.zeros(len(self._labels), np.bool_)
        full[group] = self._counts[group] >= self._caps[group]
        self._close(full)

    def shortlist(self, ranking: Positions, budget: int, factor: int) -> Positions:
        """The first `factor` times `budget` rows of `ranking` among which the constraints leave `budget` to pick.

        Each group gives at most `factor` times the room that its cap leaves, and what it is owed as often, so that
        caps and quotas can be met within the shortlist whenever they can be met at all. Ascending row numbers.
        """
        rows = ranking[self._allowed[ranking]]
        groups = self._group_of[rows]
        standing = _places_within(groups)
        owed = standing < factor * np.maximum(self._quotas - self._counts, 0)[groups]
        others = np.flatnonzero((standing < factor * (self._caps - self._counts)[groups]) & ~owed)
        listed = rows[np.concatenate([np.flatnonzero(owed), others[: max(0, factor * budget - owed.sum())]])]
        return np.sort(listed)

    def _close(self, groups: Mask) -> None:
        """Forbid `groups`, and once the rest of the budget is owed, all groups that are owed nothing."""
        owed = np.maximum(self._quotas - self._counts, 0)
        if 0 < owed.sum() >= self.budget - len(self.taken):
            groups = groups | (owed == 0)
        if groups.any():
            self._allowed &= ~groups[self._group_of]

    def _per_group(self, name: str, counts: Mapping[Any, int], default: int) -> npt.NDArray[np.int64]:
        values = np.full(len(self._labels), default, np.int64)
        position = {label: place for place, label in enumerate(self._labels)}
        for label, count in counts.items():
            if require_integer(f"{name} of {label!r}", count) < 0:
                raise ValueError(f"{name}: needs 0 or more of group {label!r}, got {count}")
            if label in position:
                values[position[label]] = count
            elif name == "quota" and count:
                raise ValueError(f"quota: group {label!r} has no candidates, needs {count}")
        return values

    def _require_caps(self, given: Constraints) -> npt.NDArray[np.int64]:
        if given.cap is None or isinstance(given.cap, Mapping):
            caps = self._per_group("cap", given.cap or {}, len(self._group_of))
        else:
            caps = np.full(len(self._labels), require_integer("cap", given.cap), np.int64)
            if caps[0] < 1:
                raise ValueError(f"cap: needs 1 or more, got {given.cap}")
        over = np.flatnonzero(self._quotas > caps)
        if over.size:
            raise ValueError(f"quota: {self._says(over[0], self._quotas)}, and its cap is {caps[over[0]]}")
        if given.quota_is_exact:
            named = np.isin(
                np.arange(len(caps)), [self._labels.index(k) for k in given.quota or {} if k in self._labels]
            )
            caps = np.where(named, self._quotas, caps)
        return caps

    def _says(self, group: int, counts: npt.NDArray[np.int64]) -> str:
        return f"group {self._labels[group]!r} needs {counts[group]}"

    def _forbid(self, rows: Mask, what: str) -> None:
        count = int((rows & self._allowed).sum())
        self._allowed &= ~rows
        if count:
            self._reasons.append(f"{what} ({count} rows)")

    def _require_pins(self, pinned: npt.NDArray[np.int64]) -> None:
        if len(pinned) > self.budget:
            raise ValueError(f"pinned: needs at most the budget of {self.budget} rows, got {len(pinned)}")
        forbidden = pinned[~self._allowed[pinned]]
        if forbidden.size:
            raise ValueError(f"pinned: row {forbidden[0]} is excluded too")
        counts = np.bincount(self._group_of[pinned], minlength=len(self._labels))
        over = np.flatnonzero(counts > self._caps)
        if over.size:
            label, cap = self._labels[over[0]], self._caps[over[0]]
            raise ValueError(f"pinned: {counts[over[0]]} rows are of group {label!r}, its cap is {cap}")

    def _require_possible(self, pinned: npt.NDArray[np.int64]) -> None:
        """Refuse what no strategy could pick, before any picks; pinned rows are possible whatever forbids them."""
        open_ = self._allowed | _mask(len(self._allowed), pinned)
        there = np.bincount(self._group_of[open_], minlength=len(self._labels))
        short = np.flatnonzero(self._quotas > there)
        if short.size:
            raise ValueError(
                f"quota: {self._says(short[0], self._quotas)}, {there[short[0]]} are possible{self._why()}"
            )
        needed = np.maximum(self._quotas, np.bincount(self._group_of[pinned], minlength=len(self._labels)))
        if needed.sum() > self.budget:
            raise ValueError(f"quota: groups and pinned rows need {needed.sum()} picks, the budget is {self.budget}")
        possible = int(np.minimum(there, self._caps).sum())
        if (self._caps < there).any():
            self._reasons.append(f"cap ({int(np.maximum(there - self._caps, 0).sum())} rows)")
        if possible < self.budget:
            raise ValueError(f"budget: {possible} picks are possible, got {self.budget}{self._why()}")

    def _require_rest(self) -> None:
        """Refuse to go on once the distances to keep leave too few rows."""
        there = np.bincount(self._group_of[self._allowed], minlength=len(self._labels))
        room = int(np.minimum(there, self._caps - self._counts).sum())
        short = np.flatnonzero(self._quotas - self._counts > there)
        if not short.size and room >= self.budget - len(self.taken):
            return
        self._reasons.append(f"minimum_distance {self._distance}")
        if short.size:
            possible = self._counts[short[0]] + there[short[0]]
            says = f"{self._says(short[0], self._quotas)}, {possible} are possible at most"
            raise ValueError(f"quota: {says}{self._why()}{GREEDY} pin rows of that group")
        says = f"{len(self.taken) + room} picks are possible at most, got {self.budget}"
        raise ValueError(f"budget: {says}{self._why()}{GREEDY} a smaller budget")

    def _why(self) -> str:
        return f"; stopped by {', '.join(self._reasons)}" if self._reasons else ""


def _require_distance(distance: float | None, pool: Floats | None) -> float:
    if distance is None:
        return 0.0
    if not (np.isfinite(distance) and distance > 0):
        raise ValueError(f"minimum_distance: needs a finite number above 0, got {distance!r}")
    if pool is None:
        raise ValueError("minimum_distance: needs pool, the features to measure it in")
    return float(distance)


def _require_groups(given: Constraints, rows: int) -> tuple[list[Label], npt.NDArray[np.int64]]:
    """The labels there are, and the position of each row's among them (n,)."""
    if given.groups is None:
        if given.cap is not None or given.quota:
            raise ValueError(f"groups: {'cap' if given.cap is not None else 'quota'} needs the group of each row")
        return [""], np.zeros(rows, np.int64)
    if isinstance(given.groups, list | tuple) and all(isinstance(label, str) for label in given.groups):
        return _number_texts(given.groups, rows)
    groups = np.asarray(given.groups)
    if groups.shape != (rows,) or groups.dtype.kind not in "iuUS":
        raise ValueError(f"groups: needs {rows} integers or strings, got {groups.dtype} {groups.shape}")
    labels, positions = np.unique(groups, return_inverse=True)
    return labels.tolist(), positions.astype(np.int64)


def _number_texts(groups: Sequence[Any], rows: int) -> tuple[list[Label], npt.NDArray[np.int64]]:
    """The same of texts, of which NumPy would give each the width of the longest."""
    if len(groups) != rows:
        raise ValueError(f"groups: needs {rows} integers or strings, got {len(groups)}")
    labels = sorted(set(groups))
    position = {label: place for place, label in enumerate(labels)}
    return labels, np.fromiter((position[label] for label in groups), np.int64, rows)


def require_rows(name: str, given: Sequence[int] | npt.NDArray[Any], rows: int) -> npt.NDArray[np.int64]:
    """`given` as row numbers below `rows`. Raises ValueError naming `name`; pinned rows are named once each."""
    positions = np.asarray(given) if len(given) else np.empty(0, np.int64)
    if positions.ndim != 1 or positions.dtype.kind not in "iu":
        raise ValueError(f"{name}: needs row numbers, got {positions.dtype} {positions.shape}")
    wrong = positions[(positions < 0) | (positions >= rows)]
    if wrong.size:
        raise ValueError(f"{name}: needs rows 0 to {rows - 1}, got {wrong[0]}")
    if name == "pinned" and len(np.unique(positions)) < len(positions):
        raise ValueError("pinned: names a row twice")
    return positions.astype(np.int64)


def _places_within(groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many earlier entries are of the same group, (n,)."""
    order = np.argsort(groups, kind="stable")
    ends = np.cumsum(np.bincount(groups)) if len(groups) else np.empty(0, np.int64)
    starts = np.concatenate([[0], ends])[groups[order]]
    places = np.empty(len(groups), np.int64)
    places[order] = np.arange(len(groups)) - starts
    return places


def _mask(rows: int, positions: npt.NDArray[np.int64]) -> Mask:
    mask = np.zeros(rows, np.bool_)
    mask[positions] = True
    return mask
