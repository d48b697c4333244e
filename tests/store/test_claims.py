"""Claims: one winner, fenced losers, leases by the database's clock."""

import multiprocessing
import threading

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session
from store.conftest import add_experiment

from winnow.domain import ExperimentStatus, RoundStatus
from winnow.errors import Fenced, WrongState
from winnow.store import Database, claims, events, experiments, rounds
from winnow.store.claims import SELECT, TRAIN
from winnow.store.engine import now
from winnow.store.rounds import Patience
from winnow.store.tables import Dataset, Experiment, Round

PATIENCE = Patience(max_losses=2, max_failures=2, retry_seconds=0.0)


def claim(database: Database, owner: str = "w1", lease: float = 30) -> Round | None:
    with database.begin() as session:
        row = claims.claim(session, TRAIN, owner, lease)
        assert row is None or isinstance(row, Round)
        return row


def test_a_claim_sets_owner_attempt_and_lease(database: Database, dataset: Dataset) -> None:
    round = add_experiment(database, dataset)
    row = claim(database)
    assert row is not None
    assert (row.id, row.status, row.owner, row.attempt) == (round.id, RoundStatus.TRAINING, "w1", 1)
    assert row.lease_until is not None and row.heartbeat_at is not None
    assert row.lease_until - row.heartbeat_at == pytest.approx(30, abs=1)


def test_a_claimed_row_is_not_claimed_again(database: Database, dataset: Dataset) -> None:
    add_experiment(database, dataset)
    assert claim(database) is not None
    assert claim(database, "w2") is None


def test_a_named_row_is_claimed_only_while_it_waits(database: Database, dataset: Dataset) -> None:
    round = add_experiment(database, dataset)
    for expected in (True, False):
        with database.begin() as session:
            assert (claims.claim(session, TRAIN, "w", 30, id=round.id) is not None) is expected


def test_rounds_of_a_paused_experiment_are_not_claimed(database: Database, dataset: Dataset) -> None:
    round = add_experiment(database, dataset)
    with database.begin() as session:
        experiments.transition(session, round.experiment_id, ExperimentStatus.PAUSING)
    assert claim(database) is None


def test_a_pause_waits_for_a_claim_that_is_not_committed_yet(database: Database, dataset: Dataset) -> None:
    """Else the steward could find nobody at work, and call the experiment paused while it is trained."""
    round = add_experiment(database, dataset)
    seen: list[bool] = []

    def pause() -> None:
        with database.begin() as session:
            experiments.transition(session, round.experiment_id, ExperimentStatus.PAUSING)
        with database.begin() as session:
            seen.append(rounds.is_worked_on(session, round.experiment_id))

    with database.begin() as session:
        assert claims.claim(session, TRAIN, "w1", 30) is not None
        person = threading.Thread(target=pause)
        person.start()
        person.join(0.3)
        assert person.is_alive() and not seen
    person.join(20)
    assert seen == [True]


def test_a_claim_waits_for_a_pause_that_is_not_committed_yet(database: Database, dataset: Dataset) -> None:
    round = add_experiment(database, dataset)
    won: list[Round | None] = []
    with database.begin() as session:
        experiments.transition(session, round.experiment_id, ExperimentStatus.PAUSING)
        worker = threading.Thread(target=lambda: won.append(claim(database)))
        worker.start()
        worker.join(0.3)
        assert worker.is_alive()
    worker.join(20)
    assert won == [None]


def test_an_old_attempt_is_fenced(database: Database, dataset: Dataset) -> None:
    add_experiment(database, dataset)
    first = claim(database)
    assert first is not None
    with database.begin() as session:
        rounds.give_back(session, TRAIN, first.id, 1, "lost", None, PATIENCE)
    second = claim(database, "w2")
    assert second is not None and second.attempt == 2
    with pytest.raises(Fenced), database.begin() as session:
        claims.renew(session, TRAIN, first.id, 1, 30, {"step": 1})
    with pytest.raises(Fenced), database.begin() as session:
        rounds.complete_training(session, first.id, 1, result={"metrics": {}}, rows=[])
    with pytest.raises(Fenced), database.begin() as session:
        rounds.start(session, first, 30)
    with database.begin() as session:
        claims.renew(session, TRAIN, first.id, 2, 30, {"step": 1})


