"""What every route and every thread of a coordinator shares, built once at the composition root."""

import threading
from dataclasses import dataclass, field

from anyio import CapacityLimiter
from celery import Celery
from sqlalchemy.orm import Session

from winnow.artefacts import ArtefactStore, DirectoryStore
from winnow.queue import INGEST_TASK, TRAIN_TASK, Bells, make_app
from winnow.settings import Settings
from winnow.store import Database, now
from winnow.store.rounds import Patience
from winnow.store.tables import Dataset, Round
from winnow_coordinator.final_views import FinalViews
from winnow_coordinator.known_keys import KnownKeys
from winnow_coordinator.pace import Pace
from winnow_coordinator.source_check import SourceCheck

SLOW_AT_ONCE = 2
"""Requests of a kind that takes long, worked on at a time: more of them would take every thread from the quick ones."""


def _few() -> CapacityLimiter:
    return CapacityLimiter(SLOW_AT_ONCE)


@dataclass(frozen=True)
class Coordinator:
    """Settings, database, artefacts, bells; `stopping` is set once the process is to end.

    `removals` and `looks` are the threads that remove datasets, and that look at what takes room.
    """

    settings: Settings
    database: Database
    artefacts: ArtefactStore
    celery: Celery
    bells: Bells
    pace: Pace
    source_check: SourceCheck
    stopping: threading.Event
    known_keys: KnownKeys = field(default_factory=KnownKeys)
    final_views: FinalViews = field(default_factory=FinalViews)
    removals: CapacityLimiter = field(default_factory=_few)
    looks: CapacityLimiter = field(default_factory=_few)

    @classmethod
    def open(cls, settings: Settings) -> "Coordinator":
        celery = make_app(settings)
        store = DirectoryStore(settings.artefact_dir)
        pace, stopping = Pace(settings.requests_per_second), threading.Event()
        database, source_check = Database(settings.database_url), SourceCheck(settings, stopping)
        return cls(settings, database, store, celery, Bells(celery), pace, source_check, stopping)

    def close(self) -> None:
        self.stopping.set()
        self.bells.close()
        self.celery.close()
        self.database.close()

    @property
    def patience(self) -> Patience:
        return Patience(self.settings.max_losses, self.settings.max_failures, self.settings.retry_seconds)

    def ring(self, session: Session, row: Dataset | Round) -> None:
        """Ring for a row that waits for a trainer, once the transaction is committed."""
        row.rung_at = now()
        self.bells.ring(session, INGEST_TASK if isinstance(row, Dataset) else TRAIN_TASK, row.id)
