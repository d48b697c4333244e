"""Workers that are alive, and the GPUs they hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from winnow.domain import DatasetStatus, RoundStatus
from winnow.store.engine import now
from winnow.store.tables import Dataset, DeviceLease, Experiment, Round, Worker


@dataclass(frozen=True)
class BusyWith:
    """A row that a worker has claimed: a round of an experiment, or a dataset, whose name it has then."""

    id: str
    name: str
    experiment: str | None = None
    round: int | None = None


def report(
    session: Session, id: str, *, host: str, pid: int, devices: list[Any], version: str, busy_with: str | None
) -> None:
    """Say that a worker lives."""
    seen = {"host": host, "pid": pid, "devices": devices, "version": version, "busy_with": busy_with, "seen_at": now()}
    known = session.execute(update(Worker).where(Worker.id == id).values(**seen).returning(Worker.id)).first()
    if known is None:
        session.add(Worker(id=id, started_at=now(), **seen))


def forget(session: Session, id: str) -> None:
    """A worker that leaves in order takes its row and its leases along."""
    session.execute(delete(DeviceLease).where(DeviceLease.owner == id))
    session.execute(delete(Worker).where(Worker.id == id))


def alive(session: Session, *, within: float, after: str | None, limit: int) -> list[tuple[Worker, BusyWith | None]]:
    """Workers seen during the last `within` seconds by id, starting above the id `after`, with what they work on."""
    wanted = select(Worker).where(Worker.seen_at > now() - within).order_by(Worker.id).limit(limit)
    found = session.scalars(wanted.where(Worker.id > after) if after else wanted).all()
    work = _claimed(session, [worker.id for worker in found])
    return [(worker, work.get(worker.id)) for worker in found]


def _claimed(session: Session, owners: Sequence[str]) -> dict[str, BusyWith]:
    """What each has claimed, by the claim itself: what a worker last said that it is busy with may be over."""
    ingests = select(Dataset.owner, Dataset.id, Dataset.name).where(
        Dataset.status == DatasetStatus.INGESTING, Dataset.owner.in_(owners), Dataset.lease_until > now()
    )
    rounds = (
        select(Round.owner, Round.id, Experiment.name, Round.experiment_id, Round.number)
        .join(Experiment, Experiment.id == Round.experiment_id)
        .where(Round.status == RoundStatus.TRAINING, Round.owner.in_(owners), Round.lease_until > now())
    )
    found = {str(owner): BusyWith(id, name) for owner, id, name in session.execute(ingests)}
    for owner, id, name, experiment, number in session.execute(rounds):
        found[str(owner)] = BusyWith(id, name, experiment, number)
    return found


def is_seen(session: Session, host: str, *, within: float) -> bool:
    """Whether a worker of this host was seen during the last `within` seconds."""
    seen = select(Worker.id).where(Worker.host == host, Worker.seen_at > now() - within)
    return session.execute(seen.limit(1)).first() is not None


def count_idle(session: Session, *, within: float) -> int:
    """How many of the workers seen during the last `within` seconds have nothing to do."""
    idle = select(func.count()).where(Worker.seen_at > now() - within, Worker.busy_with.is_(None))
    return session.scalar(idle) or 0


def forget_silent(session: Session, *, seconds: float) -> None:
    """Delete the workers that were not seen for so long, and their leases: killed ones leave theirs behind."""
    session.execute(delete(DeviceLease).where(DeviceLease.lease_until < now() - seconds))
    session.execute(delete(Worker).where(Worker.seen_at < now() - seconds))


def lease_device(session: Session, host: str, device: str, owner: str, seconds: float) -> bool:
    """Take or renew (host, device); False when another worker holds it."""
    free = or_(DeviceLease.owner == owner, DeviceLease.lease_until < now())
    values = {"owner": owner, "lease_until": now() + seconds}
    held = update(DeviceLease).where(DeviceLease.host == host, DeviceLease.device == device)
    if session.execute(held.where(free).values(**values).returning(DeviceLease.host)).first():
        return True
    try:
        with session.begin_nested():
            session.execute(insert(DeviceLease).values(host=host, device=device, **values))
    except IntegrityError:
        return False  # held by another worker, or taken by one at this moment
    return True


def release_devices(session: Session, host: str, owner: str, *, but: Sequence[str] = ()) -> None:
    """Let go of the devices of `host` that `owner` holds, except those named."""
    held = (DeviceLease.host == host, DeviceLease.owner == owner, DeviceLease.device.not_in(but))
    session.execute(delete(DeviceLease).where(*held))
