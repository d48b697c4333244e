"""Pages by cursor: a page starts behind the last row seen, so rows that come and go shift nothing."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import Query

from winnow.errors import InvalidInput

Cursor = Annotated[str | None, Query(description="`next` of the page before", max_length=200)]
Limit = Annotated[int, Query(ge=1, le=500, description="Rows in a page")]
Row = TypeVar("Row")


def encode(value: str | int) -> str:
    """An opaque cursor."""
    return base64.urlsafe_b64encode(str(value).encode()).decode().rstrip("=")


def decode(cursor: str | None) -> str | None:
    """What `encode` was given. Raises InvalidInput."""
    if cursor is None:
        return None
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError) as error:
        raise InvalidInput("cursor", f"{cursor!r} is not a cursor; send `next` of the page before") from error


def decode_number(cursor: str | None) -> int:
    """The number in a cursor, -1 without one. Raises InvalidInput."""
    text = decode(cursor)
    if text is None:
        return -1
    if not text.isdecimal() or len(text) > 18:
        raise InvalidInput("cursor", f"{cursor!r} is not a cursor of this list")
    return int(text)


def cut(rows: Sequence[Row], limit: int, position: Callable[[Row], str | int]) -> tuple[list[Row], str | None]:
    """The first `limit` of up to `limit` + 1 rows, and the cursor of the page behind them."""
    shown = list(rows[:limit])
    return shown, encode(position(shown[-1])) if len(rows) > limit else None
