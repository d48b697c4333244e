"""From a trained round to the next one: the claim, the sampler's answer, the picks."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from winnow.artefacts import get_array
from winnow.domain import Arm, ExperimentSpec, ExperimentStatus, Role, RoundStatus
from winnow.errors import Fenced, Unavailable, WinnowError
from winnow.failpoints import Failpoint, reach
from winnow.store import artefacts, claims, datasets, events, experiments, picks, rounds
from winnow.store.claims import SELECT
from winnow.store.rounds import Cause
from winnow.store.tables import Round
from winnow.telemetry import logger
from winnow_coordinator.context import Coordinator
from winnow_coordinator.orders import Batch, Order, make_request, read_batch, read_nothing, require_artefact
from winnow_coordinator.sampler import POLL_SECONDS, CalledOff, Sampler

LONGEST_WAIT = 30.0
"""Seconds between two tries when the sampler stays away."""
BORNE = 0.9
"""Of a lease, how long it may go without renewal before the work is left to others."""
T = TypeVar("T")
_log = logger("coordinator.picking")


class Interrupted(WinnowError):
    """This process is to end."""

    code = "interrupted"


class Picker:
    """Takes trained rounds one at a time. Any number of them may run, in any number of coordinators."""

    def __init__(self, coordinator: Coordinator, owner: str) -> None:
        self._coordinator = coordinator
        self._database = coordinator.database
        self._owner = owner
        self._sampler = Sampler(coordinator.settings)
        self._away = 0

    def close(self) -> None:
        self._sampler.close()

    def pick_next(self) -> bool:
        """Bring the longest-waiting trained round to its end; False when there is none."""
        began = time.monotonic()
        with self._database.begin() as session:
            round = claims.claim(session, SELECT, self._owner, self._coordinator.settings.lease_seconds)
            if round is None:
                return False
            assert isinstance(round, Round)
            _add_wait(session, round)
        reach(Failpoint.PICK_CLAIMED)
        self._pick(round, Heart(self._coordinator, round, began))
        return True

    def _pick(self, round: Round, heart: "Heart") -> None:
        try:
            self._keep(round, self._find(round, heart), heart)
        except Fenced:
            _log.warning("picking.fenced", experiment=round.experiment_id, round=round.number)
        except (Interrupted, CalledOff):
            self._give_back(round, heart, "stopped", None)
        except Unavailable as error:
            self._away += 1
            wait = min(self._coordinator.settings.retry_seconds * 2 ** min(self._away - 1, 8), LONGEST_WAIT)
            self._give_back(round, heart, "stopped", str(error), wait=wait)
        except SQLAlchemyError:  # the lease ends by itself, and the round is claimed anew
            raise
        except Exception as error:  # whatever it is, the round must say so
            self._give_back(round, heart, "failed", str(error) or repr(error))

    def _find(self, round: Round, heart: "Heart") -> Batch | None:
        """What is picked after `round`; None where nothing is."""
        order = self._prepare(round)
        if order is None:
            return None
        return self._ask(order, heart) if order.budget else read_nothing(order)

    def _prepare(self, round: Round) -> Order | None:
        with self._database.read() as session:
            experiment = experiments.get(session, round.experiment_id)
            spec = experiments.spec_of(experiment)
            if not picks_after(spec, round):
                return None
            stored = artefacts.of_round(session, experiment.id, round.number)
            if spec.arm is Arm.RANDOM and spec.random_from == "pool":
                pool = datasets.indices(session, experiment.dataset_id, Role.POOL)
                candidates = np.setdiff1d(pool, picks.selected(session, experiment.id, up_to=round.number))
            else:
                index = require_artefact(stored, round, "candidates/index")
                candidates = get_array(self._coordinator.artefacts, index.key, sha256=index.sha256)
        reach(Failpoint.PICK_PREPARED)
        request = make_request(spec, round, stored, len(candidates))
        return Order(spec, np.asarray(candidates, np.int64), request)

    def _ask(self, order: Order, heart: "Heart") -> Batch:
        picked = self._sampler.select(order.request, heart.beat)
        reach(Failpoint.SAMPLER_ANSWERED)
        self._away = 0
        return read_batch(order, picked)

    def _keep(self, round: Round, batch: Batch | None, heart: "Heart") -> None:
        if not heart.persist(lambda session: self._end(session, round, batch)):
            return
        if batch is None:
            reach(Failpoint.ROUND_CLOSED)
            return
        reach(Failpoint.PICK_FINISHED)
        _log.info("round.picked", experiment=round.experiment_id, round=round.number, picked=len(batch.indices))

    def _end(self, session: Session, round: Round, batch: Batch | None) -> bool:
        """Whether the round is done: not if its experiment was called off."""
        if rounds.wanted_of(session, round).is_called_off:
            claims.finish(session, SELECT, round.id, round.attempt, RoundStatus.CANCELLED)
            return False
        advance(self._coordinator, session, round, batch)
        return True

    def _give_back(self, round: Round, heart: "Heart", cause: Cause, message: str | None, *, wait: float = 0.0) -> None:
        _log.warning("picking.given_back", experiment=round.experiment_id, round=round.number, reason=message)
        held, patience = (SELECT, round.id, round.attempt), self._coordinator.patience
        try:
            heart.persist(lambda session: rounds.give_back(session, *held, cause, message, patience, wait=wait))
            reach(Failpoint.PICK_GIVEN_BACK)
        except Fenced:
            _log.warning("picking.fenced", experiment=round.experiment_id, round=round.number)


class Heart:
    """Renews the claim while the sampler computes, and hears when the experiment is to stop.

    A database that does not answer is borne while the claim lasts: the sampler computes meanwhile, and what it answered
    is kept.

    Args:
        since: when the claim was asked for, by time.monotonic().
    """

    def __init__(self, coordinator: Coordinator, round: Round, since: float) -> None:
        self._coordinator = coordinator
        self._round = round
        self._renewed = since

    def beat(self, progress: dict[str, Any]) -> None:
        """Wait a little. Raises Interrupted, CalledOff when the experiment is to stop, and Fenced when the claim is
        lost.
        """
        settings, round = self._coordinator.settings, self._round
        if self._coordinator.stopping.wait(min(POLL_SECONDS, settings.renew_seconds)):
            raise Interrupted("the coordinator stops")
        shown = {"phase": "pick", "step": progress.get("done", 0), "steps": progress.get("total", 0)}
        began = time.monotonic()
        try:
            with self._coordinator.database.begin() as session:
                claims.renew(session, SELECT, round.id, round.attempt, settings.lease_seconds, shown)
                wanted = rounds.wanted_of(session, round)
        except OperationalError as error:
            if self._is_nearly_over:
                raise
            _log.warning("database.down", reason=str(error), next="the claim is renewed when it answers")
            return
        self._renewed = began
        reach(Failpoint.PICK_RENEWED)
        if not wanted.lets_work:
            raise CalledOff(f"the experiment is {wanted}")

    def persist(self, use: Callable[[Session], T]) -> T:
        """Use the database, as often as the claim allows while it is away.

        Where the answer to a commit was lost, it is Fenced that the next try raises: the claim ended with the first.
        """
        while True:
            try:
                with self._coordinator.database.begin() as session:
                    return use(session)
            except OperationalError as error:
                if self._is_nearly_over or self._coordinator.stopping.is_set():
                    raise
                _log.warning("database.down", reason=str(error), next="tried again in a second")
            self._coordinator.stopping.wait(1)

    @property
    def _is_nearly_over(self) -> bool:
        return time.monotonic() - self._renewed > BORNE * self._coordinator.settings.lease_seconds


def picks_after(spec: ExperimentSpec, round: Round) -> bool:
    """Whether a batch is picked when `round` ends: not by `full`, the last round, or once all visits are made."""
    return spec.arm is not Arm.FULL and not is_last(spec, round)


def is_last(spec: ExperimentSpec, round: Round) -> bool:
    """Whether the experiment ends with `round`."""
    return round.number + 1 >= spec.total_rounds or spec.is_spent(round.visits)


def advance(coordinator: Coordinator, session: Session, round: Round, batch: Batch | None) -> None:
    """End a claimed round: with its picks and the next round, or with the experiment. Raises Fenced."""
    spec = experiments.spec_of(experiments.get(session, round.experiment_id))
    if batch is not None:
        _write_report(session, round, batch)
    seconds = {"pick": batch.seconds} if batch is not None else {}
    rounds.complete(session, round.id, round.attempt, seconds=seconds)
    reach(Failpoint.ROUND_DONE)
    exhausted = batch is not None and not len(batch.indices)
    if is_last(spec, round) or exhausted:
        experiments.transition(session, round.experiment_id, ExperimentStatus.COMPLETED)
        reach(Failpoint.EXPERIMENT_ENDED)
        return
    number, added = round.number + 1, 0
    if batch is not None:
        picks.insert(session, round.experiment_id, number, batch.indices, batch.scores)
        added = len(batch.indices)
        reach(Failpoint.PICKS_INSERTED)
    coordinator.ring(session, rounds.insert(session, round.experiment_id, number, samples=round.samples + added))
    session.flush()
    reach(Failpoint.ROUND_INSERTED)


def _write_report(session: Session, round: Round, batch: Batch) -> None:
    row = session.get_one(Round, round.id)
    row.report = {**row.report, "pick": batch.report}
    session.flush()
    said = {key: batch.report[key] for key in ("budget", "picked", "candidates", "notes")}
    events.append(session, round.experiment_id, "round.picked", round=round.number, **said)


def _add_wait(session: Session, round: Round) -> None:
    """Add the time since the round last began to wait to its seconds, and, once, the time it waited for a trainer."""
    assert round.heartbeat_at is not None
    waited = max(0.0, round.heartbeat_at - round.waiting_since)
    so_far = round.seconds.get("wait")
    if so_far is None:
        so_far = _queued_seconds(session, round)
    round.seconds = {**round.seconds, "wait": so_far + waited}
    session.flush()


def _queued_seconds(session: Session, round: Round) -> float:
    total, since = 0.0, round.created_at
    for event in events.of_round(session, round.experiment_id, round.number):
        if event.type == rounds.TRAINING:
            total += event.at - since
        since = event.at
    return total
