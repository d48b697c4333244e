"""The batch that a round added to S^t, in the formats that people's tools read."""

import csv
import io
from collections.abc import Callable
from typing import BinaryIO, cast

import numpy as np
from sqlalchemy.orm import Session

from winnow.domain import Arm, Role
from winnow.negotiation import negotiate
from winnow.store import datasets, experiments, picks, rounds
from winnow_coordinator.schemas import PickView, SelectionView

Picks = list[PickView]


def of_round(session: Session, experiment_id: str, number: int) -> Picks:
    """The batch of round `number` in the order of picking; the whole pool is round 0's in the `full` arm.

    Raises NotFound.
    """
    experiment = experiments.get(session, experiment_id)
    rounds.get(session, experiment_id, number)
    if experiment.spec["arm"] == Arm.FULL:
        return _pool(session, experiment.dataset_id) if number == 0 else []
    rows = picks.with_keys(session, experiment_id, experiment.dataset_id, number)
    return [PickView(rank=rank, idx=idx, key=key, score=score) for rank, idx, key, score in rows]


def render(batch: Picks, accept: str | None) -> tuple[bytes, str]:
    """The batch in the first format that `accept` prefers, and its media type. Raises NotAcceptable."""
    media_type = negotiate(accept, FORMATS)
    return FORMATS[media_type](batch), media_type


def _pool(session: Session, dataset_id: str) -> Picks:
    indices = datasets.indices(session, dataset_id, Role.POOL)
    keys = datasets.keys(session, dataset_id, Role.POOL)
    both = zip(indices.tolist(), keys, strict=True)
    return [PickView(rank=rank, idx=idx, key=key, score=0.0) for rank, (idx, key) in enumerate(both)]


def _json(batch: Picks) -> bytes:
    return SelectionView(items=batch).model_dump_json().encode()


def _ndjson(batch: Picks) -> bytes:
    return "".join(f"{pick.model_dump_json()}\n" for pick in batch).encode()


def _csv(batch: Picks) -> bytes:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(PickView.model_fields)
    rows.writerows([pick.rank, pick.idx, pick.key, pick.score] for pick in batch)
    return text.getvalue().encode()


def _npy(batch: Picks) -> bytes:
    data = io.BytesIO()
    np.save(cast("BinaryIO", data), np.array([pick.idx for pick in batch], np.int64), allow_pickle=False)
    return data.getvalue()


FORMATS: dict[str, Callable[[Picks], bytes]] = {
    "application/json": _json,
    "application/x-ndjson": _ndjson,
    "text/csv": _csv,
    "application/x-npy": _npy,
}