def test_expired_leases_are_found_by_the_databases_clock(database: Database, dataset: Dataset) -> None:
    add_experiment(database, dataset)
    row = claim(database)
    assert row is not None
    with database.begin() as session:
        assert claims.expired(session, TRAIN) == []
        session.execute(update(Round).values(lease_until=Round.lease_until - 60))
    with database.begin() as session:
        assert [found.id for found in claims.expired(session, TRAIN)] == [row.id]


@pytest.mark.parametrize(("cause", "attempts"), [("lost", 2), ("failed", 2), ("rejected", 1)])
def test_attempts_are_capped_by_cause(database: Database, dataset: Dataset, cause: rounds.Cause, attempts: int) -> None:
    round = add_experiment(database, dataset)
    for attempt in range(1, attempts + 1):
        row = claim(database)
        assert row is not None, attempt
        with database.begin() as session:
            rounds.give_back(session, TRAIN, row.id, attempt, cause, "boom", PATIENCE)
    assert claim(database) is None
    with database.read() as session:
        ended = rounds.get(session, round.experiment_id, 0)
        assert ended.status == RoundStatus.FAILED and ended.ended_at is not None
        experiment = experiments.get(session, round.experiment_id)
        assert experiment.status == ExperimentStatus.FAILED
        assert experiment.error == "round 0: boom"


@pytest.mark.parametrize("cause", ["lost", "failed"])
def test_a_round_that_failed_is_resumed_and_its_attempts_are_counted_anew(
    database: Database, dataset: Dataset, cause: rounds.Cause
) -> None:
    round = add_experiment(database, dataset)
    for work, waiting in ((TRAIN, RoundStatus.QUEUED), (SELECT, RoundStatus.TRAINED)):
        for _ in range(2):
            with database.begin() as session:
                row = claims.claim(session, work, "w", 30)
                assert isinstance(row, Round)
            with database.begin() as session:
                claims.renew(session, work, row.id, row.attempt, 30, {"epoch": 7})
            with database.begin() as session:
                status = rounds.give_back(session, work, row.id, row.attempt, cause, "boom", PATIENCE)
            with database.read() as session:
                assert rounds.get(session, round.experiment_id, 0).progress == {}, "nobody is at work any more"
        assert status == RoundStatus.FAILED
        with database.begin() as session:  # days ago
            session.execute(update(Round).values(waiting_since=5.0, not_before=now() + 600))
        with database.begin() as session:
            experiments.transition(session, round.experiment_id, ExperimentStatus.RUNNING)
            rounds.resume(session, rounds.get(session, round.experiment_id, 0))
        with database.read() as session:
            resumed = rounds.get(session, round.experiment_id, 0)
            assert (resumed.status, resumed.error, resumed.ended_at, resumed.progress) == (waiting, None, None, {})
            assert (resumed.losses, resumed.failures, resumed.not_before) == (0, 0, 0)
            assert resumed.waiting_since > 5, "what it lay there as failed is no time of waiting"
            assert experiments.get(session, round.experiment_id).ended_at is None
            assert events.after(session, round.experiment_id, 0)[-1].type == rounds.RESUMED
        with pytest.raises(WrongState), database.begin() as session:
            rounds.resume(session, rounds.get(session, round.experiment_id, 0))
        if work is TRAIN:
            row = claim(database)
            assert row is not None and row.attempt == 3
            with database.begin() as session:
                result = {"visits": 0, "seconds": {}, "metrics": {}, "report": {}}
                rounds.complete_training(session, row.id, row.attempt, result=result, rows=[])


def pass_time(session: Session, table: type[Round]) -> None:
    """As if all that a row waited for had been long ago."""
    session.execute(update(table).values(not_before=table.not_before - 1e4, waiting_since=table.waiting_since - 1e4))


