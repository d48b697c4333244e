"""Entries as columns: what goes in comes out, whatever is taken, renamed or joined."""

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from winnow.datasets.entries import ROLE_NUMBERS, Entries, Entry, Words
from winnow.datasets.manifest import first_repeated
from winnow.domain import Role

words = st.sampled_from(["a", "b", "é", "10", "9", ""])
rows = st.lists(
    st.builds(
        Entry, st.text(max_size=3), st.sampled_from(Role), st.none() | words, st.none() | words, st.integers(0, 3)
    ),
    max_size=30,
)


@given(rows)
def test_what_goes_in_comes_out(given_rows: list[Entry]) -> None:
    assert list(Entries.of(given_rows)) == given_rows


@given(rows, st.data())
def test_rows_are_taken_in_the_order_asked(given_rows: list[Entry], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(given_rows) - 1), max_size=9)) if given_rows else []
    taken = Entries.of(given_rows).take(np.array(chosen, np.int64))
    assert list(taken) == [given_rows[row] for row in chosen]
    assert taken.labels.used() == sorted({given_rows[row].label for row in chosen} - {None})


@given(rows)
def test_keys_are_ordered_as_text(given_rows: list[Entry]) -> None:
    entries = Entries.of(given_rows)
    assert list(entries.take(entries.in_order_of_keys())) == sorted(given_rows, key=lambda entry: entry.key)


@given(rows, rows)
def test_parts_are_joined_with_their_source_before_the_key(first: list[Entry], second: list[Entry]) -> None:
    joined = Entries.join([Entries.of(first), Entries.of(second)])
    assert list(joined) == [entry._replace(key=f"{entry.source}/{entry.key}") for entry in first + second]
    alone = Entries.of(first)
    assert Entries.join([alone]) is alone


@given(rows, st.fixed_dictionaries(dict.fromkeys(["a", "b", "é", "10", "9", ""], words)))
def test_two_words_may_become_one(given_rows: list[Entry], names: dict[str, str]) -> None:
    labels = Entries.of(given_rows).labels
    renamed = labels.renamed([names[word] for word in labels.words])
    assert list(renamed) == [None if entry.label is None else names[entry.label] for entry in given_rows]
    assert len(set(renamed.words)) == len(renamed.words)


def test_a_column_without_words_is_none_throughout() -> None:
    column = Words(np.full(3, -1, np.int32), ())
    assert list(column) == [None, None, None] and column.used() == []


@given(
    st.lists(st.sampled_from("abcdef"), max_size=8), st.sampled_from([hash, lambda path: 0, lambda path: path < "c"])
)
def test_the_first_repeated_path_is_found_whatever_the_hash(paths: list[str], digest: Callable[[str], int]) -> None:
    wanted = next((row for row, path in enumerate(paths) if path in paths[:row]), None)
    assert first_repeated(np.array([digest(path) for path in paths], np.int64), paths.__getitem__) == wanted


def test_a_role_has_a_number() -> None:
    assert Entries.of([Entry("x", role) for role in Role]).roles.tolist() == [ROLE_NUMBERS[role] for role in Role]
