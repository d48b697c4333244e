"""Claims: a guarded UPDATE takes a row, and every later write names id, status and attempt.

Zero rows means fenced: another attempt holds the row now, and what was computed under the old one is discarded.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, and_, select, update
from sqlalchemy.orm import Session

from winnow.domain import DatasetStatus, ExperimentStatus, RoundStatus, has_ended, require_transition
from winnow.errors import Fenced
from winnow.store import schema
from winnow.store.engine import now
from winnow.store.tables import Dataset, Experiment, Round

Claimed = Dataset | Round


@dataclass(frozen=True)
class Work:
    """A kind of work: the table, the status it waits in and the status it is done in."""

    table: type[Dataset] | type[Round]
    waiting: StrEnum
    working: StrEnum


INGEST = Work(Dataset, DatasetStatus.QUEUED, DatasetStatus.INGESTING)
TRAIN = Work(Round, RoundStatus.QUEUED, RoundStatus.TRAINING)
SELECT = Work(Round, RoundStatus.TRAINED, RoundStatus.SELECTING)
EVERY_WORK = (INGEST, TRAIN, SELECT)


def claim(session: Session, work: Work, owner: str, lease: float, *, id: str | None = None) -> Claimed | None:
    """Take the row `id`, or the longest-waiting one, for `lease` seconds; None when there is nothing to take.

    Raises WrongSchema, and takes nothing once the transaction is rolled back: code that is older than the database ends
    what it began and begins nothing new.
    """
    table = work.table
    free = select(table.id).where(_claimable(work)).order_by(table.waiting_since, table.id).limit(1)
    if id is not None:
        free = free.where(table.id == id)
    found = session.scalar(free.with_for_update(skip_locked=True))
    if found is None or (work.table is Round and not _lets_work(session, found)):
        return None
    taken = session.execute(
        update(table)
        .where(table.id == found, table.status == work.waiting)
        .values(
            status=work.working,
            owner=owner,
            attempt=table.attempt + 1,
            lease_until=now() + lease,
            heartbeat_at=now(),
            progress={},
            error=None,
        )
        .returning(table.id)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    if taken is None:
        return None
    schema.require(session)
    return session.get(table, taken, populate_existing=True)


def _lets_work(session: Session, round_id: str) -> bool:
    """Whether the round's experiment goes on, which nobody changes before this transaction ends.

    Without the lock a pause could be settled, finding nobody at work, between the look for a round and the commit of
    its claim.
    """
    status = select(Experiment.status).join(Round, Round.experiment_id == Experiment.id).where(Round.id == round_id)
    locked = session.scalar(status.with_for_update(of=Experiment, key_share=True))
    return ExperimentStatus(locked).lets_work


def renew(session: Session, work: Work, id: str, attempt: int, lease: float, progress: dict[str, Any] | None) -> None:
    """Extend the claim and store the progress. Raises Fenced."""
    values: dict[str, Any] = {"lease_until": now() + lease, "heartbeat_at": now()}
    if progress is not None:
        values["progress"] = progress
    _write(session, work, id, attempt, values)


def finish(session: Session, work: Work, id: str, attempt: int, target: StrEnum, **values: Any) -> None:
    """Leave the working status for `target` and drop the claim. Raises Fenced, or WrongState for a bad target."""
    require_transition(work.table.__tablename__, id, work.working, target)
    values |= {"status": target, "owner": None, "lease_until": None, "waiting_since": now(), "progress": {}}
    if work.table is Round and has_ended(target):
        values["ended_at"] = now()
    _write(session, work, id, attempt, values)


def anew() -> dict[str, Any]:
    """Columns of a row that failed and waits again as if it had not been tried.

    `attempt` is not among them: it stands in the artefact keys, and fences whoever is still at work.
    """
    return {"losses": 0, "failures": 0, "error": None, "not_before": 0.0, "waiting_since": now()}


def expired(session: Session, work: Work) -> list[Claimed]:
    """Rows whose lease ran out."""
    table = work.table
    found = session.scalars(select(table).where(table.status == work.working, table.lease_until < now()))
    return list(found)


def hold_expired(session: Session, work: Work, id: str) -> bool:
    """Whether the row's lease ran out; if so nobody renews or claims it before this transaction ends."""
    table = work.table
    is_over = table.id == id, table.status == work.working, table.lease_until < now()
    return session.scalar(select(table.id).where(*is_over).with_for_update()) is not None


def unheard(session: Session, work: Work, seconds: float, *, limit: int) -> list[str]:
    """Ids that wait, unclaimed, and were last rung more than `seconds` ago, the longest-waiting; marks them rung."""
    table = work.table
    quiet = select(table.id).where(_claimable(work), table.rung_at < now() - seconds)
    longest = quiet.order_by(table.waiting_since, table.id).limit(limit).with_for_update(skip_locked=True)
    return list(
        session.scalars(
            update(table)
            .where(table.id.in_(longest))
            .values(rung_at=now())
            .returning(table.id)
            .execution_options(synchronize_session=False)
        )
    )


def _write(session: Session, work: Work, id: str, attempt: int, values: dict[str, Any]) -> None:
    table = work.table
    held = and_(table.id == id, table.status == work.working, table.attempt == attempt)
    statement = update(table).where(held).values(**values).execution_options(synchronize_session=False)
    if session.execute(statement.returning(table.id)).scalar_one_or_none() is None:
        raise Fenced(table.__tablename__, id, attempt)
    session.expire_all()


def _claimable(work: Work) -> ColumnElement[bool]:
    table = work.table
    waits = and_(table.status == work.waiting, table.not_before <= now())
    if table is Dataset:
        return waits
    at_work = [status for status in ExperimentStatus if status.lets_work]
    running = select(Experiment.id).where(Experiment.id == Round.experiment_id, Experiment.status.in_(at_work))
    return and_(waits, running.exists())