def test_a_round_that_finds_no_room_waits_for_it_however_often(database: Database, dataset: Dataset) -> None:
    patience, waits = rounds.Patience(max_losses=2, max_failures=2, retry_seconds=100), []
    round = add_experiment(database, dataset)
    for attempt in range(1, 6):
        row = claim(database)
        assert row is not None, attempt
        with database.begin() as session:
            assert rounds.give_back(session, TRAIN, row.id, attempt, "full", "no room", patience) == RoundStatus.QUEUED
        with database.begin() as session:
            waiting = rounds.get(session, round.experiment_id, 0)
            assert (waiting.losses, waiting.failures, waiting.error) == (0, 0, "no room")
            waits.append(waiting.not_before - waiting.waiting_since)
            pass_time(session, Round)
    assert waits == pytest.approx([100, 200, 400, 600, 600], abs=1), "twice as long each time, up to ten minutes"


@pytest.mark.parametrize("status", [ExperimentStatus.CANCELLING, ExperimentStatus.CANCELLED])
def test_a_round_of_an_experiment_that_is_called_off_ends_when_it_is_given_back(
    database: Database, dataset: Dataset, status: ExperimentStatus
) -> None:
    round = add_experiment(database, dataset)
    assert claim(database) is not None
    with database.begin() as session:
        session.execute(update(Experiment).values(status=status))
    with database.begin() as session:
        assert rounds.give_back(session, TRAIN, round.id, 1, "failed", "boom", PATIENCE) == RoundStatus.CANCELLED
        ended = rounds.get(session, round.experiment_id, 0)
        assert (ended.failures, ended.ended_at is None) == (0, False)


def test_stopping_counts_against_nothing(database: Database, dataset: Dataset) -> None:
    add_experiment(database, dataset)
    for attempt in range(1, 6):
        row = claim(database)
        assert row is not None
        with database.begin() as session:
            assert rounds.give_back(session, TRAIN, row.id, attempt, "stopped", None, PATIENCE) == RoundStatus.QUEUED


def test_a_failed_attempt_waits_before_the_next(database: Database, dataset: Dataset) -> None:
    add_experiment(database, dataset)
    row = claim(database)
    assert row is not None
    with database.begin() as session:
        rounds.give_back(session, TRAIN, row.id, 1, "failed", "boom", Patience(2, 3, retry_seconds=60))
    assert claim(database) is None


def test_bells_are_rung_again_only_after_a_while_and_for_the_longest_waiting(
    database: Database, dataset: Dataset
) -> None:
    ids = [add_experiment(database, dataset).id for _ in range(3)]
    with database.begin() as session:
        session.execute(update(Round).where(Round.id == ids[1]).values(waiting_since=1.0))
    with database.begin() as session:
        assert claims.unheard(session, TRAIN, 30, limit=1) == [ids[1]]
        assert set(claims.unheard(session, TRAIN, 30, limit=5)) == {ids[0], ids[2]}
        assert claims.unheard(session, TRAIN, 30, limit=5) == []


def test_a_lease_that_is_over_is_held_against_its_renewal(database: Database, dataset: Dataset) -> None:
    add_experiment(database, dataset)
    row = claim(database)
    assert row is not None
    with database.begin() as session:
        assert not claims.hold_expired(session, TRAIN, row.id)
        session.execute(update(Round).values(lease_until=0.0))
    with database.begin() as session:
        assert claims.hold_expired(session, TRAIN, row.id)
        assert not claims.hold_expired(session, TRAIN, "another")
    with database.begin() as session:
        claims.renew(session, TRAIN, row.id, row.attempt, 30, None)
    with database.begin() as session:
        assert not claims.hold_expired(session, TRAIN, row.id)


