"""Which sample may be used for what: the draws of a dataset, and the rules that its roles must keep."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.datasets.entries import ROLE_NUMBERS, ROLES, Entries, Rows, Words
from winnow.domain import LabelledDraw, Role, derive_seed
from winnow.errors import InvalidInput

_HELD_OUT = (Role.VALIDATION, Role.TEST)
_NAMES_SHOWN = 5
Roles = NDArray[np.uint8]
"""(n,), numbers of ROLES."""


def assign(entries: Entries, draws: Sequence[LabelledDraw]) -> tuple[Roles, list[dict[str, Any]]]:
    """The role of each entry after the draws, in their order, and for each draw what it took.

    A draw chooses among samples that have a label: all roles but the pool need one. The draw's own seed decides,
    with its place in the list, so that two draws of one seed differ.

    Raises InvalidInput: an empty pool, a draw larger than what there is, a labelled or held-out sample without a
    label, a group on both sides of a split.
    """
    roles = entries.roles.copy()
    taken = [_draw(entries, roles, draw, number) for number, draw in enumerate(draws)]
    require_rules(entries.with_roles(roles))
    return roles, taken


def require_rules(entries: Entries) -> None:
    """Raise InvalidInput unless the roles can be trained and evaluated on."""
    in_pool = entries.roles == ROLE_NUMBERS[Role.POOL]
    if not in_pool.any():
        raise InvalidInput("sources", "the pool is empty: no sample has role pool after the draws")
    bare = np.flatnonzero(~in_pool & (entries.labels.codes < 0))
    if len(bare):
        key, role = entries.keys[bare[0]], ROLES[entries.roles[bare[0]]]
        raise InvalidInput("sources", f"{key} has role {role} and no label; give it one, or role pool")
    _require_whole_groups(entries)


def _require_whole_groups(entries: Entries) -> None:
    """Pool and labelled samples may share a group (the method sees both); held-out ones share theirs with no other."""
    groups = entries.groups
    sides = np.zeros((len(groups.words), len(ROLES)), bool)  # (groups, roles)
    for number in range(len(ROLES)):
        codes = np.unique(groups.codes[entries.roles == number])
        sides[codes[codes >= 0], number] = True
    is_split = (sides.sum(axis=1) > 1) & sides[:, [ROLE_NUMBERS[role] for role in _HELD_OUT]].any(axis=1)
    split = sorted(np.flatnonzero(is_split).tolist(), key=groups.words.__getitem__)
    if split:
        shown = "; ".join(
            f"group {groups.words[at]} is both in {' and '.join(ROLES[number] for number in np.flatnonzero(sides[at]))}"
            for at in split[:_NAMES_SHOWN]
        )
        more = f"; and {len(split) - _NAMES_SHOWN} more groups" if len(split) > _NAMES_SHOWN else ""
        raise InvalidInput("sources", f"{shown}{more}. Give all samples of a group one side of the split")


def _draw(entries: Entries, roles: Roles, draw: LabelledDraw, number: int) -> dict[str, Any]:
    """Change `roles` in place and say what was taken."""
    may_be_drawn = roles == ROLE_NUMBERS[draw.from_role]
    if draw.source is not None:
        may_be_drawn &= entries.sources == draw.source
    if draw.role is not Role.POOL or draw.by == "stratum":
        may_be_drawn &= entries.labels.codes >= 0
    candidates = np.flatnonzero(may_be_drawn)
    rng = np.random.default_rng(derive_seed(draw.seed, "draw", number))
    whole_groups = draw.role in _HELD_OUT and bool((entries.groups.codes[candidates] >= 0).any())
    if whole_groups:
        candidates = _of_undivided_groups(entries.groups, candidates)
    if draw.count > len(candidates):
        whole = " in groups that can move whole" if whole_groups else ""
        reason = f"asks for {draw.count} of {draw.from_role}; {len(candidates)} with a label are there{whole}"
        raise InvalidInput(f"draws.{number}.count", reason)
    choose = _choose_groups if whole_groups else _choose_patches
    chosen = choose(entries, candidates, draw, rng)
    roles[chosen] = ROLE_NUMBERS[draw.role]
    groups = np.unique(entries.groups.codes[chosen])
    taken = {"taken": len(chosen), "groups": int((groups >= 0).sum()), "whole_groups": whole_groups}
    return draw.model_dump(mode="json") | taken


def _of_undivided_groups(groups: Words, candidates: Rows) -> Rows:
    """Those candidates whose whole group are candidates: another role, source or a missing label keeps a group here."""
    here = groups.codes[candidates]
    sizes, found = (np.bincount(codes[codes >= 0], minlength=len(groups.words)) for codes in (groups.codes, here))
    return candidates[(here < 0) | (sizes == found)[here]]


def _choose_patches(entries: Entries, candidates: Rows, draw: LabelledDraw, rng: np.random.Generator) -> Rows:
    if draw.by == "random":
        return np.sort(rng.choice(candidates, draw.count, replace=False))
    strata = _by_word(entries.labels, candidates)
    shares = quotas([len(stratum) for stratum in strata], draw.count)
    parts = [rng.choice(stratum, share, replace=False) for stratum, share in zip(strata, shares, strict=True)]
    return np.sort(np.concatenate(parts))


def _choose_groups(entries: Entries, candidates: Rows, draw: LabelledDraw, rng: np.random.Generator) -> Rows:
    """Whole groups until `count` is reached: in random order, or each time the one that brings the labels nearest."""
    groups = _by_group(entries.groups, candidates)
    order = rng.permutation(len(groups)).tolist()
    if draw.by == "stratum":
        order = _nearest_labels(entries.labels, candidates, groups, order, draw.count)
    reached = np.cumsum([len(groups[at]) for at in order])
    needed = int(np.searchsorted(reached, draw.count)) + 1
    return np.sort(np.concatenate([groups[at] for at in order[:needed]]))


def _by_group(groups: Words, candidates: Rows) -> list[Rows]:
    """The candidates of each group, where one without a group is its own: first those, by the text of their row, then
    groups by name."""
    has_none = groups.codes[candidates] < 0
    alone = sorted(candidates[has_none].tolist(), key=str)
    return [np.array([row]) for row in alone] + _by_word(groups, candidates[~has_none])


def _nearest_labels(labels: Words, candidates: Rows, groups: list[Rows], order: list[int], count: int) -> list[int]:
    """Groups in the order that keeps the label counts nearest to their quotas, greedily; ties as in `order`."""
    strata = _by_word(labels, candidates)
    column = np.full(len(labels.words), -1)
    column[[labels.codes[rows[0]] for rows in strata]] = np.arange(len(strata))
    wanted = np.array(quotas([len(stratum) for stratum in strata], count), np.float64)  # (labels,)
    table = np.zeros((len(groups), len(strata)))  # (groups, labels)
    for row, at in enumerate(order):
        table[row] = np.bincount(column[labels.codes[groups[at]]], minlength=len(strata))
    alike, kinds = np.unique(table, axis=0, return_inverse=True)  # groups with equal labels are as near as each other
    waiting = [deque(rows.tolist()) for rows in _parts(kinds.reshape(-1), np.arange(len(groups)))]
    heads = np.array([rows[0] for rows in waiting])
    picked: list[int] = []
    while wanted.sum() > 0 and len(picked) < len(groups):
        miss = np.where(heads < len(groups), ((wanted - alike) ** 2).sum(axis=1), np.inf)
        nearest = np.flatnonzero(miss == miss.min())
        best = nearest[heads[nearest].argmin()]
        wanted = wanted - alike[best]
        picked.append(order[waiting[best].popleft()])
        heads[best] = waiting[best][0] if waiting[best] else len(groups)
    return picked


def _by_word(column: Words, rows: Rows) -> list[Rows]:
    """The rows of each word that stands in them, by word."""
    if not len(rows):
        return []
    place = np.empty(len(column.words), np.int64)
    place[sorted(range(len(column.words)), key=column.words.__getitem__)] = np.arange(len(column.words))
    return _parts(place[column.codes[rows]], rows)


def _parts(numbers: Rows, rows: Rows) -> list[Rows]:
    """The rows of each number (n,), by number."""
    order = numbers.argsort(kind="stable")
    return np.split(rows[order], np.flatnonzero(np.diff(numbers[order])) + 1)


def quotas(sizes: Sequence[int], count: int) -> list[int]:
    """Split `count` over strata in proportion to their sizes, by largest remainder; each at least 1 where it can.

    Ties go to the first. sum(result) == count and result[i] <= sizes[i], for count <= sum(sizes).
    """
    exact = [count * size / sum(sizes) for size in sizes]
    least = 1 if count >= len(sizes) else 0
    shares = [max(int(share), least) for share in exact]
    while sum(shares) > count:
        over = zip(shares, exact, strict=True)
        shares[_largest([share - want if share > least else -math.inf for share, want in over])] -= 1
    while sum(shares) < count:
        room = zip(shares, exact, sizes, strict=True)
        shares[_largest([want - share if share < size else -math.inf for share, want, size in room])] += 1
    return shares


def _largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda at: (values[at], -at))
