"""Rounds as the API shows them: their numbers, their artefacts, the metrics of all of them."""

from typing import Any

from sqlalchemy.orm import Session

from winnow.errors import NotFound
from winnow.store import artefacts, experiments, rounds
from winnow.store.tables import Round
from winnow_coordinator import pages
from winnow_coordinator.schemas import ArtefactView, AttemptView, MetricsView, Page, RoundDetail, RoundView

ATTEMPT = ("attempt", "cause", "error")
MOST_ATTEMPTS = 100
"""The newest that are shown: a sampler that is away for days gives a round back every half minute."""


def page(session: Session, experiment_id: str, cursor: str | None, limit: int) -> Page[RoundView]:
    """Rounds so far, by number. Raises NotFound."""
    rows = rounds.page(session, experiment_id, after=pages.decode_number(cursor), limit=limit + 1)
    if not rows:
        experiments.get(session, experiment_id)
    shown, following = pages.cut(rows, limit, lambda row: row.number)
    return Page(items=[RoundView.model_validate(row) for row in shown], next=following)


def get(session: Session, experiment_id: str, number: int) -> RoundDetail:
    """One round with its artefacts and the attempts that came to nothing. Raises NotFound."""
    row = _find(session, experiment_id, number)
    found = artefacts.of_round(session, experiment_id, number)
    listed = [ArtefactView.model_validate(found[kind]) for kind in sorted(found)]
    ended = rounds.ended_attempts(session, experiment_id, number)
    attempts = [
        AttemptView.model_validate({"at": one.at, **{name: one.data[name] for name in ATTEMPT}})
        for one in ended[-MOST_ATTEMPTS:]
    ]
    return RoundDetail(**RoundView.model_validate(row).model_dump(), artefacts=listed, attempts=attempts)


def artefact(session: Session, experiment_id: str, number: int, kind: str) -> ArtefactView:
    """The manifest of one artefact, of the latest attempt that made it. Raises NotFound."""
    _find(session, experiment_id, number)
    found = artefacts.of_round(session, experiment_id, number).get(kind)
    if found is None:
        raise NotFound("artefact", f"{experiment_id}/{number}/{kind}")
    return ArtefactView.model_validate(found)


def metrics(session: Session, experiment_id: str) -> MetricsView:
    """A row for each evaluated round: samples, image visits, seconds over all phases, and what was measured."""
    rows = rounds.of_experiment(session, experiment_id)
    if not rows:
        experiments.get(session, experiment_id)
    floors = rows[0].report.get("floors") if rows else None
    return MetricsView(items=[_metrics_row(row) for row in rows if row.metrics], floors=floors)


def _metrics_row(row: Round) -> dict[str, Any]:
    spent = {"round": row.number, "samples": row.samples, "visits": row.visits, "seconds": sum(row.seconds.values())}
    return {**spent, **row.metrics}


def _find(session: Session, experiment_id: str, number: int) -> Round:
    try:
        return rounds.get(session, experiment_id, number)
    except NotFound:
        experiments.get(session, experiment_id)  # the experiment's absence says more
        raise
