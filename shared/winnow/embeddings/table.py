"""Picks as the columns of a table, for every format that they are written in."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from winnow.embeddings.pool import Part

Columns = dict[str, list[Any]]


def tabulate(indices: list[int], scores: list[float], origins: list[dict[str, Any]] | None) -> Columns:
    """rank, row and score of each pick; file, file_row, x, y and key where the origins have them.

    Args:
        indices: (b,) rows of the pool in the order of picking. scores: (b,).
        origins: (b,) as `origins_of` gives them, or None where the pool came from no file.
    """
    columns: Columns = {"rank": list(range(len(indices))), "row": indices, "score": scores}
    if not origins:
        return columns
    columns["file"] = [one["file"] for one in origins]
    columns["file_row"] = [one["row"] for one in origins]
    if any("coords" in one for one in origins):
        both = [one.get("coords", [None, None]) for one in origins]
        columns["x"] = [pair[0] for pair in both]
        columns["y"] = [pair[1] for pair in both]
    if any("key" in one for one in origins):
        columns["key"] = [one.get("key") for one in origins]
    return columns


def origins_of(parts: Sequence[Part], indices: list[int]) -> list[dict[str, Any]]:
    """Where each of the rows `indices` of a pool of `parts` came from."""
    starts = [part.start for part in parts]
    return [parts[bisect_right(starts, row) - 1].origin(row) for row in indices]
