"""A model of experiments and rounds, played against the real store: claims, deaths, orders, late writes in any order.

Each rule does what a trainer, a steward or a person does, through the code they use. What must hold after every step
is in `ledger.py`.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from fuzz.ledger import Ledger
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, precondition, rule
from sqlalchemy import delete, select, update

from winnow.artefacts import Stored
from winnow.domain import ExperimentSpec, RoundStatus
from winnow.errors import Fenced, NotFound, WrongState
from winnow.store import artefacts, claims, rounds
from winnow.store.claims import SELECT, TRAIN, Work
from winnow.store.tables import Artefact, Dataset, Experiment, Pick, Removal, Round, Sample
from winnow_coordinator import experiments, picking
from winnow_coordinator.context import Coordinator
from winnow_coordinator.orders import Batch
from winnow_coordinator.tidying import Tidier

LEASE = 600.0
WORKERS = ("w1", "w2", "w3")
Token = tuple[Work, str, int]
"""A claim as its holder knows it: the kind of work, the row, the attempt. It may be held no longer."""
WORKS = st.sampled_from([TRAIN, SELECT])


class Life(RuleBasedStateMachine):
    """Experiments from their beginning to their end, in a database that holds no others."""

    claims = Bundle("claims")
    steps = 0
    """Of all lives together."""

    def __init__(self, coordinator: Coordinator, dataset: Dataset) -> None:
        super().__init__()
        self.coordinator, self.dataset = coordinator, dataset
        self.database = coordinator.database
        self.tidier = Tidier(coordinator)
        self.begun: list[str] = []
        self.homes: dict[str, tuple[str, int]] = {}
        """Experiment and number of every round that was ever claimed."""
        with self.database.begin() as session:
            for table in (Artefact, Pick, Round, Experiment, Removal):
                session.execute(delete(table))
        self.ledger = Ledger(self.database)

    # What people do.

    @precondition(lambda self: len(self.begun) < 3)
    @rule(rounds=st.integers(1, 3), budget=st.integers(2, 13), arm=st.sampled_from(["entropy", "random", "full"]))
    def begin(self, rounds: int, budget: int, arm: str) -> None:
        spec = ExperimentSpec.model_validate(
            {"name": "e", "dataset": "tissue", "arm": arm, "positive_class": "a", "budget": budget, "rounds": rounds}
            | {"simclr": {"epochs": rounds}, "full_evaluate_every": 1}
        )
        planned = experiments.plan(self.coordinator, spec)
        with self.database.begin() as session:
            self.begun.append(experiments.begin(self.coordinator, session, planned).id)

    @precondition(lambda self: self.begun)
    @rule(at=st.integers(0, 2), order=st.sampled_from(["pause", "pause", "resume", "resume", "cancel"]))
    def order(self, at: int, order: str) -> None:
        id = self.begun[at % len(self.begun)]
        allowed = self.ledger.may_be_ordered(id, order)
        try:
            self._order(id, order)
        except WrongState:
            assert not allowed, f"{order} was refused"
            self.ledger.require_nothing_changed()
        else:
            assert allowed, f"{order} was taken"

    @precondition(lambda self: self.begun)
    @rule(at=st.integers(0, 2))
    def remove(self, at: int) -> None:
        id = self.begun[at % len(self.begun)]
        allowed = self.ledger.may_be_removed(id)
        try:
            with self.database.begin() as session:
                experiments.remove(session, id)
        except WrongState:
            assert not allowed, "a removal was refused"
            self.ledger.require_nothing_changed()
        else:
            assert allowed, "one that is under way was removed"
            self.ledger.expect_removal(id)
            self.begun.remove(id)

    def _order(self, id: str, order: str) -> None:
        with self.database.begin() as session:
            if order == "resume":
                experiments.resume(self.coordinator, session, id)
            else:
                {"pause": experiments.pause, "cancel": experiments.cancel}[order](session, id)

    # What workers do.

    @precondition(lambda self: self.begun)
    @rule(target=claims, work=WORKS, worker=st.sampled_from(WORKERS))
    def claim(self, work: Work, worker: str) -> Any:
        waiting = self.ledger.claimable(work)
        with self.database.begin() as session:
            row = claims.claim(session, work, worker, LEASE)
            assert (row.id in waiting) if row else not waiting, (row and row.id, waiting)
            return self._begun(session, work, row)

    @precondition(lambda self: self.begun)
    @rule(target=claims, work=WORKS, at=st.integers(0, 5))
    def contend(self, work: Work, at: int) -> Any:
        """Three workers want one row at the same moment."""
        ids = self.ledger.ids()
        id = ids[at % len(ids)]
        can_be_won = id in self.ledger.claimable(work)
        won: list[Round] = []
        start = threading.Barrier(len(WORKERS))

        def contest(worker: str) -> None:
            start.wait()
            with self.database.begin() as session:
                row = claims.claim(session, work, worker, LEASE, id=id)
                if isinstance(row, Round):
                    won.append(row)

        _side_by_side([partial(contest, worker) for worker in WORKERS])
        assert len(won) == can_be_won, f"{len(won)} workers won one row"
        with self.database.begin() as session:
            return self._begun(session, work, won[0] if won else None)

    def _begun(self, session: Any, work: Work, row: Any) -> Any:
        if row is None:
            return multiple()
        self.homes[row.id] = (row.experiment_id, row.number)
        if work is TRAIN:
            rounds.start(session, row, LEASE)
        self.ledger.expect_attempt(row.id)
        return (work, row.id, row.attempt)

    @rule(token=claims, step=st.integers(0, 9))
    def renew(self, token: Token, step: int) -> None:
        with self._holding(token), self.database.begin() as session:
            claims.renew(session, *token, LEASE, {"phase": "train", "step": step})

    @rule(token=claims, epoch=st.integers(0, 3))
    def keep_a_checkpoint(self, token: Token, epoch: int) -> None:
        if token[0] is TRAIN:
            with self._holding(token), self.database.begin() as session:
                rounds.record(session, token[1], token[2], LEASE, [self._made(token, f"checkpoint/{epoch}")])

    @rule(token=claims, visits=st.integers(0, 10**9))
    def finish(self, token: Token, visits: int) -> None:
        """A trainer stores its result, or a steward its picks."""
        if token[0] is SELECT:
            self._pick(token)
        else:
            self._train(token, visits)

    def _train(self, token: Token, visits: int) -> None:
        result = {"visits": visits, "seconds": {"train": 1.0}, "metrics": {"f1": 0.5}, "report": {}}
        with self._holding(token), self.database.begin() as session:
            rows = [self._made(token, "candidates/index")]
            rounds.complete_training(session, token[1], token[2], result=result, rows=rows)

    def _pick(self, token: Token) -> None:
        with self._holding(token), self.database.begin() as session:
            claims.renew(session, *token, LEASE, None)
            row = session.get_one(Round, token[1])
            if rounds.wanted_of(session, row).is_called_off:
                claims.finish(session, *token, RoundStatus.CANCELLED)
                return
            spec = experiments.experiments.spec_of(experiments.experiments.get(session, row.experiment_id))
            batch = self._batch(session, row, spec) if picking.picks_after(spec, row) else None
            picking.advance(self.coordinator, session, row, batch)

    def _batch(self, session: Any, row: Round, spec: ExperimentSpec) -> Batch:
        taken = select(Pick.sample_idx).where(Pick.experiment_id == row.experiment_id)
        free = select(Sample.idx).where(Sample.dataset_id == self.dataset.id, Sample.role == "pool")
        found = session.scalars(free.where(Sample.idx.not_in(taken)).order_by(Sample.idx).limit(spec.budget)).all()
        report = {"budget": spec.budget, "picked": len(found), "candidates": len(found), "notes": []}
        return Batch(np.array(found, np.int64), [0.0] * len(found), 0.1, report)

    @rule(token=claims, cause=st.sampled_from(["stopped", "lost", "failed", "rejected", "full"]))
    def give_back(self, token: Token, cause: rounds.Cause) -> None:
        with self._holding(token), self.database.begin() as session:
            rounds.give_back(session, *token, cause, "why", self.coordinator.patience)

    def _made(self, token: Token, kind: str) -> Artefact:
        _, id, attempt = token
        key = f"rounds/{id}/a{attempt}/{kind}"
        experiment, number = self.homes[id]
        at = {"experiment_id": experiment, "round": number, "attempt": attempt}
        return artefacts.row(Stored(key, 1, "0" * 64), kind=kind, manifest={}, **at)

    def _holding(self, token: Token) -> "_Holding":
        return _Holding(self.ledger, token)

    # What time and stewards do.

    @rule(token=claims)
    def run_out(self, token: Token) -> None:
        """The lease of a worker that died runs out."""
        with self.database.begin() as session:
            session.execute(update(Round).where(Round.id == token[1]).values(lease_until=Round.lease_until - 2 * LEASE))

    @precondition(lambda self: self.begun)
    @rule()
    def reclaim(self) -> None:
        self.tidier.reclaim()
        with self.database.read() as session:
            assert not claims.expired(session, TRAIN) + claims.expired(session, SELECT)

    @precondition(lambda self: self.begun)
    @rule()
    def settle(self) -> None:
        self.tidier.settle()

    @rule(target=claims, work=WORKS, order=st.sampled_from(["pause", "cancel"]), at=st.integers(0, 2))
    @precondition(lambda self: self.begun and self.coordinator.database.engine.dialect.name == "postgresql")
    def claim_while_it_is_called_off(self, work: Work, order: str, at: int) -> Any:
        """A claim that is not committed yet, when its experiment is paused or cancelled and settled."""
        id = self.begun[at % len(self.begun)]
        if not self.ledger.may_be_ordered(id, order):
            return multiple()

        def call_off() -> None:
            self._order(id, order)
            self.tidier.settle()

        self.ledger.expect_two_transitions()
        person = threading.Thread(target=call_off)
        with self.database.begin() as session:
            found = self._begun(session, work, claims.claim(session, work, WORKERS[0], LEASE))
            person.start()
            person.join(0.05)  # until it is through, or waits for this transaction
        person.join(60)
        assert not person.is_alive()
        return found

    @rule(token=claims)
    @precondition(lambda self: self.begun and self.coordinator.database.engine.dialect.name == "postgresql")
    def give_up_while_it_is_resumed(self, token: Token) -> None:
        """A claim is given up and not committed yet, when somebody resumes its experiment."""
        id, _ = self.homes[token[1]]

        def resume() -> None:
            with suppress(WrongState, NotFound):
                self._order(id, "resume")

        self.ledger.expect_two_transitions()
        person = threading.Thread(target=resume)
        with self._holding(token), self.database.begin() as session:
            rounds.give_back(session, *token, "rejected", "why", self.coordinator.patience)
            person.start()
            person.join(0.05)  # until it is through, or waits for this transaction
        if person.ident is not None:  # a claim that is lost gives nothing up
            person.join(60)
            assert not person.is_alive()

    @invariant()
    def holds(self) -> None:
        Life.steps += 1
        self.ledger.check()

    def teardown(self) -> None:
        """Whatever happened, everything that was begun comes to an end without a person, once it is not paused."""
        if not self.ledger.is_sound:
            return  # a step has failed already
        for id in self.begun:
            if self.ledger.may_be_ordered(id, "resume"):
                self._order(id, "resume")
        with self.database.begin() as session:
            session.execute(update(Round).values(lease_until=Round.lease_until - 2 * LEASE))
        self.tidier.tidy()
        self.ledger.expect_two_transitions()
        self.ledger.check()
        while self._work_once(TRAIN) or self._work_once(SELECT):
            pass
        self.tidier.settle()
        self.ledger.check()
        self.ledger.require_all_ended()

    def _work_once(self, work: Work) -> bool:
        """Claim and finish whatever waits longest; False when nothing does."""
        with self.database.begin() as session:
            token = self._begun(session, work, claims.claim(session, work, "last", LEASE))
        if isinstance(token, tuple):
            self.ledger.check()
            self.finish(token, 1)
            self.ledger.check()
        return isinstance(token, tuple)


class _Holding:
    """Around a write under a claim: one that is held still is taken, one that is not is fenced and changes nothing."""

    def __init__(self, ledger: Ledger, token: Token) -> None:
        self._ledger, self._token, self._holds = ledger, token, ledger.holds(token)

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, _: Any) -> bool:
        if kind is None:
            assert self._holds, "a write under a claim that is lost was taken"
            return False
        if isinstance(error, Fenced):
            assert not self._holds, "a write under a claim that is held was fenced"
            self._ledger.require_nothing_changed()
            return True
        return False


def _side_by_side(acts: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=act) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
