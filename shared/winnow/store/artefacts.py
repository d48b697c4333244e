"""Manifests of stored artefacts. The attempt stands in every key, so late writers never touch a winner's bytes."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.orm import Session

from winnow.artefacts import Stored
from winnow.domain import RoundStatus
from winnow.store.engine import now
from winnow.store.tables import Artefact, Experiment, Round

_MAY_TRAIN = (RoundStatus.QUEUED, RoundStatus.TRAINING, RoundStatus.FAILED)
"""A round that failed goes on from its checkpoint when it is taken up again."""


def row(
    stored: Stored, *, experiment_id: str, round: int, attempt: int, kind: str, manifest: dict[str, Any]
) -> Artefact:
    """A manifest, not yet inserted."""
    return Artefact(
        key=stored.key,
        experiment_id=experiment_id,
        round=round,
        attempt=attempt,
        kind=kind,
        sha256=stored.sha256,
        size=stored.size,
        manifest=manifest,
        created_at=now(),
    )


def insert(session: Session, rows: Sequence[Artefact]) -> None:
    """Insert manifests; one of the same attempt and kind gives way, or of the same bytes under another kind."""
    for new in rows:
        of_round = (Artefact.experiment_id == new.experiment_id, Artefact.round == new.round)
        same_kind = and_(*of_round, Artefact.attempt == new.attempt, Artefact.kind == new.kind)
        session.execute(delete(Artefact).where(or_(same_kind, Artefact.key == new.key)))
    session.add_all(rows)
    session.flush()


def drop(session: Session, experiment_id: str, round: int, *, stem: str) -> list[str]:
    """Forget the manifests whose kind starts with `stem`; the keys whose bytes may then go."""
    of_stem = (Artefact.experiment_id == experiment_id, Artefact.round == round, Artefact.kind.startswith(f"{stem}/"))
    return list(session.scalars(delete(Artefact).where(*of_stem).returning(Artefact.key)))


def trim(session: Session, experiment_id: str, *, keep: int) -> list[str]:
    """Forget what no later work starts from; the keys whose bytes may then go.

    Those are checkpoints of rounds whose training is over, and the states of all rounds but the newest `keep` that have
    one (0 keeps every state). The newest state is what the next round starts from, and the final weights.
    """
    mine = Artefact.experiment_id == experiment_id
    held = select(Experiment.id).where(Experiment.id == experiment_id).with_for_update(read=True, key_share=True)
    session.execute(held)  # who removes it deletes the same rows, in another order
    over = select(Round.number).where(Round.experiment_id == experiment_id, Round.status.not_in(_MAY_TRAIN))
    gone = delete(Artefact).where(mine, Artefact.kind.startswith("checkpoint/"), Artefact.round.in_(over))
    keys = list(session.scalars(gone.returning(Artefact.key)))
    states = select(Artefact.round).where(mine, Artefact.kind == "state/weights").distinct()
    old = sorted(session.scalars(states))[:-keep] if keep else []
    if old:
        gone = delete(Artefact).where(mine, Artefact.kind.startswith("state/"), Artefact.round.in_(old))
        keys += session.scalars(gone.returning(Artefact.key))
    return keys


def largest_holders(session: Session, limit: int) -> list[tuple[Experiment, int]]:
    """The experiments whose manifests name most bytes, and how many, the largest first."""
    size = func.sum(Artefact.size)
    by_size = select(Artefact.experiment_id, size).group_by(Artefact.experiment_id).order_by(size.desc()).limit(limit)
    sizes = {id: int(total) for id, total in session.execute(by_size)}
    rows = session.scalars(select(Experiment).where(Experiment.id.in_(sizes)))
    return sorted(((row, sizes[row.id]) for row in rows), key=lambda one: one[1], reverse=True)


def names(session: Session, experiment_id: str) -> set[str]:
    """Keys of all that an experiment's manifests name."""
    return set(session.scalars(select(Artefact.key).where(Artefact.experiment_id == experiment_id)))


def of_round(session: Session, experiment_id: str, round: int, *, attempt: int | None = None) -> dict[str, Artefact]:
    """Manifests of a round by kind; a later attempt's stand before an earlier one's."""
    wanted = select(Artefact).where(Artefact.experiment_id == experiment_id, Artefact.round == round)
    if attempt is not None:
        wanted = wanted.where(Artefact.attempt == attempt)
    return {found.kind: found for found in session.scalars(wanted.order_by(Artefact.attempt))}
