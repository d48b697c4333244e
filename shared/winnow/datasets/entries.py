"""What a source lists: one entry for each image, and the pictures behind them, in the same order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from winnow.datasets.decode import Picture, Unreadable, resolve
from winnow.domain import Role
from winnow.errors import InvalidInput

NO_LABEL = "(no label)"
"""What counts call the samples without one; no label may read so."""
Allow = Callable[[Path], None]
"""Raises PathForbidden for a resolved path outside the allowed roots."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of an image before it is decoded. `key` is unique within its source."""

    key: str
    role: Role
    label: str | None = None
    group: str | None = None
    source: int = 0


@dataclass(frozen=True)
class Listing:
    """The entries of a source and, on demand, their pictures: as many, in the same order."""

    entries: list[Entry]
    pictures: Callable[[], Iterator[Picture]]


def require_file(path: Path, field: str, what: str) -> None:
    """Raise InvalidInput unless `path` is a file: `what` is not there, or it cannot be looked at."""
    try:
        is_there = path.is_file()
    except OSError as error:  # no permission, a name too long
        raise InvalidInput(field, f"{what} {path} cannot be read: {error.strerror}") from None
    if not is_there:
        raise InvalidInput(field, f"no {what} {path}")


def allow_link(path: Path, allow: Allow) -> None:
    """Raise PathForbidden when the link `path` leads out of the allowed roots."""
    try:
        target = resolve(path)
    except Unreadable:
        return  # a link to itself leads nowhere; reading it gives the reason, under the dataset's policy
    allow(target)
