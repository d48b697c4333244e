"""The judge of the chaos runs: an orderly experiment passes, and a database doctored against any one rule does not."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import wait_until
from deaths import Death, left_checkpoint, waits, witness
from services.conftest import Driver, add_dataset, experiment_body
from sqlalchemy import text
from verdict import RULES, Outcome, Record, compare, judge, read

from winnow.artefacts import Stored, put_array
from winnow.domain import Role
from winnow.store import artefacts, claims, datasets, experiments, picks, rounds
from winnow.store.claims import SELECT
from winnow.store.tables import Artefact, Round
from winnow_coordinator.context import Coordinator
from winnow_coordinator.orders import Batch
from winnow_coordinator.picking import advance, is_last
from winnow_coordinator.tidying import Tidier

BUDGET, ROUNDS = 5, 3


@pytest.fixture
def id(coordinator: Coordinator, api: httpx.Client, driver: Driver) -> str:
    """A completed experiment of three rounds, with all that a trainer leaves of each."""
    add_dataset(coordinator)
    body = experiment_body(arm="random", budget=BUDGET, rounds=ROUNDS)
    created = api.post("/experiments", json=body).json()["id"]
    for number in range(ROUNDS):
        round = driver.claim()
        with coordinator.database.begin() as session:
            result = {"visits": 100 * (number + 1), "seconds": {}, "metrics": {"f1": 0.5 + number / 10}, "report": {}}
            rows = [store(coordinator, round, f"state/{part}") for part in ("weights", "optimizer", "counters")]
            rounds.complete_training(session, round.id, round.attempt, result=result, rows=rows)
        pick(coordinator)
    return created


def store(coordinator: Coordinator, round: Round, kind: str) -> Artefact:
    prefix = f"experiments/{round.experiment_id}/rounds/{round.number:04d}/a{round.attempt}"
    stored = put_array(coordinator.artefacts, f"{prefix}/{kind.replace('/', '-')}.npy", np.arange(round.number + 3))
    at = {"experiment_id": round.experiment_id, "round": round.number, "attempt": round.attempt}
    return artefacts.row(stored, kind=kind, manifest={}, **at)


def pick(coordinator: Coordinator) -> None:
    """What a picker does with the sampler's answer; here the lowest samples that are left."""
    with coordinator.database.begin() as session:
        round = claims.claim(session, SELECT, "steward", 30)
        assert isinstance(round, Round)
        experiment = experiments.get(session, round.experiment_id)
        batch = None
        if not is_last(experiments.spec_of(experiment), round):
            pool = datasets.indices(session, experiment.dataset_id, Role.POOL)
            left = np.setdiff1d(pool, picks.selected(session, experiment.id, up_to=round.number))[:BUDGET]
            report = {"budget": BUDGET, "picked": BUDGET, "candidates": len(pool), "notes": []}
            batch = Batch(left, [0.0] * BUDGET, 0.1, report)
        advance(coordinator, session, round, batch)


def record_of(coordinator: Coordinator, id: str) -> Record:
    (record,) = read(coordinator.database, [id])
    return record


def broken_rules(coordinator: Coordinator, id: str) -> set[str]:
    return {breach.rule for breach in judge(record_of(coordinator, id), coordinator.settings.artefact_dir)}


def doctor(coordinator: Coordinator, *statements: str) -> None:
    """Run statements on tables that hold nothing against them: no key, no constraint."""
    with coordinator.database.engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")  # PRAGMA foreign_keys does nothing inside a transaction
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        for table in ("pick", "artefact", "event", "round"):
            connection.exec_driver_sql(f"CREATE TABLE loose AS SELECT * FROM {table}")
            connection.exec_driver_sql(f"DROP TABLE {table}")
            connection.exec_driver_sql(f"ALTER TABLE loose RENAME TO {table}")
        for statement in statements:
            assert connection.execute(text(statement)).rowcount > 0, f"changed nothing: {statement}"
        connection.exec_driver_sql("BEGIN")


