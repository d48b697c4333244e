"""A round in flight while the coordinator is replaced by a newer one, which migrates the database first."""

import subprocess
import sys

import httpx
from conftest import wait_until
from services.conftest import problem, serving
from services.trainer_parts import add_round, read_round, standing_still, working
from sqlalchemy import text

from winnow.domain import RoundStatus
from winnow.settings import Settings
from winnow.store import Database, rounds
from winnow.store.claims import TRAIN
from winnow.store.schema import SCHEMA
from winnow_coordinator.app import make_app
from winnow_coordinator.context import Coordinator
from winnow_coordinator.picking import Picker
from winnow_coordinator.tidying import Tidier
from winnow_trainer.worker import Worker


def set_revision(database: Database, revision: str) -> None:
    with database.begin() as session:
        session.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


def migrate(settings: Settings) -> "subprocess.CompletedProcess[str]":
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": ":".join(sys.path),
        "WINNOW_DATABASE_URL": settings.database_url,
        "WINNOW_STATE_DIR": str(settings.state_dir),
    }
    command = [sys.executable, "-m", "winnow_coordinator", "migrate"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_round_in_flight_ends_under_the_coordinator_that_follows(worker: Worker) -> None:
    before = Coordinator.open(worker.settings)
    round = add_round(worker, arm="full", full_evaluate_every=2, simclr={"epochs": 4})
    with working(worker.attend, TRAIN, round.id):
        wait_until(lambda: read_round(worker, round).progress, 120, "the round to be under way")
        with standing_still():
            before.close()
            assert migrate(worker.settings).returncode == 0
            after = Coordinator.open(worker.settings)
            Tidier(after).tidy()
            assert read_round(worker, round).status == RoundStatus.TRAINING
    assert (read_round(worker, round).status, read_round(worker, round).attempt) == (RoundStatus.TRAINED, 1)
    picker = Picker(after, "the one that follows")
    assert picker.pick_next()
    with worker.database.read() as session:
        assert rounds.get(session, round.experiment_id, 1).status == RoundStatus.QUEUED
    picker.close()
    after.close()


def test_a_coordinator_of_another_version_is_not_ready(coordinator: Coordinator) -> None:
    with serving(make_app(coordinator, steward=False)) as url:
        assert httpx.get(f"{url}/readyz").status_code == 200
        set_revision(coordinator.database, "9999")
        refused = problem(httpx.get(f"{url}/readyz"), 503, "wrong-schema")
        assert refused["detail"].endswith("update this program")


def test_an_older_trainer_ends_its_round_and_begins_no_other(worker: Worker) -> None:
    first, second = add_round(worker, simclr={"epochs": 4}), add_round(worker)
    with working(worker.attend, TRAIN, first.id):
        wait_until(lambda: read_round(worker, first).progress, 120, "the round to be under way")
        with standing_still():
            set_revision(worker.database, "9999")
            assert read_round(worker, first).status == RoundStatus.TRAINING
    assert read_round(worker, first).status == RoundStatus.TRAINED
    assert not worker.attend(TRAIN, second.id)
    row = read_round(worker, second)
    assert (row.status, row.attempt, row.losses, row.failures) == (RoundStatus.QUEUED, 0, 0, 0)
    set_revision(worker.database, SCHEMA)
    assert worker.attend(TRAIN, second.id), "and goes on once it is updated"
