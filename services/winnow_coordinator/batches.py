"""The batch that a round added to S^t, in the formats that people's tools read: a page at a time, however large."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib import format as npy
from pydantic_core import to_json
from sqlalchemy.orm import Session

from winnow.csv_lines import csv_lines
from winnow.domain import Arm, Role
from winnow.errors import WinnowError
from winnow.negotiation import negotiate
from winnow.store import Database, datasets, experiments, picks, rounds
from winnow_coordinator.schemas import PickView

PAGE = 5000
"""Picks that are read, rendered and held at a time."""
FIELDS = tuple(PickView.model_fields)
Row = tuple[int, int, str, float]
"""A pick's `FIELDS`: rank, idx, key, score."""
Pages = Iterator[Sequence[Row]]


class CutShort(WinnowError):
    """What a batch belongs to was removed while it was sent. Its answer breaks off: a shorter one would look whole."""

    code = "cut-short"

    def __init__(self, batch: "Batch", sent: int) -> None:
        words = f"was removed while its selection was sent: {sent} of {batch.size} picks"
        super().__init__(f"round {batch.number} of experiment {batch.experiment_id} {words}")


@dataclass(frozen=True)
class Batch:
    """`size` picks in the order of picking, or, if `is_pool`, the whole pool by idx: round 0 of the `full` arm."""

    experiment_id: str
    dataset_id: str
    number: int
    size: int
    is_pool: bool

    def pages(self, database: Database) -> Pages:
        """All of them. Each page is a read of its own: a client that takes its time holds nothing.

        Raises CutShort.
        """
        sent, last = 0, (-1, -1, "", 0.0)
        while sent < self.size:
            with database.read() as session:
                rows = self._behind(session, last, min(PAGE, self.size - sent))
            if not rows:
                raise CutShort(self, sent)
            yield rows
            sent, last = sent + len(rows), rows[-1]

    def _behind(self, session: Session, last: Row, limit: int) -> list[Row]:
        rank, idx, *_ = last
        if not self.is_pool:
            return picks.page(session, self.experiment_id, self.dataset_id, self.number, after=rank, limit=limit)
        samples = datasets.keys_page(session, self.dataset_id, Role.POOL, after=idx, limit=limit)
        return [(place, idx, key, 0.0) for place, (idx, key) in enumerate(samples, rank + 1)]


def of_round(session: Session, experiment_id: str, number: int) -> Batch:
    """The batch of round `number`. Raises NotFound."""
    experiment = experiments.get(session, experiment_id)
    is_full = experiment.spec["arm"] == Arm.FULL
    size = 0 if is_full else picks.count(session, experiment_id, number)
    if not size:
        round = rounds.get(session, experiment_id, number)
        size = round.samples if is_full and number == 0 else 0
    return Batch(experiment_id, experiment.dataset_id, number, size, is_full)


def render(batch: Batch, database: Database, accept: str | None) -> tuple[Iterator[bytes], str]:
    """The batch in the first format that `accept` prefers, piece by piece, and its media type. Raises NotAcceptable."""
    media_type = negotiate(accept, FORMATS)
    return FORMATS[media_type](batch.pages(database), batch.size), media_type


def _json(pages: Pages, size: int) -> Iterator[bytes]:
    yield b'{"items":['
    between = b""
    for rows in pages:
        yield between + _as_json([_as_object(row) for row in rows])[1:-1]
        between = b","
    yield b"]}"


def _ndjson(pages: Pages, size: int) -> Iterator[bytes]:
    for rows in pages:
        yield b"".join(_as_json(_as_object(row)) + b"\n" for row in rows)


def _csv(pages: Pages, size: int) -> Iterator[bytes]:
    yield csv_lines([FIELDS]).encode()
    for rows in pages:
        yield csv_lines(rows).encode()


def _npy(pages: Pages, size: int) -> Iterator[bytes]:
    head = io.BytesIO()
    npy.write_array_header_1_0(head, {"descr": "<i8", "fortran_order": False, "shape": (size,)})
    yield head.getvalue()
    for rows in pages:
        yield np.array([idx for _, idx, *_ in rows], "<i8").tobytes()


def _as_object(row: Row) -> dict[str, int | str | float]:
    rank, idx, key, score = row
    return {"rank": rank, "idx": idx, "key": key, "score": score}


def _as_json(value: object) -> bytes:
    """As a model renders itself; making models would take most of the time."""
    return to_json(value, inf_nan_mode="null")


FORMATS: dict[str, Callable[[Pages, int], Iterator[bytes]]] = {
    "application/json": _json,
    "application/x-ndjson": _ndjson,
    "text/csv": _csv,
    "application/x-npy": _npy,
}
