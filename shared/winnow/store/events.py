"""The append-only record of what happened to an experiment; it feeds the event stream."""

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from winnow.store.engine import now
from winnow.store.tables import Event, Experiment


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
