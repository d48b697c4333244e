"""Manifests of stored artefacts. The attempt stands in every key, so late writers never touch a winner's bytes."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import and_, delete, or_, select
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


def of_round(session: Session, experiment_id: str, round: int, *, attempt: int | None = None) -> dict[str, Artefact]:
    """Manifests of a round by kind; a later attempt's stand before an earlier one's."""
    wanted = select(Artefact).where(Artefact.experiment_id == experiment_id, Artefact.round == round)
    if attempt is not None:
        wanted = wanted.where(Artefact.attempt == attempt)
    return {found.kind: found for found in session.scalars(wanted.order_by(Artefact.attempt))}
