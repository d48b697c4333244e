"""The farthest candidate, found without measuring most of them.

A candidate's distance to its nearest centre only ever shrinks, so an old one is a bound from above for ever, and a
candidate whose bound lies below the largest distance known cannot be next (the lazy evaluation of Minoux,
"Accelerated greedy algorithms", 1978). Only a core of the highest bounds is kept up to date. Whoever enters it
meets all that it missed at once, as one matrix product, and most never meet most centres.
"""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from winnow.selection.batch import Stop
from winnow.selection.distances import Distances, Features, Frame, Indices, Placed, gather, lower_to_point

PICKED = -1.0  # below every distance, so that a picked row is never the farthest, even among duplicates
ROOM = 3 << 15  # values of copied rows, 384 KiB; half as many as candidates where these are more
CORE, LARGEST_CORE = 192, 1024  # rows of the smallest core, and of the largest
BLOCK = 256  # candidates at most that meet at once, and centres that they meet
FIRST_CENTRES = 512  # centres at most that every candidate meets, for its first bound
SCAN = 1 << 11  # bounds that are looked through at once
MARKS = 255  # numbers that a mark can be

# What things cost, in values of a row that a plain pass reads, as timed on two cores: a row's own share of a pass,
# a look through the bounds for each row, a value gathered, a pair of rows in a matrix product and a value of it, a
# value measured.
PER_ROW, PER_BOUND, PER_GATHERED, PER_PAIR, PER_PRODUCT, PER_MEASURED = 16, 45, 4, 10, 1 / 16, 20
TOLERATED = 0.05  # of all the work of a plain pass: what may be lost before bounds are given up

Allowed = npt.NDArray[np.bool_]


class Stopped(Exception):
    """The caller no longer wants the rest."""


class Farthest(NamedTuple):
    """A candidate and its distance to the nearest centre."""

    row: int
    distance: float