def test_an_orderly_experiment_breaks_no_rule(coordinator: Coordinator, id: str) -> None:
    record = record_of(coordinator, id)
    assert judge(record, coordinator.settings.artefact_dir) == []
    assert compare(record, Outcome.of(record)) == []
    assert len(record.picks) == BUDGET * ROUNDS and len(record.rounds) == ROUNDS


DONE = "(SELECT min(seq) FROM event WHERE type = 'round.done')"
DOCTORED: list[tuple[str, str]] = [
    ("ends", "UPDATE experiment SET status = 'failed'"),
    ("ends", "UPDATE experiment SET status = 'running'"),
    ("ends", "UPDATE round SET status = 'selecting' WHERE number = 2"),
    ("published once", "DELETE FROM round WHERE number = 1"),
    ("published once", "INSERT INTO round SELECT * FROM round WHERE number = 2"),
    ("published once", f"INSERT INTO event SELECT * FROM event WHERE seq = {DONE}"),
    ("published once", "DELETE FROM event WHERE type = 'round.trained'"),
    ("published once", "INSERT INTO event SELECT * FROM event WHERE type = 'experiment.completed'"),
    ("picked once", "UPDATE pick SET sample_idx = (SELECT min(sample_idx) FROM pick WHERE round = 0) WHERE round = 1"),
    ("picked once", "INSERT INTO pick SELECT * FROM pick WHERE round = 2 AND rank = 0"),
    ("ranks", "UPDATE pick SET rank = 9 WHERE round = 1 AND rank = 4"),
    ("ranks", "UPDATE pick SET rank = 0 WHERE round = 1 AND rank = 1"),
    ("ranks", "DELETE FROM pick WHERE round = 2 AND rank = 4"),
    ("ranks", "UPDATE round SET samples = samples + 1 WHERE number = 1"),
    ("roles", "UPDATE pick SET sample_idx = (SELECT min(idx) FROM sample WHERE role = 'labelled') WHERE rank = 0"),
    ("roles", "UPDATE pick SET sample_idx = (SELECT min(idx) FROM sample WHERE role = 'test') WHERE rank = 3"),
    ("roles", "UPDATE pick SET sample_idx = 100000 WHERE round = 1 AND rank = 0"),
    ("artefacts", "DELETE FROM artefact WHERE kind = 'state/weights' AND round = 1"),
    ("artefacts", "UPDATE artefact SET sha256 = 'f' || substr(sha256, 2) || 'f' WHERE round = 0"),
    ("artefacts", "UPDATE artefact SET size = size + 1 WHERE round = 2"),
    ("artefacts", "UPDATE artefact SET attempt = 7 WHERE round = 2"),
    ("artefacts", "INSERT INTO artefact SELECT * FROM artefact WHERE round = 2"),
    ("attempts", "UPDATE event SET data = json_set(data, '$.attempt', 40) WHERE type = 'round.training'"),
    ("attempts", "INSERT INTO event SELECT * FROM event WHERE type = 'round.training' AND seq < 5"),
    ("attempts", "UPDATE round SET attempt = 0 WHERE number = 1"),
    ("events", "DELETE FROM event WHERE seq = 3"),
    ("events", "UPDATE experiment SET events = events + 1"),
]


@pytest.mark.parametrize(("rule", "statement"), DOCTORED, ids=[f"{rule}-{n}" for n, (rule, _) in enumerate(DOCTORED)])
def test_a_doctored_database_breaks_its_rule(coordinator: Coordinator, id: str, rule: str, statement: str) -> None:
    doctor(coordinator, statement)
    assert rule in broken_rules(coordinator, id)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip_a_byte, cut_short, Path.unlink])