def test_a_round_goes_through_its_life(database: Database, dataset: Dataset) -> None:
    round = add_experiment(database, dataset)
    row = claim(database)
    assert row is not None
    result = {"visits": 10, "seconds": {"train": 1.5}, "metrics": {"f1": 0.5}, "report": {}}
    with database.begin() as session:
        rounds.start(session, row, 30)
    with database.begin() as session:
        rounds.complete_training(session, row.id, 1, result=result, rows=[])
    with database.begin() as session:
        picking = claims.claim(session, SELECT, "steward", 30)
        assert picking is not None
    with database.begin() as session:
        done = rounds.complete(session, row.id, picking.attempt, seconds={"pick": 0.25})
        assert done.seconds == {"train": 1.5, "pick": 0.25} and done.ended_at is not None
        kinds = [event.type for event in events.after(session, round.experiment_id, 0)]
        sequence = [event.seq for event in events.after(session, round.experiment_id, 0)]
    assert kinds == [
        "experiment.created",
        "round.queued",
        "experiment.running",
        "round.training",
        "round.trained",
        "round.done",
    ]
    assert sequence == list(range(1, len(kinds) + 1))


def test_a_start_whose_answer_was_lost_is_told_once(database: Database, dataset: Dataset) -> None:
    add_experiment(database, dataset)
    row = claim(database)
    assert row is not None
    for _ in range(2):
        with database.begin() as session:
            rounds.start(session, row, 30)
    with database.read() as session:
        told = [
            event.data["attempt"]
            for event in events.of_round(session, row.experiment_id, 0)
            if event.type == "round.training"
        ]
    assert told == [1]


def test_a_finished_experiment_cannot_be_paused(database: Database, dataset: Dataset) -> None:
    round = add_experiment(database, dataset)
    with database.begin() as session:
        for target in (ExperimentStatus.RUNNING, ExperimentStatus.COMPLETED):
            experiments.transition(session, round.experiment_id, target)
    with pytest.raises(WrongState) as caught, database.begin() as session:
        experiments.transition(session, round.experiment_id, ExperimentStatus.PAUSING)
    assert (caught.value.current, caught.value.allowed) == ("completed", [])


def test_a_transition_moves_only_what_its_caller_saw(database: Database, dataset: Dataset) -> None:
    round = add_experiment(database, dataset)
    with database.begin() as session:
        experiments.transition(session, round.experiment_id, ExperimentStatus.PAUSING)
    with pytest.raises(WrongState) as caught, database.begin() as session:
        seen = ExperimentStatus.CREATED
        experiments.transition(session, round.experiment_id, ExperimentStatus.RUNNING, seen=seen)
    assert (caught.value.current, caught.value.target) == ("pausing", "running")


def test_a_start_does_not_undo_a_pause(database: Database, dataset: Dataset) -> None:
    add_experiment(database, dataset)
    row = claim(database)
    assert row is not None
    with database.begin() as session:
        assert experiments.get(session, row.experiment_id).status == ExperimentStatus.CREATED
        paused = update(Experiment).values(status=ExperimentStatus.PAUSING)  # by somebody else, behind this look
        session.execute(paused.execution_options(synchronize_session=False))
        rounds.start(session, row, 30)
    with database.read() as session:
        assert experiments.get(session, row.experiment_id).status == ExperimentStatus.PAUSING


def _claim_all(url: str, owner: str, won: "multiprocessing.Queue[tuple[str, str, int]]") -> None:
    database = Database(url)
    while (row := claim(database, owner)) is not None:
        won.put((owner, row.id, row.attempt))
    database.close()
    won.put((owner, "", 0))


def test_eight_processes_never_claim_one_row_twice(database: Database, dataset: Dataset, database_url: str) -> None:
    wanted = {add_experiment(database, dataset).id for _ in range(24)}
    spawn = multiprocessing.get_context("spawn")
    won = spawn.Queue()
    racers = [spawn.Process(target=_claim_all, args=(database_url, f"w{i}", won)) for i in range(8)]
    for racer in racers:
        racer.start()
    claimed: list[str] = []
    ended = 0
    while ended < len(racers):
        _, id, attempt = won.get(timeout=120)
        if id:
            claimed.append(id)
            assert attempt == 1
        else:
            ended += 1
    for racer in racers:
        racer.join(30)
    assert len(claimed) == len(wanted) and set(claimed) == wanted
