"""Roles: draws take what they say, groups stay on one side, and what cannot be evaluated is refused."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from winnow.datasets import roles as rules
from winnow.datasets.entries import ROLES, Entries, Entry
from winnow.datasets.roles import quotas
from winnow.domain import LabelledDraw, Role
from winnow.errors import InvalidInput

POOL, LABELLED, TEST, VALIDATION = Role.POOL, Role.LABELLED, Role.TEST, Role.VALIDATION


def entries(count: int, *, groups: int = 0, role: Role = POOL, source: int = 0) -> list[Entry]:
    """A quarter TUM, the rest STR; groups deal out the samples."""
    return [
        Entry(
            f"{source}-{n}", role, "TUM" if n % 4 == 0 else "STR", f"p{source}-{n % groups}" if groups else None, source
        )
        for n in range(count)
    ]


def assign(rows: list[Entry], draws: list[LabelledDraw]) -> tuple[list[Role], list[dict[str, Any]]]:
    roles, taken = rules.assign(Entries.of(rows), draws)
    return [ROLES[number] for number in roles], taken


def draw(count: int, **more: object) -> LabelledDraw:
    return LabelledDraw.model_validate({"count": count} | more)


def test_a_random_draw_moves_exactly_that_many() -> None:
    roles, taken = assign(entries(100), [draw(30)])
    assert Counter(roles) == {POOL: 70, LABELLED: 30}
    assert (taken[0]["taken"], taken[0]["whole_groups"]) == (30, False)


def test_the_seed_decides_the_draw() -> None:
    first, _ = assign(entries(100), [draw(30, seed=1)])
    assert first == assign(entries(100), [draw(30, seed=1)])[0]
    assert first != assign(entries(100), [draw(30, seed=2)])[0]


def test_a_stratified_draw_keeps_the_proportions() -> None:
    roles, _ = assign(entries(100), [draw(20, by="stratum")])
    chosen = Counter(e.label for e, role in zip(entries(100), roles, strict=True) if role is LABELLED)
    assert chosen == {"TUM": 5, "STR": 15}


def test_a_stratified_draw_gives_a_rare_label_one() -> None:
    rare = [*entries(99), Entry("rare", POOL, "MUC")]
    roles, _ = assign(rare, [draw(3, by="stratum")])
    assert {e.label for e, role in zip(rare, roles, strict=True) if role is LABELLED} == {"TUM", "STR", "MUC"}


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.data())
def test_quotas_add_up_and_fit(sizes: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, sum(sizes)))
    shares = quotas(sizes, count)
    assert sum(shares) == count
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    if count >= len(sizes):
        assert min(shares) >= 1


def test_largest_remainder_by_hand() -> None:
    assert quotas([50, 30, 20], 7) == [4, 2, 1]  # exact 3.5, 2.1, 1.4
    assert quotas([97, 2, 1], 10) == [8, 1, 1]  # exact 9.7, 0.2, 0.1; one each


def test_draws_follow_each_other_and_name_their_source() -> None:
    both = entries(40) + entries(40, source=1)
    roles, _ = assign(both, [draw(10, role="test", source=1), draw(10, source=0), draw(5, role="validation")])
    assert {e.source for e, role in zip(both, roles, strict=True) if role is TEST} == {1}
    assert {e.source for e, role in zip(both, roles, strict=True) if role is LABELLED} == {0}
    assert Counter(roles) == {POOL: 55, TEST: 10, LABELLED: 10, VALIDATION: 5}


@pytest.mark.parametrize("by", ["random", "stratum"])
def test_a_draw_into_test_takes_whole_groups(by: str) -> None:
    all_of_them = entries(120, groups=12)
    roles, taken = assign(all_of_them, [draw(25, role="test", by=by)])
    tested = [e for e, role in zip(all_of_them, roles, strict=True) if role is TEST]
    assert len(tested) == taken[0]["taken"] == 30, "three groups of ten reach 25"
    assert len({e.group for e in tested}) == taken[0]["groups"] == 3


def test_a_stratified_draw_of_groups_keeps_labels_near_their_quotas() -> None:
    pure = [Entry(str(n), POOL, "TUM" if n < 40 else "STR", f"p{n // 10}") for n in range(80)]
    roles, _ = assign(pure, [draw(40, role="test", by="stratum")])
    assert Counter(e.label for e, role in zip(pure, roles, strict=True) if role is TEST) == {"TUM": 20, "STR": 20}


def test_a_group_with_labelled_samples_is_not_drawn_into_test() -> None:
    some = [*entries(20, groups=2), Entry("l", LABELLED, "TUM", "p0-0")]
    roles, _ = assign(some, [draw(10, role="test")])
    assert {e.group for e, role in zip(some, roles, strict=True) if role is TEST} == {"p0-1"}
    with pytest.raises(InvalidInput, match="10 with a label are there in groups that can move whole"):
        assign(some, [draw(11, role="test")])


def test_labelled_patches_may_leave_their_group_in_the_pool() -> None:
    roles, taken = assign(entries(40, groups=4), [draw(11)])
    assert Counter(roles) == {POOL: 29, LABELLED: 11}
    assert not taken[0]["whole_groups"]


@pytest.mark.parametrize(("side", "other"), [(POOL, TEST), (LABELLED, TEST), (POOL, VALIDATION), (VALIDATION, TEST)])
def test_a_group_on_both_sides_is_refused_by_name(side: Role, other: Role) -> None:
    bad = [Entry("x", POOL, "TUM", "p0"), Entry("a", side, "TUM", "p7"), Entry("b", other, "TUM", "p7")]
    with pytest.raises(InvalidInput, match=rf"sources: group p7 is both in {side} and {other}") as caught:
        assign(bad, [])
    assert caught.value.field == "sources"


def test_only_the_first_groups_are_named() -> None:
    bad = entries(40, groups=20) + [Entry(f"t{n}", TEST, "TUM", f"p0-{n}") for n in range(20)]
    with pytest.raises(InvalidInput, match="and 15 more groups"):
        assign(bad, [])


def test_a_draw_larger_than_what_is_there_names_its_field() -> None:
    with pytest.raises(InvalidInput, match="asks for 41 of pool; 40 with a label are there") as caught:
        assign(entries(40), [draw(41)])
    assert caught.value.field == "draws.0.count"


def test_unlabelled_samples_are_not_drawn_into_labelled() -> None:
    mixed = [*entries(10), *(Entry(f"u{n}", POOL) for n in range(50))]
    roles, _ = assign(mixed, [draw(10)])
    assert roles == [LABELLED] * 10 + [POOL] * 50
    with pytest.raises(InvalidInput, match="10 with a label"):
        assign(mixed, [draw(11)])


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(InvalidInput, match="the pool is empty"):
        assign(entries(10), [draw(10)])


@pytest.mark.parametrize("role", [LABELLED, TEST, VALIDATION])
def test_a_role_that_needs_a_label_needs_one(role: Role) -> None:
    with pytest.raises(InvalidInput, match=rf"x has role {role} and no label"):
        assign([*entries(4), Entry("x", role)], [])


def test_a_draw_that_moves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="moves nothing"):
        draw(3, role="pool")
