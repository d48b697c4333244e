"""The selected set S^t. A pick's `round` is the first that trains on it; round 0's are S^0."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from winnow.store.engine import insert_rows
from winnow.store.tables import Pick, Sample


def insert(
    session: Session, experiment_id: str, round: int, indices: NDArray[np.int64], scores: Sequence[float]
) -> None:
    """Record a batch in rank order. A sample picked twice is refused by the table's primary key."""
    rows = [
        {"experiment_id": experiment_id, "sample_idx": int(i), "round": round, "rank": rank, "score": float(s)}
        for rank, (i, s) in enumerate(zip(indices, scores, strict=True))
    ]
    insert_rows(session, Pick, rows)


def selected(session: Session, experiment_id: str, *, up_to: int) -> NDArray[np.int64]:
    """S^t, t = `up_to`: ascending idx of everything picked for rounds 0 to t."""
    wanted = select(Pick.sample_idx).where(Pick.experiment_id == experiment_id, Pick.round <= up_to)
    return np.sort(np.fromiter(session.scalars(wanted), np.int64))


def with_keys(session: Session, experiment_id: str, dataset_id: str, round: int) -> list[tuple[int, int, str, float]]:
    """One batch in rank order, as (rank, idx, the sample's key, score)."""
    wanted = (
        select(Pick.rank, Pick.sample_idx, Sample.key, Pick.score)
        .join(Sample, (Sample.dataset_id == dataset_id) & (Sample.idx == Pick.sample_idx))
        .where(Pick.experiment_id == experiment_id, Pick.round == round)
        .order_by(Pick.rank)
    )
    return [(rank, idx, key, score) for rank, idx, key, score in session.execute(wanted)]


def of_round(session: Session, experiment_id: str, round: int) -> list[Pick]:
    """One batch, in rank order."""
    wanted = select(Pick).where(Pick.experiment_id == experiment_id, Pick.round == round).order_by(Pick.rank)
    return list(session.scalars(wanted))
