"""What sources list: of each image what is known before it is decoded, and the pictures, in the same order."""

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from winnow.datasets.decode import Picture, Unreadable, resolve
from winnow.domain import Role, Source
from winnow.errors import SHOWN, InvalidInput

NO_LABEL = "(no label)"
"""What counts call the samples without one; no label may read so."""
ROLES = tuple(Role)
"""A role's number is its place here."""
ROLE_NUMBERS = {role: number for number, role in enumerate(ROLES)}
Allow = Callable[[Path], None]
"""Raises PathForbidden for a resolved path outside the allowed roots."""
Rows = NDArray[np.int64]


class Entry(NamedTuple):
    """What is known of an image before it is decoded. `key` is unique within its source."""

    key: str
    role: Role
    label: str | None = None
    group: str | None = None
    source: int = 0


@dataclass(frozen=True, eq=False)
class Words:
    """A column of text whose values repeat: `codes` int32 (n,) into `words`, which are all different; -1 is none."""

    codes: NDArray[np.int32]
    words: tuple[str, ...]

    @classmethod
    def of(cls, numbers: dict[str | None, int], codes: "array[int]") -> Self:
        """Words by the numbers that they were given, none of them by -1, and the numbers in the order of the rows."""
        return cls(np.array(codes, np.int32), tuple(word for word in numbers if word is not None))

    def __iter__(self) -> Iterator[str | None]:
        texts = (*self.words, None)
        return (texts[code] for code in self.codes.data)

    def take(self, rows: Rows) -> "Words":
        return Words(self.codes[rows], self.words)

    def renamed(self, names: Sequence[str]) -> "Words":
        """Each word under the name in its place; two may become one."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        recoded = np.array([*(numbers[name] for name in names), -1], np.int32)
        return Words(recoded[self.codes], tuple(numbers))

    def used(self) -> list[str]:
        """The words that stand in a row, in order."""
        return sorted(self.words[code] for code in np.unique(self.codes) if code >= 0)


@dataclass(frozen=True, eq=False)
class Entries:
    """Entries as columns: an object for each of ten million would take gigabytes.

    `roles` uint8 (n,) are numbers of ROLES, `sources` int32 (n,).
    """

    keys: list[str]
    roles: NDArray[np.uint8]
    labels: Words
    groups: Words
    sources: NDArray[np.int32]

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Self:
        keys: list[str] = []
        roles, sources = array("B"), array("i")
        labels, groups = array("i"), array("i")
        label_numbers: dict[str | None, int] = {None: -1}
        group_numbers: dict[str | None, int] = {None: -1}
        for key, role, label, group, source in entries:
            keys.append(key)
            roles.append(ROLE_NUMBERS[role])
            labels.append(label_numbers.setdefault(label, len(label_numbers) - 1))
            groups.append(group_numbers.setdefault(group, len(group_numbers) - 1))
            sources.append(source)
        columns = Words.of(label_numbers, labels), Words.of(group_numbers, groups)
        return cls(keys, np.array(roles, np.uint8), *columns, np.array(sources, np.int32))

    @classmethod
    def join(cls, parts: Sequence["Entries"]) -> "Entries":
        """All of them, one behind the other, each with the number of its source before the key: a key is unique then.

        A single part stays as it is.
        """
        if len(parts) == 1:
            return parts[0]
        return cls(
            [f"{source}/{key}" for part in parts for key, source in zip(part.keys, part.sources.data, strict=True)],
            np.concatenate([part.roles for part in parts]),
            _join([part.labels for part in parts]),
            _join([part.groups for part in parts]),
            np.concatenate([part.sources for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Entry]:
        roles = (ROLES[number] for number in self.roles.data)
        return map(Entry, self.keys, roles, self.labels, self.groups, self.sources.data)

    def take(self, rows: Rows) -> "Entries":
        """These rows, in this order."""
        keys = [self.keys[row] for row in rows.data]
        return Entries(keys, self.roles[rows], self.labels.take(rows), self.groups.take(rows), self.sources[rows])

    def in_order_of_keys(self) -> Rows:
        """The rows that `take` would sort by key."""
        return np.array(sorted(range(len(self)), key=self.keys.__getitem__), np.int64)

    def with_roles(self, roles: NDArray[np.uint8]) -> "Entries":
        return replace(self, roles=roles)


@dataclass(frozen=True)
class Listing:
    """The entries of a source and, on demand, their pictures from a row on: as many, in the same order."""

    entries: Entries
    pictures: Callable[[int], Iterator[Picture]]


def require_file(path: Path, field: str, what: str) -> None:
    """Raise InvalidInput unless `path` is a file: `what` is not there, or it cannot be looked at."""
    try:
        is_there = path.is_file()
    except OSError as error:  # no permission, a name too long
        raise InvalidInput(field, f"{what} {path} cannot be read: {error.strerror}") from None
    if not is_there:
        raise InvalidInput(field, f"no {what} {path}")


def require_splits(source: Source, number: int, found: Collection[str]) -> None:
    """Raise InvalidInput for a word of `source.splits` that none of the splits `found` bears: passed over unsaid, it
    would leave roles as they were.
    """
    absent = next((word for word in source.splits if word not in found), None)
    if absent is not None:
        hint = "none: columns.role names the column that holds them" if source.kind == "manifest" else "none"
        shown = ", ".join(list(found)[:SHOWN]) or hint
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise InvalidInput(f"sources.{number}.splits", f"no split {absent!r}; there are {shown}{more}")


def allow_link(path: Path, allow: Allow) -> None:
    """Raise PathForbidden when the link `path` leads out of the allowed roots."""
    try:
        target = resolve(path)
    except Unreadable:
        return  # a link to itself leads nowhere; reading it gives the reason, under the dataset's policy
    allow(target)


def _join(columns: Sequence[Words]) -> Words:
    words = tuple(dict.fromkeys(word for column in columns for word in column.words))
    number = {word: at for at, word in enumerate(words)}
    codes = [np.array([*(number[word] for word in column.words), -1], np.int32)[column.codes] for column in columns]
    return Words(np.concatenate(codes), words)
