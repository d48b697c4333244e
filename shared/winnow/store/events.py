"""The append-only record of what happened to an experiment; it feeds the event stream."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from winnow.domain import ExperimentStatus
from winnow.store.engine import now
from winnow.store.tables import Event, Experiment, Round, newest_number

_IS_NEWEST = (Round.experiment_id == Experiment.id) & (Round.number == newest_number())
_GLANCE = (
    select(Experiment.id, Experiment.events, Experiment.status, Round.number, Round.progress)
    .outerjoin(Round, _IS_NEWEST)
    .where(Experiment.id.in_(bindparam("ids", expanding=True)))
)


@dataclass(frozen=True)
class Glance:
    """An experiment at one moment: the `seq` of its last event, and the newest round's progress, with its number."""

    newest: int
    status: ExperimentStatus
    progress: dict[str, Any]


def append(session: Session, experiment_id: str, type: str, **data: Any) -> None:
    """Add an event. The counter on the experiment's row makes `seq` gapless and ordered by commit."""
    seq = session.execute(
        update(Experiment)
        .where(Experiment.id == experiment_id)
        .values(events=Experiment.events + 1)
        .returning(Experiment.events)
        .execution_options(synchronize_session=False)
    ).scalar_one()
    session.add(Event(experiment_id=experiment_id, seq=seq, type=type, data=data, at=now()))
    session.flush()


def of_round(session: Session, experiment_id: str, number: int) -> list[Event]:
    """Everything that happened to one round, oldest first."""
    about = Event.data["round"].as_integer() == number
    return list(session.scalars(select(Event).where(Event.experiment_id == experiment_id, about).order_by(Event.seq)))


def after(session: Session, experiment_id: str, seq: int, *, limit: int = 500) -> list[Event]:
    """Events later than `seq`, oldest first."""
    wanted = select(Event).where(Event.experiment_id == experiment_id, Event.seq > seq)
    return list(session.scalars(wanted.order_by(Event.seq).limit(limit)))


def glances(session: Session, experiment_ids: Collection[str]) -> dict[str, Glance]:
    """Several experiments at one moment, by id, in one statement; those that there are not are left out."""
    found: dict[str, Glance] = {}
    for id, newest, status, number, progress in session.execute(_GLANCE, {"ids": list(experiment_ids)}):
        found[id] = Glance(newest, ExperimentStatus(status), {"round": number, **progress} if progress else {})
    return found
