"""The steward's rounds: leases that ran out, bells that nobody heard, experiments that wait to pause or end."""

from collections.abc import Callable
from functools import partial

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from winnow.domain import ExperimentStatus
from winnow.errors import Fenced, NotFound, WrongState
from winnow.failpoints import Failpoint, reach
from winnow.queue import INGEST_TASK, TRAIN_TASK
from winnow.store import claims, experiments, rounds, workers
from winnow.store.claims import EVERY_WORK, INGEST, TRAIN, Claimed, Work
from winnow.telemetry import logger
from winnow_coordinator.context import Coordinator

_log = logger("coordinator.tidying")


class Tidier:
    """Each duty is a few short transactions; several coordinators may do them at once."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._database = coordinator.database

    def tidy(self) -> None:
        """Do every duty once. A duty that fails does not keep the others from being done."""
        for duty in (self.reclaim, self.ring_again, self.settle):
            self._attempt(duty)

    def reclaim(self) -> None:
        """Take rows back from workers that stopped renewing."""
        for work in EVERY_WORK:
            with self._database.read() as session:
                lost = claims.expired(session, work)
            for row in lost:
                self._reclaim(work, row)

    def ring_again(self) -> None:
        """Ring for rows that have waited unclaimed for a while: the first bell may be lost.

        Only an idle trainer takes bells off the broker: there is one for each. While all are busy, more of them would
        pile up there for days, and one that gets idle looks for work by itself.
        """
        settings = self._coordinator.settings
        with self._database.read() as session:
            idle = workers.count_idle(session, within=settings.lease_seconds)
        if not idle:
            return
        for work, task in ((INGEST, INGEST_TASK), (TRAIN, TRAIN_TASK)):
            with self._database.begin() as session:
                waiting = claims.unheard(session, work, settings.ring_again_seconds, limit=idle)
                for id in waiting:
                    self._coordinator.bells.ring(session, task, id)
            if waiting:
                reach(Failpoint.BELLS_REPEATED)

    def settle(self) -> None:
        """pausing → paused and cancelling → cancelled, once nobody works on the experiment."""
        with self._database.read() as session:
            asked = experiments.in_status(session, ExperimentStatus.PAUSING, ExperimentStatus.CANCELLING)
        for id in asked:
            self._attempt(partial(self._settle, id))

    def _reclaim(self, work: Work, row: Claimed) -> None:
        try:
            with self._database.begin() as session:
                if not claims.hold_expired(session, work, row.id):
                    return  # renewed, or reclaimed by another coordinator, since the look
                self._take_back(session, work, row)
        except Fenced:
            return  # another coordinator was first
        reach(Failpoint.LEASE_RECLAIMED)
        _log.warning("lease.lost", table=work.table.__tablename__, id=row.id, owner=row.owner, attempt=row.attempt)

    def _take_back(self, session: Session, work: Work, row: Claimed) -> None:
        message = f"{row.owner} stopped renewing its claim (attempt {row.attempt})"
        rounds.give_back(session, work, row.id, row.attempt, "lost", message, self._coordinator.patience)

    def _settle(self, id: str) -> None:
        with self._database.begin() as session:
            status = ExperimentStatus(experiments.get(session, id).status)
            if rounds.is_worked_on(session, id):
                return
            if status is ExperimentStatus.PAUSING:
                experiments.transition(session, id, ExperimentStatus.PAUSED, seen=status)
            elif status is ExperimentStatus.CANCELLING:
                rounds.cancel(session, id)
                experiments.transition(session, id, ExperimentStatus.CANCELLED, seen=status)
        reach(Failpoint.EXPERIMENT_SETTLED)

    def _attempt(self, duty: Callable[[], None]) -> None:
        try:
            duty()
        except (WrongState, NotFound) as error:  # another coordinator or a person was first
            _log.info("duty.overtaken", reason=str(error))
        except OperationalError as error:
            _log.error("database.down", reason=str(error), next="tried again in a moment")
