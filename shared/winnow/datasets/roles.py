"""Which sample may be used for what: the draws of a dataset, and the rules that its roles must keep."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.datasets.entries import Entry
from winnow.domain import LabelledDraw, Role, derive_seed
from winnow.errors import InvalidInput

_HELD_OUT = (Role.VALIDATION, Role.TEST)
_NAMES_SHOWN = 5


def assign(entries: Sequence[Entry], draws: Sequence[LabelledDraw]) -> tuple[list[Role], list[dict[str, Any]]]:
    """The role of each entry after the draws, in their order, and for each draw what it took.

    A draw chooses among samples that have a label: all roles but the pool need one. The draw's own seed decides,
    with its place in the list, so that two draws of one seed differ.

    Raises InvalidInput: an empty pool, a draw larger than what there is, a labelled or held-out sample without a
    label, a group on both sides of a split.
    """
    roles = [entry.role for entry in entries]
    taken = [_draw(entries, roles, draw, number) for number, draw in enumerate(draws)]
    require_rules(entries, roles)
    return roles, taken


def require_rules(entries: Sequence[Entry], roles: Sequence[Role]) -> None:
    """Raise InvalidInput unless the roles can be trained and evaluated on."""
    if Role.POOL not in roles:
        raise InvalidInput("sources", "the pool is empty: no sample has role pool after the draws")
    for entry, role in zip(entries, roles, strict=True):
        if role is not Role.POOL and entry.label is None:
            raise InvalidInput("sources", f"{entry.key} has role {role} and no label; give it one, or role pool")
    _require_whole_groups(entries, roles)


def _require_whole_groups(entries: Sequence[Entry], roles: Sequence[Role]) -> None:
    """Pool and labelled samples may share a group (the method sees both); held-out ones share theirs with no other."""
    sides: dict[str, set[Role]] = defaultdict(set)
    for entry, role in zip(entries, roles, strict=True):
        if entry.group is not None:
            sides[entry.group].add(role)
    split = sorted(group for group, found in sides.items() if len(found) > 1 and found & set(_HELD_OUT))
    if split:
        shown = "; ".join(
            f"group {group} is both in {' and '.join(role for role in Role if role in sides[group])}"
            for group in split[:_NAMES_SHOWN]
        )
        more = f"; and {len(split) - _NAMES_SHOWN} more groups" if len(split) > _NAMES_SHOWN else ""
        raise InvalidInput("sources", f"{shown}{more}. Give all samples of a group one side of the split")


def _draw(entries: Sequence[Entry], roles: list[Role], draw: LabelledDraw, number: int) -> dict[str, Any]:
    """Change `roles` in place and say what was taken."""
    candidates = np.array([at for at, role in enumerate(roles) if _may_be_drawn(entries[at], role, draw)], np.int64)
    rng = np.random.default_rng(derive_seed(draw.seed, "draw", number))
    whole_groups = draw.role in _HELD_OUT and any(entries[at].group is not None for at in candidates)
    if whole_groups:
        candidates = _of_undivided_groups(entries, roles, candidates)
    if draw.count > len(candidates):
        whole = " in groups that can move whole" if whole_groups else ""
        reason = f"asks for {draw.count} of {draw.from_role}; {len(candidates)} with a label are there{whole}"
        raise InvalidInput(f"draws.{number}.count", reason)
    choose = _choose_groups if whole_groups else _choose_patches
    chosen = choose(entries, candidates, draw, rng)
    for at in chosen:
        roles[at] = draw.role
    groups = {entries[at].group for at in chosen} - {None}
    return draw.model_dump(mode="json") | {"taken": len(chosen), "groups": len(groups), "whole_groups": whole_groups}


def _may_be_drawn(entry: Entry, role: Role, draw: LabelledDraw) -> bool:
    needs_label = draw.role is not Role.POOL or draw.by == "stratum"
    in_source = draw.source is None or entry.source == draw.source
    return role is draw.from_role and in_source and (entry.label is not None or not needs_label)


def _of_undivided_groups(
    entries: Sequence[Entry], roles: Sequence[Role], candidates: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Those candidates whose whole group are candidates: another role, source or a missing label keeps a group here."""
    sizes = Counter(entry.group for entry in entries)
    here = Counter(entries[at].group for at in candidates)
    whole = [
        at for at in candidates if entries[at].group is None or here[entries[at].group] == sizes[entries[at].group]
    ]
    return np.array(whole, np.int64)


def _choose_patches(
    entries: Sequence[Entry], candidates: NDArray[np.int64], draw: LabelledDraw, rng: np.random.Generator
) -> NDArray[np.int64]:
    if draw.by == "random":
        return np.sort(rng.choice(candidates, draw.count, replace=False))
    strata = _by_label(entries, candidates)
    shares = quotas([len(stratum) for stratum in strata.values()], draw.count)
    parts = [rng.choice(stratum, share, replace=False) for stratum, share in zip(strata.values(), shares, strict=True)]
    return np.sort(np.concatenate(parts))


def _choose_groups(
    entries: Sequence[Entry], candidates: NDArray[np.int64], draw: LabelledDraw, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Whole groups until `count` is reached: in random order, or each time the one that brings the labels nearest."""
    members: dict[str, list[int]] = defaultdict(list)
    for at in candidates.tolist():
        members[entries[at].group or f"\0{at}"].append(at)  # a sample without a group is its own
    groups = [members[name] for name in sorted(members)]
    order = [int(at) for at in rng.permutation(len(groups))]
    if draw.by == "stratum":
        order = _nearest_labels(entries, candidates, groups, order, draw.count)
    chosen: list[int] = []
    for at in order:
        if len(chosen) >= draw.count:
            break
        chosen += groups[at]
    return np.array(sorted(chosen), np.int64)


def _nearest_labels(
    entries: Sequence[Entry], candidates: NDArray[np.int64], groups: list[list[int]], order: list[int], count: int
) -> list[int]:
    """Groups in the order that keeps the label counts nearest to their quotas, greedily; ties as in `order`."""
    strata = _by_label(entries, candidates)
    column = {label: at for at, label in enumerate(strata)}
    wanted = np.array(quotas([len(stratum) for stratum in strata.values()], count), np.float64)  # (labels,)
    table = np.zeros((len(groups), len(column)))  # (groups, labels)
    for row, at in enumerate(order):
        for sample in groups[at]:
            table[row, column[entries[sample].label or ""]] += 1
    left, picked = np.ones(len(groups), bool), list[int]()
    while wanted.sum() > 0 and left.any():
        miss = np.where(left, ((wanted - table) ** 2).sum(axis=1), np.inf)
        best = int(miss.argmin())
        wanted, left[best] = wanted - table[best], False
        picked.append(order[best])
    return picked


def _by_label(entries: Sequence[Entry], candidates: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    strata: dict[str, list[int]] = defaultdict(list)
    for at in candidates.tolist():
        strata[entries[at].label or ""].append(at)
    return {label: np.array(strata[label], np.int64) for label in sorted(strata)}


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
