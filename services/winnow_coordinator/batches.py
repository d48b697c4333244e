"""The batch that a round added to S^t, in the formats that people's tools read: a page at a time, however large."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib import format as npy
from sqlalchemy.orm import Session

from winnow.domain import Arm, Role
from winnow.negotiation import CSV, JSON, NDJSON, NPY, negotiate
from winnow.store import Database, datasets, experiments, picks, rounds
from winnow_coordinator import streams
from winnow_coordinator.schemas import PickView
from winnow_coordinator.streams import CutShort

PAGE = 5000
"""Picks that are read, rendered and held at a time."""
FIELDS = tuple(PickView.model_fields)
Row = tuple[int, int, str, float]
"""A pick's `FIELDS`: rank, idx, key, score."""
Pages = Iterator[Sequence[Row]]


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
                words = f"was removed while its selection was sent: {sent} of {self.size} picks"
                raise CutShort(f"round {self.number} of experiment {self.experiment_id} {words}")
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
        yield between + streams.as_json([dict(zip(FIELDS, row, strict=True)) for row in rows])[1:-1]
        between = b","
    yield b"]}"


def _ndjson(pages: Pages, size: int) -> Iterator[bytes]:
    return streams.ndjson(FIELDS, pages)


def _csv(pages: Pages, size: int) -> Iterator[bytes]:
    return streams.csv(FIELDS, pages)


def _npy(pages: Pages, size: int) -> Iterator[bytes]:
    head = io.BytesIO()
    npy.write_array_header_1_0(head, {"descr": "<i8", "fortran_order": False, "shape": (size,)})
    yield head.getvalue()
    for rows in pages:
        yield np.array([idx for _, idx, *_ in rows], "<i8").tobytes()


FORMATS: dict[str, Callable[[Pages, int], Iterator[bytes]]] = {
    JSON: _json,
    NDJSON: _ndjson,
    CSV: _csv,
    NPY: _npy,
}