def test_a_damaged_artefact_breaks_its_rule(
    coordinator: Coordinator, id: str, damage: Callable[[Path], object]
) -> None:
    row = record_of(coordinator, id).artefacts[0]
    damage(coordinator.settings.artefact_dir / row["key"])
    assert broken_rules(coordinator, id) == {"artefacts"}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE pick SET score = 0.25 WHERE round = 1 AND rank = 0",
        "UPDATE pick SET rank = 4 - rank WHERE round = 2",
        "UPDATE round SET metrics = json_set(metrics, '$.f1', 0.51) WHERE number = 2",
        "UPDATE round SET visits = visits + 1 WHERE number = 0",
        "UPDATE artefact SET sha256 = 'another' WHERE kind = 'state/weights' AND round = 2",
        "DELETE FROM pick WHERE round = 2",
    ],
)
def test_what_differs_from_the_undisturbed_run_is_said(coordinator: Coordinator, id: str, statement: str) -> None:
    undisturbed = Outcome.of(record_of(coordinator, id))
    doctor(coordinator, statement)
    assert {breach.rule for breach in compare(record_of(coordinator, id), undisturbed)} == {"same"}


def test_every_rule_is_shown_to_fail_and_an_experiment_that_is_gone_is_not_read(
    coordinator: Coordinator, id: str
) -> None:
    assert {rule for rule, _ in DOCTORED} == set(RULES)
    assert read(coordinator.database, ["0" * 24]) == []
    record = record_of(coordinator, id)
    empty = replace(record, rounds=[], picks=[], artefacts=[], events=[])
    assert {breach.rule for breach in judge(empty, Path())} >= {"published once", "events"}


def test_a_death_is_witnessed_and_so_is_the_moment_its_round_is_taken_back(
    coordinator: Coordinator, api: httpx.Client
) -> None:
    add_dataset(coordinator)
    created = api.post("/experiments", json=experiment_body()).json()["id"]
    with coordinator.database.begin() as session:
        row = claims.claim(session, claims.TRAIN, "host:4711", 0.2)
        assert isinstance(row, Round)
        rounds.start(session, row, 0.2)
        claims.renew(session, claims.TRAIN, row.id, row.attempt, 0.2, {"phase": "train", "epoch": 3})
    assert witness(coordinator.database, coordinator.settings.artefact_dir, 711, "kill") == []
    deaths = witness(coordinator.database, coordinator.settings.artefact_dir, 4711, "kill")
    assert [(death.experiment, death.attempt, death.epochs) for death in deaths] == [(created, 1, 3)]
    assert waits(deaths, [record_of(coordinator, created)]) == []
    tidier = Tidier(coordinator)
    wait_until(lambda: tidier.reclaim() or record_of(coordinator, created).told("round.retried"), 60, "the reclaim")
    ((death, seconds),) = waits(deaths, [record_of(coordinator, created)])
    assert death == deaths[0] and 0 < seconds < 10
    assert waits([replace(death, attempt=2)], [record_of(coordinator, created)]) == []


def test_a_trainer_that_leaves_is_seen_to_leave_a_checkpoint(coordinator: Coordinator, api: httpx.Client) -> None:
    add_dataset(coordinator)
    id = api.post("/experiments", json=experiment_body()).json()["id"]
    first, left = Driver(coordinator).claim(), Death("sigterm", 0.0, id, 0, 1, None, 0)
    assert left_checkpoint(coordinator.database, left) is False
    leave_checkpoint(coordinator, first)
    assert left_checkpoint(coordinator.database, left) is True
    assert left_checkpoint(coordinator.database, replace(left, at=math.inf)) is False, "it is an older one"
    with coordinator.database.begin() as session:
        rounds.give_back(session, claims.TRAIN, first.id, first.attempt, "stopped", None, coordinator.patience)
    leave_checkpoint(coordinator, Driver(coordinator).claim())
    assert left_checkpoint(coordinator.database, left) is None, "another stands in its place"


def leave_checkpoint(coordinator: Coordinator, row: Round) -> None:
    at = {"experiment_id": row.experiment_id, "round": row.number, "attempt": row.attempt}
    stored = Stored(f"experiments/{row.experiment_id}/rounds/0000/a{row.attempt}/counters.json", 1, "0" * 64)
    with coordinator.database.begin() as session:
        made = artefacts.row(stored, kind="checkpoint/counters", manifest={}, **at)
        rounds.record(session, row.id, row.attempt, 30, [made])
