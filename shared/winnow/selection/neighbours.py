"""Which rows lie how near: FAISS estimates in float32, float64 decides whatever the estimate leaves open.

An estimate is off by a known bound at most. Only pairs that it cannot tell apart are measured again, so that no
answer depends on the number of threads, on the split into blocks or on the matrix product of the machine's BLAS.
"""

from collections.abc import Iterator

import faiss
import numpy as np
import numpy.typing as npt

from winnow.selection.batch import Floats, require_finite, require_floats, row_blocks
from winnow.selection.distances import (
    OVERFLOW,
    ROUNDING,
    UNDERFLOW,
    Features,
    Squares,
    measure,
    rounded_up,
    squares_to_point,
)

Mask = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.int64]

TILE = 1 << 22  # distances held at once: 16 MiB of float32
SMALL_TABLE = 1 << 18  # distances that are not worth waking threads for
SPARE = 8  # neighbours asked for beyond those needed, so that near ties are usually among them


def require_features(name: str, array: npt.ArrayLike) -> Features:
    """`array` as finite float32 (rows, columns); float32 arrays and memmaps stay where they lie.

    Raises ValueError naming `name` for whatever cannot be that.
    """
    values = require_floats(name, array)
    if values.dtype == np.float32:
        return values.view(np.float32)
    with np.errstate(over="ignore"):
        features = values.astype(np.float32)
    require_finite(f"{name} as float32", features)
    return features


def require_centers(centers: npt.ArrayLike | None, width: int) -> Features:
    """The features selected earlier (m, width), m = 0 for None. Raises ValueError naming centers."""
    if centers is None:
        return np.empty((0, width), np.float32)
    known = require_features("centers", centers)
    if known.shape[1] != width:
        raise ValueError(f"centers: rows have {known.shape[1]} features, those of pool have {width}")
    return known


def as_features(block: Floats) -> Features:
    """Rows as contiguous float32, read into memory."""
    return np.ascontiguousarray(block, np.float32)


class Origin:
    """The mean of a pool, about which rows are centred: ||x||² + ||y||² - 2xy is off by a share of the norms."""

    def __init__(self, pool: Floats) -> None:
        total = np.zeros(pool.shape[1])
        for rows in row_blocks(*pool.shape):
            total += pool[rows].sum(axis=0, dtype=np.float64)
        self.mean = (total / max(1, len(pool))).astype(np.float32)

    def centre(self, rows: Features) -> tuple[Features, Squares]:
        """Rows less the mean, (k, d), and their squared norms (k,)."""
        with np.errstate(over="ignore"):
            centred = rows - self.mean
            norms = np.einsum("nd,nd->n", centred, centred)
        return centred, norms.astype(np.float64)

    def slack(self, norms: Squares, others: Squares) -> Squares:
        """A bound (k,) on the error of an estimate between rows of `norms` and any of `others`.

        Norms and product of d terms are off by 2d unit roundoffs of the norms' sum, the centring by 4; this is
        twice that, and infinite where float32 may overflow.
        """
        total, width = norms + others.max(), len(self.mean)
        return np.where(total < OVERFLOW, (width + 16) * 2 * ROUNDING * total + width * UNDERFLOW, np.inf)


