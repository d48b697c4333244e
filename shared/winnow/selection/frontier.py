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
from winnow.selection.distances import Features, Frame, Indices, Placed, Squares, gather, lower_to_point

PICKED = -1.0  # below every distance, so that a picked row is never the farthest, even among duplicates
ROOM = 1 << 17  # values of copied rows, 512 KiB; as many as there are candidates where these are more
CORE, LARGEST_CORE = 256, 1024  # rows of the smallest core, and of the largest
BLOCK = 256  # candidates at most that meet at once, and centres that they meet
FIRST_CENTRES = 512  # centres at most that every candidate meets, for its first bound
SCAN = 1 << 12  # bounds that are looked through at once
MARKS = 1 << 16  # numbers that a mark can be

# What things cost, in values of a row that a plain pass reads, as timed on two cores: a row's own share of a pass,
# a look through the bounds for each row, a value gathered, a pair of rows in a matrix product and a value of it, a
# value measured.
PER_ROW, PER_BOUND, PER_GATHERED, PER_PAIR, PER_PRODUCT, PER_MEASURED = 16, 45, 4, 10, 1 / 16, 20
TOLERATED = 0.05  # of all the work of a plain pass: what may be lost before bounds are given up

Allowed = npt.NDArray[np.bool_]


class Stopped(Exception):
    """The caller no longer wants the rest."""


class Farthest(NamedTuple):
    """A candidate and its squared distance to the nearest centre."""

    row: int
    square: float