class Frontier:
    """Bounds (n,) on the distances of `pool` (n, d) to the nearest of `centres` (m, d) and of the picks.

    Where bounds do not help, as counted in values read, the core becomes the whole pool: a plain pass a pick.

    nearest  (n,) bounds, the distances themselves for those that met every source; PICKED for picks
    mark     (n,) a row was measured against the first `marks[mark]` sources, which are the centres, then the picks
    picks    (budget,) of which there are `picked`
    core     (k,) ascending row numbers of those that met every source; None where that is the whole pool
    rows     (k, d) the core's rows
    outside  the highest bound that is not in the core; PICKED where there is none
    room     (r, d) the core's rows; while it is renewed a block of candidates, and beside it what they meet

    Raises Stopped where `should_stop` says so, in between blocks.
    """

    def __init__(self, pool: Features, centres: Features, budget: int, should_stop: Stop) -> None:
        self.pool = pool
        self.centres = centres
        self.distinct = _distinct_rows(centres)
        self.picks = np.empty(budget, np.int64)
        self.picked = 0
        self.should_stop = should_stop
        self.frame = Frame(pool)
        self.nearest = np.full(len(pool), np.inf, np.float32)
        self.mark = np.zeros(len(pool), np.uint8)
        self.marks = np.zeros(min(budget + 2, MARKS), np.int64)
        self.newest_mark = 0
        rows = max(CORE, min(max(ROOM, len(pool) // 2) // pool.shape[1], LARGEST_CORE))
        self.room = np.empty((max(2, min(rows, len(pool))), pool.shape[1]), np.float32)
        self.block = min(len(self.room) // 2, BLOCK)
        self.next_core = CORE
        self.pass_cost = float(len(pool) * (pool.shape[1] + PER_ROW))
        self.may_lose = TOLERATED * budget * self.pass_cost
        self.spent = 0.0
        self.picks_of_core = 0
        self._empty_core()

    def farthest(self, allowed: Allowed | None = None) -> Farthest | None:
        """The row farthest from its nearest centre, the lowest of equals, of those not picked (and allowed).

        None where there is none. Rows that were not allowed once must not be asked for later, unless `reset`.
        """
        if not self.spent and self.distinct.size:
            self._bound_by_some_centres()
        while True:
            found = self._farthest_of_core(allowed)
            if found and (found.distance, -found.row) >= (self.outside.distance, -self.outside.row):
                return found
            if not found and self.outside.distance == PICKED:
                return None
            self._renew_core(allowed)

    def reset(self) -> None:
        """Forget which rows were allowed."""
        if self.core is not None:
            self._leave_core()

    def pick(self, row: int) -> None:
        """Make `row` a centre and never find it again."""
        self.picks[self.picked] = row
        self.picked += 1
        self.nearest[row] = PICKED
        if self._sources() == 1:  # the first of all centres: every distance is new
            self.mark[:] = self._now()
            lower_to_point(self.nearest, self.pool, self.pool[row])
        elif self.core is None:
            lower_to_point(self.nearest, self.rows, self.pool[row])
        else:
            distances = self.nearest[self.core]
            lower_to_point(distances, self.rows, self.pool[row])
            self.nearest[self.core] = distances
        self.picks_of_core += 1
        self.spent += len(self.rows) * (self.pool.shape[1] + PER_ROW)

    def _farthest_of_core(self, allowed: Allowed | None) -> Farthest | None:
        if not len(self.rows):
            return None
        values = self.nearest if self.core is None else self.nearest[self.core]
        if allowed is not None:
            values = np.where(allowed if self.core is None else allowed[self.core], values, np.float32(PICKED))
        best = int(np.argmax(values))
        if values[best] == PICKED:
            return None
        return Farthest(best if self.core is None else int(self.core[best]), float(values[best]))

    # --- the core -------------------------------------------------------------------------------

    def _empty_core(self) -> None:
        self.core: Indices | None = np.empty(0, np.int64)
        self.rows = self.pool[:0]
        self.outside = Farthest(-1, np.inf)

    def _leave_core(self) -> None:
        """Note that those in the core have met all there are."""
        self.mark[self.core] = self._now()
        self._empty_core()

    def _renew_core(self, allowed: Allowed | None) -> None:
        """A core of the highest bounds there are, up to date."""
        self._leave_core()
        size = self._size_core()
        if size >= len(self.pool):
            self._take_all()
            return
        top = self._highest(size + 1, allowed)
        self.outside = Farthest(len(self.pool), PICKED)
        if len(top) > size:
            last = size - int(np.argmin(self.nearest[top][::-1]))  # of the lowest bounds the highest row
            self.outside = Farthest(int(top[last]), float(self.nearest[top[last]]))
            top = np.delete(top, last)
        for start in range(0, len(top), self.block):
            self._catch_up(top[start : start + self.block])
        self.core, self.rows = top, gather(self.pool, top, self.room)
        self.spent += len(self.pool) * PER_BOUND + self.rows.size * PER_GATHERED

    def _size_core(self) -> int:
        """Larger where cores last for few picks, smaller where for many; all where they cost more than they save."""
        if self.spent > 0.9 * self.picked * self.pass_cost + self.may_lose:
            return len(self.pool)
        if self.picks_of_core < self.next_core // 16:
            self.next_core = min(2 * self.next_core, len(self.room))
        elif self.picks_of_core > self.next_core // 4:
            self.next_core = max(self.next_core // 2, CORE)
        self.picks_of_core = 0
        return self.next_core

    def _take_all(self) -> None:
        for rows in self._blocks():
            self._catch_up(rows)
        self.core, self.rows = None, self.pool
        self.outside = Farthest(len(self.pool), PICKED)

    def _highest(self, count: int, allowed: Allowed | None) -> Indices:
        """The rows (up to `count`,) of the highest bounds, ascending; of equal ones the lowest rows."""
        rows, bounds = np.empty(0, np.int64), np.empty(0, np.float32)
        for start in range(0, len(self.nearest), SCAN):
            part = self.nearest[start : start + SCAN]
            live = part > PICKED if allowed is None else (part > PICKED) & allowed[start : start + SCAN]
            if len(rows) == count:
                live &= part > bounds.min()
            new = np.flatnonzero(live)
            rows, bounds = np.concatenate([rows, start + new]), np.concatenate([bounds, part[new]])
            kept = _largest(bounds, count)
            rows, bounds = rows[kept], bounds[kept]
        return rows

    # --- what a row has missed ------------------------------------------------------------------

    def _catch_up(self, rows: Indices) -> None:
        """Make the bounds of `rows` (k,), a block at most, their distances."""
        centres, met = self.distinct.size, self.marks[self.mark[rows]]
        if centres:  # a bound that is an estimate, of rows that met none: it is no distance
            self.nearest[rows[(met == 0) & (self.nearest[rows] > PICKED)]] = np.inf
            self._meet(rows, met, centres)
        self._meet(rows, met, self._sources())

    def _meet(self, rows: Indices, met: Indices, until: int) -> None:
        """Lower the bounds of `rows` to the distances to the sources up to `until`; of these they met `met` (k,)."""
        stale = np.flatnonzero((met < until) & (self.nearest[rows] > 0))
        if not stale.size:
            return
        first, measured = int(met[stale].min()), 0
        placed, fresh = self.frame.place(self.pool, rows[stale], self.room[: self.block]), self.nearest[rows[stale]]
        for start in range(first, until, self.block):
            if self.should_stop():
                raise Stopped
            measured += self.frame.lower(fresh, placed, self._place_sources(start, min(start + self.block, until)))
        self.nearest[rows[stale]], met[stale] = fresh, until
        if first >= self.distinct.size:  # a plain pass meets the centres as well
            self.spent += stale.size * (until - first) * (PER_PAIR + self.pool.shape[1] * PER_PRODUCT)
            self.spent += measured * self.pool.shape[1] * PER_MEASURED

    def _place_sources(self, start: int, end: int) -> Placed:
        """Sources from `start` up to `end`: all centres, or all picks."""
        first = self.distinct.size
        if start < first:
            return self.frame.place(self.centres, self.distinct[start:end], self.room[self.block :])
        return self.frame.place(self.pool, self.picks[start - first : end - first], self.room[self.block :])

    def _sources(self) -> int:
        return self.distinct.size + self.picked

    def _now(self) -> int:
        """The mark of all sources there are now."""
        if self.marks[self.newest_mark] < self._sources():
            if self.newest_mark + 1 == len(self.marks):  # half as many from now on: some rows met fewer than they did
                kept = self.marks[1::2].copy()  # the first mark stays, and the second: all centres
                self.marks[1 : 1 + len(kept)] = kept
                self.newest_mark = len(kept)
                self.mark += 1
                self.mark //= 2
            self.newest_mark += 1
            self.marks[self.newest_mark] = self._sources()
        return self.newest_mark

    def _bound_by_some_centres(self) -> None:
        """A first bound for every row: some centres are all that most rows ever meet."""
        count = min(FIRST_CENTRES, -(-self.distinct.size // 4))
        chosen = self.distinct[:: -(-self.distinct.size // count)]
        for rows in self._blocks():
            if self.should_stop():
                raise Stopped
            placed, bounds = self.frame.place(self.pool, rows, self.room[: self.block]), self.nearest[rows]
            for first in range(0, len(chosen), self.block):
                some = self.frame.place(self.centres, chosen[first : first + self.block], self.room[self.block :])
                np.minimum(bounds, self.frame.bound(placed, some), out=bounds)
            self.nearest[rows] = bounds
        self.spent = 1.0  # a part of what a plain pass does with centres as well

    def _blocks(self) -> Iterator[Indices]:
        """All rows of the pool, a block at a time."""
        for start in range(0, len(self.pool), self.block):
            yield np.arange(start, min(start + self.block, len(self.pool)))


def _largest(values: Distances, count: int) -> Indices:
    """Positions (up to `count`,) of the largest of `values`, ascending; of equal ones the first."""
    if len(values) <= count:
        return np.arange(len(values))
    least = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > least)
    return np.sort(np.concatenate([above, np.flatnonzero(values == least)[: count - len(above)]]))


def _distinct_rows(centres: Features) -> Indices:
    """The first of each kind of row: equal ones would be ties that no estimate can tell apart."""
    zero = np.float32(0)  # makes -0.0 the same as 0.0
    digests = np.empty(len(centres), np.uint64)
    for number, row in enumerate(centres):
        digests[number] = int.from_bytes(hashlib.blake2b((row + zero).tobytes(), digest_size=8).digest())
    order = np.argsort(digests, kind="stable")  # of equal ones the first comes first
    digests.sort()
    repeats = 1 + np.flatnonzero(digests[1:] == digests[:-1])
    same = [bool((centres[order[at]] == centres[order[at - 1]]).all()) for at in repeats]
    first = np.delete(order, repeats[same]) if any(same) else order
    first.sort()
    return first