def tiles(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Rectangles of at most `TILE` cells that cover a (rows, columns) table, one row of them after the other."""
    height = min(rows, 1024)
    width = max(1, TILE // max(1, height))
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield slice(top, min(top + height, rows)), slice(left, min(left + width, columns))


def possible_pairs(left: Features, right: Features, distance: float, origin: Origin) -> tuple[Mask, Mask]:
    """Tables (k, m): which pairs may be at most `distance` apart, and which of these are for certain.

    Callers keep to `tiles`.
    """
    limit = distance * distance
    (a, a_norms), (b, b_norms) = origin.centre(left), origin.centre(right)
    slack = origin.slack(a_norms, b_norms)
    with np.errstate(over="ignore", invalid="ignore"):
        estimates = (a * np.float32(-2.0)) @ b.T  # (k, m), the squared distances less the norms of left
        estimates += b_norms.astype(np.float32)
        possible = ~(estimates > rounded_up(limit + slack - a_norms)[:, None])
        certain = estimates <= -rounded_up(slack + a_norms - limit)[:, None]
    return possible, certain & possible


def pairs_within(left: Features, right: Features, distance: float, origin: Origin) -> tuple[Positions, Positions]:
    """Positions (e,) and (e,) of the rows of `left` (k, d) and `right` (m, d) at most `distance` apart.

    Ordered by left, then right.
    """
    possible, certain = possible_pairs(left, right, distance, origin)
    rows, columns = np.nonzero(possible)
    kept = certain[rows, columns]
    open_ = np.flatnonzero(~kept)
    kept[open_] = pairs_measured(left, right, rows[open_], columns[open_]) <= distance * distance
    return rows[kept], columns[kept]


def pairs_measured(left: Features, right: Features, rows: Positions, columns: Positions) -> Squares:
    """Squared distances (e,) of the pairs left[rows], right[columns], a block of them at a time."""
    squares = np.empty(len(rows))
    for part in row_blocks(len(rows), left.shape[1]):
        squares[part] = measure(left[rows[part]], right[columns[part]])
    return squares


def nearest_squares(queries: Features, rows: Features, count: int, origin: Origin) -> tuple[Squares, Positions]:
    """The `count` smallest squared distances of each query (q, d) to `rows` (m, d), ascending, and where: (q, count).

    The distances are those of float64. Of rows that tie, any may be named.
    """
    (a, a_norms), (b, b_norms) = origin.centre(queries), origin.centre(rows)
    asked = min(count + SPARE, len(rows))
    estimates, found = _propose(a, b, b_norms, asked)  # (q, asked), ascending
    is_open = (found < 0).any(axis=1)  # FAISS says -1 where distances overflow
    found = np.maximum(found, 0)
    squares = pairs_measured(queries, rows, np.repeat(np.arange(len(a)), asked), found.ravel()).reshape(found.shape)
    order = np.argsort(squares, axis=1, kind="stable")[:, :count]
    squares, found = np.take_along_axis(squares, order, 1), np.take_along_axis(found, order, 1)
    if asked < len(rows):
        with np.errstate(invalid="ignore"):
            beyond = estimates[:, -1] - origin.slack(a_norms, b_norms)  # no row that was not found is nearer
            is_open |= (squares[:, -1] > 0) & ~(squares[:, -1] <= beyond)
    for query in np.flatnonzero(is_open):
        all_ = measure(rows, queries[query])
        found[query] = np.argsort(all_, kind="stable")[:count]
        squares[query] = all_[found[query]]
    return squares, found


def _propose(a: Features, b: Features, b_norms: Squares, count: int) -> tuple[Squares, Positions]:
    """Estimates of the `count` smallest squared distances, ascending, and where; small tables without any thread."""
    if len(a) * len(b) > SMALL_TABLE:
        estimates, found = faiss.knn(a, b, count)
        return estimates.astype(np.float64), found.astype(np.int64)
    with np.errstate(over="ignore", invalid="ignore"):
        table = np.einsum("nd,nd->n", a, a)[:, None] - (2 * a) @ b.T + b_norms.astype(np.float32)  # (q, m)
    found = np.argpartition(table, count - 1, axis=1)[:, :count]
    estimates = np.take_along_axis(table, found, 1)
    order = np.argsort(estimates, axis=1)
    return np.take_along_axis(estimates, order, 1).astype(np.float64), np.take_along_axis(found, order, 1)


def nearest_rows(queries: Features, rows: Features, origin: Origin) -> Positions:
    """The nearest of `rows` (m, d) to each query, (q,): the lowest of those that tie."""
    (a, a_norms), (b, b_norms) = origin.centre(queries), origin.centre(rows)
    asked = min(4, len(rows))
    estimates, found = faiss.knn(a, b, asked)
    best = found[:, 0].astype(np.int64)
    if asked == 1:
        return np.zeros(len(a), np.int64)
    with np.errstate(invalid="ignore"):
        near = ~(estimates - estimates[:, :1] > 2 * origin.slack(a_norms, b_norms)[:, None])  # (q, 4)
    for query in np.flatnonzero(near[:, 1]):
        some = np.arange(len(rows)) if near[query, -1] else np.sort(found[query, near[query]])
        best[query] = some[np.argmin(measure(rows[some], queries[query]))]
    return best


def rows_near(pool: Floats, points: Floats, distance: float) -> Mask:
    """(n,) True for the rows of `pool` at most `distance` from one of `points` (m, d)."""
    near = np.zeros(len(pool), np.bool_)
    origin = Origin(pool)
    for rows, columns in tiles(len(pool), len(points)):
        left = as_features(pool[rows])
        near[rows][pairs_within(left, as_features(points[columns]), distance, origin)[0]] = True
    return near


def rows_near_point(pool: Floats, point: Features, distance: float) -> Mask:
    """(n,) True for the rows of `pool` at most `distance` from `point` (d,): one pass, on one thread."""
    near = np.empty(len(pool), np.bool_)
    limit, width = distance * distance, pool.shape[1]
    for rows in row_blocks(*pool.shape):
        block = as_features(pool[rows])
        estimate = squares_to_point(block, point).astype(np.float64)
        off = estimate * (width + 4) * ROUNDING + width * UNDERFLOW
        near[rows] = estimate + off <= limit
        with np.errstate(invalid="ignore"):  # what overflowed is open
            open_ = np.flatnonzero(~near[rows] & ~(estimate - off > limit))
        near[rows][open_] = measure(block[open_], point) <= limit
    return near
