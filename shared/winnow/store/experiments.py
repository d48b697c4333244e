"""Experiments and their life: created, running, paused, ended."""

from typing import Any, TypeVar

from sqlalchemy import Select, delete, select, update
from sqlalchemy.orm import Session

from winnow.domain import ExperimentSpec, ExperimentStatus, allowed_from, has_ended, require_transition
from winnow.errors import NotFound, WrongState
from winnow.store import events, removals
from winnow.store.engine import now
from winnow.store.tables import Experiment

T = TypeVar("T")


def insert(session: Session, spec: ExperimentSpec, dataset_id: str) -> Experiment:
    """A new experiment without rounds yet."""
    row = Experiment(name=spec.name, dataset_id=dataset_id, spec=spec.model_dump(mode="json"), created_at=now())
    session.add(row)
    session.flush()
    session.refresh(row)
    events.append(session, row.id, "experiment.created", name=spec.name, arm=spec.arm)
    return row


def get(session: Session, id: str) -> Experiment:
    """The experiment of that id. Raises NotFound."""
    row = session.get(Experiment, id)
    if row is None:
        raise NotFound("experiment", id)
    return row


def spec_of(experiment: Experiment) -> ExperimentSpec:
    """The stored spec, parsed."""
    return ExperimentSpec.model_validate(experiment.spec)


def page(session: Session, *, before: str | None, limit: int) -> list[Experiment]:
    """Experiments from the newest on, starting below the id `before`."""
    return list(session.scalars(_page(select(Experiment), before, limit)))


def page_of_ids(
    session: Session, *, before: str | None, limit: int, status: str | None = None, name: str | None = None
) -> list[str]:
    """The ids alone, of those in one state or of one name."""
    wanted = _page(select(Experiment.id), before, limit)
    for column, value in ((Experiment.status, status), (Experiment.name, name)):
        wanted = wanted if value is None else wanted.where(column == value)
    return list(session.scalars(wanted))


def in_status(session: Session, *statuses: ExperimentStatus) -> list[str]:
    """Ids of the experiments in any of these states, oldest first."""
    wanted = select(Experiment.id).where(Experiment.status.in_(statuses)).order_by(Experiment.id)
    return list(session.scalars(wanted))


def transition(
    session: Session,
    id: str,
    target: ExperimentStatus,
    *,
    seen: ExperimentStatus | None = None,
    error: str | None = None,
) -> None:
    """Compare and set.

    Args:
        seen: the state that the caller decided on; without it, from whichever state the experiment is in.

    Raises WrongState when the table forbids it or another writer was first, NotFound.
    """
    current = seen or _locked_status(session, id)
    require_transition("experiment", id, current, target)
    ended_at = now() if has_ended(target) else None
    values: dict[str, Any] = {"status": target, "ended_at": ended_at}
    if not target.is_called_off:  # one that failed first keeps its reason
        values["error"] = error
    moved = session.execute(
        update(Experiment)
        .where(Experiment.id == id, Experiment.status == current)
        .values(**values)
        .returning(Experiment.id)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    if moved is None:
        found = _locked_status(session, id)
        raise WrongState("experiment", id, found, target, allowed_from(found))
    events.append(session, id, f"experiment.{target}", **({"error": error} if error else {}))
    session.expire_all()


def on_dataset(session: Session, dataset_id: str) -> list[str]:
    """Ids of the experiments on a dataset, oldest first."""
    return list(
        session.scalars(select(Experiment.id).where(Experiment.dataset_id == dataset_id).order_by(Experiment.id))
    )


def datasets_in_use(session: Session) -> set[str]:
    """Ids of the datasets that experiments are on."""
    return set(session.scalars(select(Experiment.dataset_id).distinct()))


def remove(session: Session, id: str) -> None:
    """Delete an experiment that has ended, with its rounds, picks, manifests and events, and note where its files lie.

    Whoever calls it holds the newest round. Raises NotFound, WrongState.
    """
    status = _locked_status(session, id)
    if not has_ended(status):
        raise WrongState("experiment", id, status, "removed", allowed_from(status))
    session.execute(delete(Experiment).where(Experiment.id == id))
    removals.insert(session, f"experiments/{id}")


def _page(wanted: Select[T], before: str | None, limit: int) -> Select[T]:
    wanted = wanted.order_by(Experiment.id.desc()).limit(limit)
    return wanted.where(Experiment.id < before) if before else wanted


def _locked_status(session: Session, id: str) -> ExperimentStatus:
    """The state, which nobody else changes before this transaction ends. Raises NotFound."""
    status = session.scalar(select(Experiment.status).where(Experiment.id == id).with_for_update())
    if status is None:
        raise NotFound("experiment", id)
    return ExperimentStatus(status)
