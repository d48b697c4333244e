"""Rounds: the rows that trainers and stewards claim, finish and give back."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import and_, bindparam, func, select, update
from sqlalchemy.orm import Session

from winnow.domain import DatasetStatus, ExperimentStatus, RoundStatus, require_transition
from winnow.errors import Fenced, NotFound, WrongState
from winnow.store import artefacts, claims, events, experiments
from winnow.store.claims import INGEST, SELECT, TRAIN, Work
from winnow.store.engine import now
from winnow.store.tables import Artefact, Event, Experiment, Round, newest_scored

Cause = Literal["lost", "failed", "stopped", "rejected", "full"]
"""Why a claim is given back: its machine vanished or computes no more; it raised; somebody asked; it can never work;
there was no room to write, which a person makes in time: the row then waits, however often.
"""
LONGEST_WAIT = 600.0
"""Seconds between two looks for room, at most."""
TRAINING = "round.training"
"""The event that begins an attempt."""
TRAINED = "round.trained"
"""The event that ends its training."""
FAILED, STOPPED, RETRIED = "round.failed", "round.stopped", "round.retried"
"""Events that end an attempt without a result."""
RESUMED = "round.resumed"
"""The event by which a round that failed waits again."""


_IS_RECENT = and_(Round.experiment_id == Experiment.id, Round.number >= newest_scored())
_IS_WANTED = Experiment.id.in_(bindparam("ids", expanding=True))
_WITH_RECENT = select(Experiment, Round).outerjoin(Round, _IS_RECENT).where(_IS_WANTED)


@dataclass(frozen=True)
class Patience:
    """How many attempts may end so; the last of them fails the row."""

    max_losses: int
    max_failures: int
    retry_seconds: float


def insert(session: Session, experiment_id: str, number: int, *, samples: int) -> Round:
    """The next round, queued."""
    row = Round(experiment_id=experiment_id, number=number, samples=samples, created_at=now(), waiting_since=now())
    session.add(row)
    session.flush()
    session.refresh(row)
    events.append(session, experiment_id, "round.queued", round=number, samples=samples)
    return row


def get(session: Session, experiment_id: str, number: int) -> Round:
    """One round. Raises NotFound."""
    row = session.scalar(select(Round).where(Round.experiment_id == experiment_id, Round.number == number))
    if row is None:
        raise NotFound("round", f"{experiment_id}/{number}")
    return row


def of_experiment(session: Session, experiment_id: str) -> list[Round]:
    """All rounds so far, by number."""
    return list(session.scalars(select(Round).where(Round.experiment_id == experiment_id).order_by(Round.number)))


def page(session: Session, experiment_id: str, *, after: int, limit: int) -> list[Round]:
    """Rounds by number, starting above `after`."""
    wanted = select(Round).where(Round.experiment_id == experiment_id, Round.number > after)
    return list(session.scalars(wanted.order_by(Round.number).limit(limit)))


def with_recent(session: Session, experiment_ids: Sequence[str]) -> dict[str, tuple[Experiment, list[Round]]]:
    """Experiments by id, each with its rounds from the newest with metrics on, by number, all of one moment.

    Those that there are not are left out.
    """
    found: dict[str, tuple[Experiment, list[Round]]] = {}
    for experiment, row in session.execute(_WITH_RECENT, {"ids": experiment_ids}):
        rows = found.setdefault(experiment.id, (experiment, []))[1]
        if row:  # an experiment that was begun this moment may have none
            rows.append(row)
    for _, rows in found.values():
        rows.sort(key=lambda row: row.number)
    return found


def newest(session: Session, experiment_id: str, *, hold: bool = False) -> Round | None:
    """The round with the highest number. `hold`: nobody changes it before this transaction ends."""
    wanted = select(Round).where(Round.experiment_id == experiment_id).order_by(Round.number.desc()).limit(1)
    return session.scalar(wanted.with_for_update() if hold else wanted)


def ended_attempts(session: Session, experiment_id: str, number: int) -> list[Event]:
    """How each attempt that left no result ended, oldest first: `data` has attempt, cause and error."""
    found = events.of_round(session, experiment_id, number)
    return [event for event in found if event.type in (FAILED, STOPPED, RETRIED)]


def start(session: Session, round: Round, lease: float) -> None:
    """Say that a claimed round trains, under the claim, which is renewed by it. Raises Fenced.

    The first one sets its experiment running. An experiment that was paused or called off since the claim stays so:
    whoever works hears it at the next renewal. Said again, by whom no answer to the commit reached, it tells nothing
    twice.
    """
    claims.renew(session, TRAIN, round.id, round.attempt, lease, None)
    with suppress(WrongState):
        seen = ExperimentStatus.CREATED
        experiments.transition(session, round.experiment_id, ExperimentStatus.RUNNING, seen=seen)
    told = events.of_round(session, round.experiment_id, round.number)
    if not any(event.type == TRAINING and event.data["attempt"] == round.attempt for event in told):
        events.append(session, round.experiment_id, TRAINING, round=round.number, attempt=round.attempt)


def record(session: Session, id: str, attempt: int, lease: float, rows: Sequence[Artefact]) -> list[str]:
    """Insert the manifests of a checkpoint under the claim, which is renewed by it. Raises Fenced.

    Those of checkpoints before it are forgotten, of whichever attempt; their keys, whose bytes may then go.
    """
    claims.renew(session, TRAIN, id, attempt, lease, None)
    before = artefacts.drop(session, rows[0].experiment_id, rows[0].round, stem="checkpoint")
    artefacts.insert(session, rows)
    kept = {row.key for row in rows}  # a stop right behind a checkpoint writes it anew
    return [key for key in before if key not in kept]


def complete_training(
    session: Session, id: str, attempt: int, *, result: dict[str, Any], rows: Sequence[Artefact]
) -> None:
    """training → trained, with visits, seconds, metrics, report and the artefacts' manifests. Raises Fenced.

    A round whose experiment was called off meanwhile ends as cancelled, and its artefacts are not recorded.
    """
    claims.finish(session, TRAIN, id, attempt, RoundStatus.TRAINED, **result)
    round = session.get_one(Round, id)
    if wanted_of(session, round, hold=True).is_called_off:
        cancel(session, round.experiment_id)
        return
    artefacts.insert(session, rows)
    events.append(session, round.experiment_id, TRAINED, round=round.number, metrics=result["metrics"])


def complete(session: Session, id: str, attempt: int, *, seconds: dict[str, float]) -> Round:
    """selecting → done, with the seconds that picking took. Raises Fenced."""
    round = session.get_one(Round, id, populate_existing=True)
    claims.finish(session, SELECT, id, attempt, RoundStatus.DONE, seconds={**round.seconds, **seconds})
    events.append(session, round.experiment_id, "round.done", round=round.number)
    return session.get_one(Round, id)


def give_back(
    session: Session,
    work: Work,
    id: str,
    attempt: int,
    cause: Cause,
    message: str | None,
    patience: Patience,
    *,
    wait: float = 0.0,
) -> str:
    """End a claim without a result: one step back, or failed when patience is spent. Returns the new status.

    Nobody claims the row again before `wait` seconds have passed, or the longer wait of a failed attempt. A round whose
    experiment is called off ends as cancelled.

    Raises Fenced.
    """
    row = session.get(work.table, id, populate_existing=True, with_for_update=True)
    if row is None:  # removed since somebody else ended it
        raise Fenced(work.table.__tablename__, id, attempt)
    if isinstance(row, Round) and wanted_of(session, row, hold=True).is_called_off:
        claims.finish(session, work, id, attempt, RoundStatus.CANCELLED)
        return RoundStatus.CANCELLED
    losses, failures = row.losses + (cause == "lost"), row.failures + (cause == "failed")
    spent = losses >= patience.max_losses or failures >= patience.max_failures or cause == "rejected"
    failed = DatasetStatus.FAILED if work is INGEST else RoundStatus.FAILED
    if cause == "failed":
        wait = max(wait, patience.retry_seconds * 2 ** (failures - 1))
    elif cause == "full":
        waited = row.not_before - row.waiting_since  # for this attempt, for room say
        wait = max(wait, min(LONGEST_WAIT, max(patience.retry_seconds, 2 * waited)))
    values: dict[str, Any] = {"losses": losses, "failures": failures, "error": message, "not_before": now() + wait}
    target = failed if spent else work.waiting
    claims.finish(session, work, id, attempt, target, **values)
    if isinstance(row, Round):
        _tell(session, row, attempt, cause, message, spent)
    return target


def resume(session: Session, row: Round) -> None:
    """Let a round that failed wait again: for a trainer, or for its picks if it is trained. Raises WrongState.

    Errors and lost machines are counted anew, and the next attempt goes on from the last checkpoint.
    """
    told = events.of_round(session, row.experiment_id, row.number)
    work = SELECT if any(event.type == TRAINED for event in told) else TRAIN
    require_transition("round", row.id, RoundStatus(row.status), work.waiting)
    session.execute(
        update(Round)
        .where(Round.id == row.id)
        .values(status=work.waiting, ended_at=None, **claims.anew())
        .execution_options(synchronize_session=False)
    )
    session.refresh(row)
    events.append(session, row.experiment_id, RESUMED, round=row.number)


def cancel(session: Session, experiment_id: str) -> None:
    """End every round that nobody works on."""
    waiting = (RoundStatus.QUEUED, RoundStatus.TRAINED, RoundStatus.FAILED)
    session.execute(
        update(Round)
        .where(Round.experiment_id == experiment_id, Round.status.in_(waiting))
        .values(status=RoundStatus.CANCELLED, ended_at=func.coalesce(Round.ended_at, now()))
        .execution_options(synchronize_session=False)
    )
    session.expire_all()


def is_worked_on(session: Session, experiment_id: str) -> bool:
    """Whether a trainer or a steward holds a round of this experiment."""
    held = select(Round.id).where(
        Round.experiment_id == experiment_id, Round.status.in_((RoundStatus.TRAINING, RoundStatus.SELECTING))
    )
    return session.execute(held.limit(1)).first() is not None


def wanted_of(session: Session, round: Round, *, hold: bool = False) -> ExperimentStatus:
    """What the experiment's row asks of whoever works on this round.

    `hold`: nobody changes it before this transaction ends. Whoever holds it holds the round's row already: the other
    order would let two transactions wait for each other.
    """
    wanted = select(Experiment.status).where(Experiment.id == round.experiment_id)
    return ExperimentStatus(session.scalar(wanted.with_for_update() if hold else wanted))


def _tell(session: Session, row: Round, attempt: int, cause: Cause, message: str | None, spent: bool) -> None:
    type = FAILED if spent else STOPPED if cause == "stopped" else RETRIED
    events.append(session, row.experiment_id, type, round=row.number, attempt=attempt, cause=cause, error=message)
    if spent:
        reason = f"round {row.number}: {message or 'its machine was lost too often'}"
        experiments.transition(session, row.experiment_id, ExperimentStatus.FAILED, error=reason)