class Frontier:
    """Bounds (n,) on the squared distances of `pool` (n, d) to the nearest of `centres` (m, d) and of the picks.

    Where bounds do not help, as counted in values read, the core becomes the whole pool: a plain pass a pick.

    squares  (n,) bounds, exact for those that met every source; PICKED for picks
    mark     (n,) a row was measured against the first `marks[mark]` sources, which are the centres, then the picks
    values, rows, members  the core: exact squares (k,), features (k, d) and ascending row numbers (k,) of it;
             where the core is the whole pool, `values` is `squares`, `rows` is the pool and `members` is None
    outside  the highest bound that is not in the core; PICKED where there is none
    room     (r, d) the core's rows; while it is renewed a block of candidates, and beside it what they meet

    Raises Stopped where `should_stop` says so, in between blocks.
    """

    def __init__(self, pool: Features, centres: Features, budget: int, should_stop: Stop) -> None:
        self.pool = pool
        self.centres = centres
        self.distinct = _distinct_rows(centres)
        self.picks: list[int] = []
        self.should_stop = should_stop
        self.frame = Frame(pool)
        self.squares = np.full(len(pool), np.inf)
        self.mark = np.zeros(len(pool), np.uint16)
        self.marks = [0]
        rows = max(CORE, min(max(ROOM, len(pool)) // pool.shape[1], LARGEST_CORE))
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
            if found and (found.square, -found.row) >= (self.outside.square, -self.outside.row):
                return found
            if not found and self.outside.square == PICKED:
                return None
            self._renew_core(allowed)

    def reset(self) -> None:
        """Forget which rows were allowed."""
        if self.members is not None:
            self._leave_core()

    def pick(self, row: int) -> None:
        """Make `row` a centre and never find it again."""
        self.picks.append(row)
        self.squares[row] = PICKED
        if self.members is not None and self.members.size:
            self.values[self.members == row] = PICKED
        if not self.distinct.size and len(self.picks) == 1:
            self.mark[:] = self._now()  # the first of all centres: every distance is new
            lower_to_point(self.squares, self.pool, self.pool[row])
        else:
            lower_to_point(self.values, self.rows, self.pool[row])
        self.picks_of_core += 1
        self.spent += len(self.values) * (self.pool.shape[1] + PER_ROW)

    def _farthest_of_core(self, allowed: Allowed | None) -> Farthest | None:
        if not len(self.values):
            return None
        values = self.values
        if allowed is not None:
            values = np.where(allowed if self.members is None else allowed[self.members], values, PICKED)
        best = int(np.argmax(values))
        if values[best] == PICKED:
            return None
        return Farthest(best if self.members is None else int(self.members[best]), float(values[best]))

    # --- the core -------------------------------------------------------------------------------

    def _empty_core(self) -> None:
        self.members: Indices | None = np.empty(0, np.int64)
        self.values = np.empty(0)
        self.rows = self.pool[:0]
        self.outside = Farthest(-1, np.inf)

    def _leave_core(self) -> None:
        """Write back what the core knows."""
        self.squares[self.members] = self.values
        self.mark[self.members] = self._now()
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
            last = size - int(np.argmin(self.squares[top][::-1]))  # of the lowest bounds the highest row
            self.outside = Farthest(int(top[last]), float(self.squares[top[last]]))
            top = np.delete(top, last)
        values = self.squares[top]
        for start in range(0, len(top), self.block):
            self._catch_up(values[start : start + self.block], top[start : start + self.block])
        self.members, self.values, self.rows = top, values, gather(self.pool, top, self.room)
        self.spent += len(self.pool) * PER_BOUND + self.rows.size * PER_GATHERED

    def _size_core(self) -> int:
        """Larger where cores last for few picks, smaller where for many; all where they cost more than they save."""
        if self.spent > 0.9 * len(self.picks) * self.pass_cost + self.may_lose:
            return len(self.pool)
        if self.picks_of_core < self.next_core // 16:
            self.next_core = min(2 * self.next_core, len(self.room))
        elif self.picks_of_core > self.next_core // 4:
            self.next_core = max(self.next_core // 2, CORE)
        self.picks_of_core = 0
        return self.next_core

    def _take_all(self) -> None:
        for start, rows in self._blocks():
            self._catch_up(self.squares[start : start + self.block], rows)
        self.members, self.values, self.rows = None, self.squares, self.pool
        self.outside = Farthest(len(self.pool), PICKED)

    def _highest(self, count: int, allowed: Allowed | None) -> Indices:
        """The rows (up to `count`,) of the highest bounds, ascending; of equal ones the lowest rows."""
        rows, bounds = np.empty(0, np.int64), np.empty(0)
        for start in range(0, len(self.squares), SCAN):
            part = self.squares[start : start + SCAN]
            live = part > PICKED if allowed is None else (part > PICKED) & allowed[start : start + SCAN]
            if len(rows) == count:
                live &= part > bounds.min()
            new = np.flatnonzero(live)
            rows, bounds = np.concatenate([rows, start + new]), np.concatenate([bounds, part[new]])
            kept = _largest(bounds, count)
            rows, bounds = rows[kept], bounds[kept]
        return rows

    # --- what a row has missed ------------------------------------------------------------------

    def _catch_up(self, values: Squares, rows: Indices) -> None:
        """Make `values` (k,) of `rows` (k,) of the pool, a block at most, exact."""
        centres, met = self.distinct.size, np.array(self.marks)[self.mark[rows]]
        if centres:
            values[(met == 0) & (values > PICKED)] = np.inf  # a bound that no centre has is not to stay
            self._meet(values, met, rows, centres)
        self._meet(values, met, rows, self._sources())

    def _meet(self, values: Squares, met: Indices, rows: Indices, until: int) -> None:
        """Lower `values` to the distances to the sources up to `until`, of which the rows met so many `met` (k,)."""
        stale = np.flatnonzero((met < until) & (values > 0))
        if not stale.size:
            return
        first, measured = int(met[stale].min()), 0
        placed, fresh = self._place(self.pool, rows[stale]), values[stale]
        for start in range(first, until, self.block):
            if self.should_stop():
                raise Stopped
            measured += self.frame.lower(fresh, placed, self._source_rows(start, min(start + self.block, until)))
        values[stale], met[stale] = fresh, until
        if first >= self.distinct.size:  # a plain pass meets the centres as well
            self.spent += stale.size * (until - first) * (PER_PAIR + self.pool.shape[1] * PER_PRODUCT)
            self.spent += measured * self.pool.shape[1] * PER_MEASURED

    def _source_rows(self, start: int, end: int) -> Placed:
        """Sources from `start` up to `end`: all centres, or all picks."""
        first = self.distinct.size
        if start < first:
            return self._place_beside(self.centres, self.distinct[start:end])
        return self._place_beside(self.pool, np.array(self.picks[start - first : end - first], np.int64))

    def _sources(self) -> int:
        return self.distinct.size + len(self.picks)

    def _now(self) -> int:
        """The mark of all sources there are now."""
        if self.marks[-1] < self._sources():
            if len(self.marks) == MARKS:  # half as many from now on: some rows met fewer than they did
                self.marks = self.marks[::2]
                self.mark //= 2
            self.marks.append(self._sources())
        return len(self.marks) - 1

    def _bound_by_some_centres(self) -> None:
        """A first bound for every row: some centres are all that most rows ever meet."""
        count = min(FIRST_CENTRES, -(-self.distinct.size // 4))
        chosen = self.distinct[:: -(-self.distinct.size // count)]
        for start, rows in self._blocks():
            if self.should_stop():
                raise Stopped
            placed, part = self._place(self.pool, rows), self.squares[start : start + self.block]
            for first in range(0, len(chosen), self.block):
                some = self._place_beside(self.centres, chosen[first : first + self.block])
                np.minimum(part, self.frame.bound(placed, some), out=part)
        self.spent = 1.0  # a part of what a plain pass does with centres as well

    def _blocks(self) -> Iterator[tuple[int, Indices]]:
        """The first row of each block of the pool, and all of its rows."""
        for start in range(0, len(self.pool), self.block):
            yield start, np.arange(start, min(start + self.block, len(self.pool)))

    def _place(self, source: Features, at: Indices) -> Placed:
        return self.frame.place(source, at, self.room[: self.block])

    def _place_beside(self, source: Features, at: Indices) -> Placed:
        return self.frame.place(source, at, self.room[self.block :])


def _largest(values: Squares, count: int) -> Indices:
    """Positions (up to `count`,) of the largest of `values`, ascending; of equal ones the first."""
    if len(values) <= count:
        return np.arange(len(values))
    least = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > least)
    return np.sort(np.concatenate([above, np.flatnonzero(values == least)[: count - len(above)]]))


def _distinct_rows(centres: Features) -> Indices:
    """The first of each kind of row: equal ones would be ties that no estimate can tell apart."""
    zero = np.float32(0)  # makes -0.0 the same as 0.0
    digests = np.empty((len(centres), 2), np.uint64)
    for number, row in enumerate(centres):
        digests[number] = np.frombuffer(hashlib.blake2b((row + zero).tobytes(), digest_size=16).digest(), np.uint64)
    order = np.lexsort(digests.T)  # of equal ones the first comes first
    new = np.ones(len(order), np.bool_)
    new[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    return np.sort(order[new])
