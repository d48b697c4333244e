"""Manifests of stored artefacts. The attempt stands in every key, so late writers never touch a winner's bytes."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from winnow.artefacts import Stored
from winnow.store.engine import now
from winnow.store.tables import Artefact


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
    """Insert manifests; one of the same key is replaced."""
    for new in rows:
        session.merge(new)
    session.flush()


def of_round(session: Session, experiment_id: str, round: int, *, attempt: int | None = None) -> dict[str, Artefact]:
    """Manifests of a round by kind; a later attempt's stand before an earlier one's."""
    wanted = select(Artefact).where(Artefact.experiment_id == experiment_id, Artefact.round == round)
    if attempt is not None:
        wanted = wanted.where(Artefact.attempt == attempt)
    return {found.kind: found for found in session.scalars(wanted.order_by(Artefact.attempt))}
