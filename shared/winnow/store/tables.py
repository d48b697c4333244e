"""The tables, the same on SQLite and Postgres. Times are seconds since the epoch by the database's clock."""

import secrets
import time
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    ScalarSelect,
    String,
    Text,
    UniqueConstraint,
    cast,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, column_property, mapped_column

from winnow.domain import DatasetStatus, ExperimentStatus, RoundStatus

Json = JSON().with_variant(JSONB(), "postgresql")


def new_id() -> str:
    """24 hexadecimal digits that sort by the time they were made."""
    return f"{time.time_ns() // 1000:014x}{secrets.token_hex(5)}"


class Row(DeclarativeBase):
    """The root of all rows."""

    type_annotation_map = {dict[str, Any]: Json, list[Any]: Json, list[str]: Json, float: Float(53), int: BigInteger}  # noqa: RUF012


class Claimable:
    """Columns of a row that a worker claims: who holds it, until when, and how often it was tried.

    `losses` counts attempts whose machine vanished, `failures` those that raised an error.
    """

    attempt: Mapped[int] = mapped_column(default=0)
    losses: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)
    owner: Mapped[str | None] = mapped_column(String(120))
    lease_until: Mapped[float | None]
    heartbeat_at: Mapped[float | None]
    waiting_since: Mapped[float] = mapped_column(default=0.0)
    not_before: Mapped[float] = mapped_column(default=0.0)
    rung_at: Mapped[float] = mapped_column(default=0.0)
    progress: Mapped[dict[str, Any]] = mapped_column(default=dict)
    error: Mapped[str | None]


class Dataset(Claimable, Row):
    """A packed set of patches. `location` is the artefact prefix of its shards once it is ready."""

    __tablename__ = "dataset"

    id: Mapped[str] = mapped_column(String(24), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    status: Mapped[str] = mapped_column(String(16), default=DatasetStatus.QUEUED, index=True)
    spec: Mapped[dict[str, Any]]
    classes: Mapped[list[str]] = mapped_column(default=list)
    counts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    report: Mapped[dict[str, Any]] = mapped_column(default=dict)
    location: Mapped[str | None] = mapped_column(String(200))
    created_at: Mapped[float]


class Sample(Row):
    """One patch. `idx` is its position in the packed shards, stable for ever."""

    __tablename__ = "sample"
    __table_args__ = (Index("ix_sample_role", "dataset_id", "role", "idx"),)

    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.id", ondelete="CASCADE"), primary_key=True)
    idx: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    key: Mapped[str]
    role: Mapped[str] = mapped_column(String(16))
    label: Mapped[str | None]
    group: Mapped[str | None] = mapped_column("group_key")


class Experiment(Row):
    """One arm with one seed. `events` numbers its events without gaps."""

    __tablename__ = "experiment"
    __table_args__ = (Index("ix_experiment_status", "status", "id"), Index("ix_experiment_name", "name", "id"))

    id: Mapped[str] = mapped_column(String(24), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(120))
    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.id"), index=True)
    dataset_name: Mapped[str] = column_property(select(Dataset.name).where(Dataset.id == dataset_id).scalar_subquery())
    status: Mapped[str] = mapped_column(String(16), default=ExperimentStatus.CREATED)
    spec: Mapped[dict[str, Any]]
    events: Mapped[int] = mapped_column(default=0)
    error: Mapped[str | None]
    created_at: Mapped[float]
    ended_at: Mapped[float | None]


class Round(Claimable, Row):
    """One round: train, embed, fit the proxy, evaluate, pick.

    `samples` is |S^t|; `visits` counts image visits since round 0; `seconds` is by phase.
    """

    __tablename__ = "round"
    __table_args__ = (UniqueConstraint("experiment_id", "number"),)

    id: Mapped[str] = mapped_column(String(24), primary_key=True, default=new_id)
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiment.id", ondelete="CASCADE"))
    number: Mapped[int]
    status: Mapped[str] = mapped_column(String(16), default=RoundStatus.QUEUED, index=True)
    samples: Mapped[int]
    visits: Mapped[int] = mapped_column(default=0)
    seconds: Mapped[dict[str, Any]] = mapped_column(default=dict)
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    report: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[float]
    ended_at: Mapped[float | None]


def newest_number() -> ScalarSelect[int]:
    """The highest number among the rounds of a statement's Experiment: two steps into one index for each.

    Grouped over several experiments it would be one more table to Postgres, which then reads every round there is.
    """
    other = aliased(Round)
    highest = select(func.max(other.number)).where(other.experiment_id == Experiment.id)
    return highest.correlate(Experiment).scalar_subquery()


def newest_scored() -> ColumnElement[int]:
    """The highest number among those with metrics, 0 without one: the same index, read backwards."""
    other = aliased(Round)
    scored = select(other.number).where(other.experiment_id == Experiment.id, cast(other.metrics, Text) != "{}")
    newest = scored.order_by(other.number.desc()).limit(1).correlate(Experiment)
    return func.coalesce(newest.scalar_subquery(), 0)


class Pick(Row):
    """A patch of S^t. `round` is the first that trains on it: round 0's are S^0."""

    __tablename__ = "pick"
    __table_args__ = (UniqueConstraint("experiment_id", "round", "rank"),)

    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiment.id", ondelete="CASCADE"), primary_key=True)
    sample_idx: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    round: Mapped[int]
    rank: Mapped[int]
    score: Mapped[float]


class Artefact(Row):
    """The manifest of one stored artefact: sha256, size, versions, the attempt; of arrays also shape and dtype."""

    __tablename__ = "artefact"
    __table_args__ = (UniqueConstraint("experiment_id", "round", "attempt", "kind"),)

    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiment.id", ondelete="CASCADE"))
    round: Mapped[int]
    attempt: Mapped[int]
    kind: Mapped[str] = mapped_column(String(40))
    sha256: Mapped[str] = mapped_column(String(64))
    size: Mapped[int]
    manifest: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[float]


class Event(Row):
    """What happened to an experiment, append-only; `seq` counts from 1 within the experiment."""

    __tablename__ = "event"

    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiment.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)
    at: Mapped[float]


class Removal(Row):
    """What was removed, by its place in the artefact store: whatever lies there may go."""

    __tablename__ = "removal"

    prefix: Mapped[str] = mapped_column(String(200), primary_key=True)
    at: Mapped[float]


class Worker(Row):
    """A process that trains. Seen lately or not: `seen_at` tells."""

    __tablename__ = "worker"

    id: Mapped[str] = mapped_column(String(120), primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    devices: Mapped[list[Any]] = mapped_column(default=list)
    version: Mapped[str] = mapped_column(String(40))
    busy_with: Mapped[str | None]
    started_at: Mapped[float]
    seen_at: Mapped[float]


class DeviceLease(Row):
    """Who computes on which GPU of which host."""

    __tablename__ = "device_lease"

    host: Mapped[str] = mapped_column(String(120), primary_key=True)
    device: Mapped[str] = mapped_column(String(80), primary_key=True)
    owner: Mapped[str] = mapped_column(String(120))
    lease_until: Mapped[float]


class ApiKey(Row):
    """A key's sha256 and scopes. The key itself is shown once and never stored."""

    __tablename__ = "api_key"

    id: Mapped[str] = mapped_column(String(24), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]]
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]


class IdempotencyKey(Row):
    """The first answer to a POST, replayed to its repeats."""

    __tablename__ = "idempotency_key"

    principal: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    status: Mapped[int]
    body: Mapped[dict[str, Any]]
    location: Mapped[str | None]
    created_at: Mapped[float]
