"""The selected set S^t. A pick's `round` is the first that trains on it; round 0's are S^0."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select
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


def count(session: Session, experiment_id: str, round: int) -> int:
    """How many a batch has."""
    return session.scalar(select(func.count()).where(Pick.experiment_id == experiment_id, Pick.round == round)) or 0


def page(
    session: Session, experiment_id: str, dataset_id: str, round: int, *, after: int, limit: int
) -> list[tuple[int, int, str, float]]:
    """One batch by rank, `limit` ranks from above `after` on, as (rank, idx, the sample's key, score).

    No plan reads more than that: ranks have no gaps, and each key is looked up by itself. A join may read all samples,
    LIMIT all picks behind `after`, to sort them.
    """
    key = select(Sample.key).where(Sample.dataset_id == dataset_id, Sample.idx == Pick.sample_idx).scalar_subquery()
    wanted = (
        select(Pick.rank, Pick.sample_idx, key, Pick.score)
        .where(Pick.experiment_id == experiment_id, Pick.round == round)
        .where(Pick.rank > after, Pick.rank <= after + limit)
    )
    return sorted((rank, idx, key, score) for rank, idx, key, score in session.execute(wanted))
