"""Ends of a trainer's work that nobody planned: told to the row, with nothing lost and nothing left behind."""

import json
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog
from conftest import wait_until
from processes import Guard, Member
from servers import create_database, make_postgres
from services.trainer_parts import (
    TISSUE,
    add_dataset,
    add_round,
    children_of,
    read_round,
    wait_for_epoch,
    worker_at,
    working,
)
from sqlalchemy import make_url, update

from winnow.domain import DatasetSpec, ExperimentStatus, RoundStatus
from winnow.settings import Settings
from winnow.store import artefacts, datasets, experiments
from winnow.store.claims import INGEST, TRAIN
from winnow.store.tables import Dataset, Round
from winnow_trainer import scratch
from winnow_trainer.standby import Standby
from winnow_trainer.worker import Worker


def stored(worker: Worker, round: Round) -> dict[str, str]:
    """sha256 by kind."""
    with worker.database.read() as session:
        found = artefacts.of_round(session, round.experiment_id, round.number)
    return {kind: row.sha256 for kind, row in found.items()}


def test_a_stop_behind_the_training_loses_none_of_it(worker: Worker) -> None:
    round = add_round(worker, proxy={"epochs": 3000}, floors=False)
    with working(worker.attend, TRAIN, round.id):
        wait_until(lambda: read_round(worker, round).progress.get("phase") == "proxy", 60, "the proxy to be fitted")
        with worker.database.begin() as session:
            experiments.transition(session, round.experiment_id, ExperimentStatus.PAUSING)
    row = read_round(worker, round)
    assert (row.status, row.failures, row.error) == (RoundStatus.QUEUED, 0, None)
    kept = stored(worker, round)
    with worker.database.begin() as session:
        key = artefacts.of_round(session, round.experiment_id, 0)["checkpoint/counters"].key
        assert json.loads(worker.store.local(key).read_bytes())["epoch"] == 2, "the training was over"
        experiments.transition(session, round.experiment_id, ExperimentStatus.RUNNING)
    assert worker.attend(TRAIN, round.id)
    done = read_round(worker, round)
    assert (done.status, done.visits, len(done.report["losses"])) == (RoundStatus.TRAINED, 2 * 16, 2)
    assert stored(worker, round)["state/weights"] == kept["checkpoint/weights"]
    rest = {key for key in worker.store.list(f"experiments/{round.experiment_id}") if "/a1/" in key or "check" in key}
    assert not rest, "what the first attempt left is gone"


@pytest.mark.parametrize("settled", [ExperimentStatus.PAUSED, ExperimentStatus.CANCELLED])
def test_an_experiment_that_settled_before_its_round_was_seen_at_work_stops_it(
    worker: Worker, settled: ExperimentStatus
) -> None:
    round = add_round(worker, simclr={"epochs": 500})
    with working(worker.attend, TRAIN, round.id):
        wait_for_epoch(worker, round, 1)
        with worker.database.begin() as session:
            asked = {"paused": ExperimentStatus.PAUSING, "cancelled": ExperimentStatus.CANCELLING}[settled]
            experiments.transition(session, round.experiment_id, asked)
            experiments.transition(session, round.experiment_id, settled)
    became = RoundStatus.QUEUED if settled == ExperimentStatus.PAUSED else RoundStatus.CANCELLED
    assert read_round(worker, round).status == became
    assert ("checkpoint/weights" in stored(worker, round)) is (became == RoundStatus.QUEUED)
    left = worker.store.list(f"experiments/{round.experiment_id}")
    assert bool(left) is (became == RoundStatus.QUEUED), "a cancelled round keeps no checkpoint"


def test_scratch_that_cannot_be_written_is_told_and_the_worker_lives(tmp_path: Path) -> None:
    in_the_way = tmp_path / "scratch"
    in_the_way.write_text("a file")
    with worker_at(tmp_path / "state", scratch_dir=in_the_way) as worker:
        row = add_dataset(worker)
        assert row.failures == 1 and str(in_the_way) in str(row.error)
        in_the_way.unlink()
        assert worker.attend(INGEST, row.id)
        with worker.database.read() as session:
            assert datasets.get(session, row.id).status == "ready"


def test_a_defect_is_told_to_the_row(worker: Worker) -> None:
    round = add_round(worker)
    with worker.database.begin() as session:
        session.execute(update(Dataset).values(classes=["something", "else"]))
    assert worker.attend(TRAIN, round.id)
    row = read_round(worker, round)
    assert (row.status, row.failures) == (RoundStatus.QUEUED, 1)
    assert str(row.error).startswith("KeyError: ")
    assert not list(worker.settings.scratch_dir.iterdir())


def test_a_worker_without_its_database_finds_nothing_and_raises_nothing(tmp_path: Path) -> None:
    worker = Worker(Settings(state_dir=tmp_path / "state", device="cpu"))
    assert not worker.attend(TRAIN), "there are no tables yet"
    worker.database.migrate()
    assert not worker.attend(TRAIN)
    worker.close()


def test_the_poll_outlives_what_goes_wrong(tmp_path: Path) -> None:
    worker = Worker(Settings(state_dir=tmp_path / "state", device="cpu", poll_seconds=0.05, threads=1))
    worker.start()
    try:
        poll = next(thread for thread in threading.enumerate() if thread.name == "_poll")
        assert not poll.join(0.3) and poll.is_alive(), "it looked for work in a database without tables"
        worker.database.migrate()
        with worker.database.begin() as session:
            row = datasets.insert(session, DatasetSpec.model_validate(TISSUE))

        def status() -> bool:
            with worker.database.read() as session:
                return datasets.get(session, row.id).status == "ready"

        wait_until(status, 60, "the dataset to be ready")
    finally:
        worker.close()


def test_scratch_of_ended_attempts_is_swept_and_nothing_else(worker: Worker) -> None:
    round = add_round(worker)
    root = worker.settings.scratch_dir
    with worker.database.begin() as session:
        session.execute(update(Round).values(status=RoundStatus.TRAINING, attempt=3))
    kept = [root / f"{round.id}-a3", root / f"{'0' * 24}-a1", root / "notes-about"]
    for path in (*kept, root / f"{round.id}-a2"):
        path.mkdir(parents=True)
    scratch.sweep(root, worker.database)
    assert sorted(root.iterdir()) == sorted(kept)
    made = scratch.make(root, round.id, 4)
    assert sorted(root.iterdir()) == sorted([*kept[1:], made])


def test_shards_of_lost_attempts_go_when_an_ingest_is_done(worker: Worker) -> None:
    with worker.database.begin() as session:
        row = datasets.insert(session, DatasetSpec.model_validate({**TISSUE, "name": "again"}))
        session.execute(update(Dataset).where(Dataset.id == row.id).values(attempt=2))
    for attempt in (1, 2):
        worker.store.put(f"datasets/{row.id}/a{attempt}/images-00000.npy", b"shards of a machine that was lost")
    assert worker.attend(INGEST, row.id)
    keys = worker.store.list(f"datasets/{row.id}")
    assert keys and all("/a3/" in key for key in keys)


class Wire:
    """A TCP address in front of a Postgres server that can go silent without closing anything."""

    def __init__(self, url: str) -> None:
        address = make_url(url)
        host, port = str(address.query["host"]), int(str(address.query.get("port", 5432)))
        self._server = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.passes = threading.Event()
        self.passes.set()
        here = {"host": "127.0.0.1", "port": str(self._listener.getsockname()[1])}
        self.url = address.update_query_dict(here).render_as_string(hide_password=False)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.passes.set()
        for one in (self._listener, *self._open):
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX if isinstance(self._server, str) else socket.AF_INET)
            far.connect(self._server)
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while some := one.recv(65536):
                self.passes.wait()
                other.sendall(some)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            return


@contextmanager
def wire_to(url: str) -> Iterator[Wire]:
    wire = Wire(url)
    try:
        yield wire
    finally:
        wire.close()


def test_a_silent_database_costs_the_child_before_the_lease_ends(
    tmp_path: Path, postgres_url: str, standby: Standby
) -> None:
    with (
        wire_to(postgres_url) as wire,
        worker_at(tmp_path, standby=standby, database_url=wire.url, lease_seconds=6) as worker,
    ):
        add_dataset(worker)
        round = add_round(worker, simclr={"epochs": 5000})
        with working(worker.attend, TRAIN, round.id):
            wait_for_epoch(worker, round, 1)
            assert children_of()
            wire.passes.clear()
            wait_until(lambda: not children_of(), 6, "the child to be killed while its lease still runs")
            wire.passes.set()
        row = read_round(worker, round)
        assert (row.status, row.losses, row.failures) == (RoundStatus.QUEUED, 1, 0)
        assert "could not be renewed" in str(row.error)


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[tuple[Member, str]]:
    """A server of one test's own, to be killed, and the address of an empty database on it."""
    guard = Guard()
    member, url, folder = make_postgres(tmp_path / "postgres.log", guard)
    member.start()
    try:
        member.wait_ready()
        create_database(url)
        yield member, url
    finally:
        member.kill_family()
        guard.close()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_checkpoint_that_the_database_was_away_for_is_recorded_when_it_is_back(
    tmp_path: Path, postgres: tuple[Member, str], standby: Standby
) -> None:
    server, url = postgres
    with worker_at(tmp_path / "state", standby=standby, database_url=url, lease_seconds=120) as worker:
        add_dataset(worker)
        round = add_round(worker, simclr={"epochs": 5000, "optimizer": "sgd", "momentum": 0.0})
        with structlog.testing.capture_logs() as said, working(worker.attend, TRAIN, round.id):
            wait_until(lambda: stored(worker, round), 120, "the first checkpoint to be recorded")
            server.kill_family()
            wait_until(lambda: any(line["event"] == "checkpoint.unrecorded" for line in said), 60, "the next one")
            worker.leave()
            wait_until(lambda: any(line["event"] == "work.given_back" for line in said), 60, "the training to stop")
            server.start()
        row = read_round(worker, round)
        assert (row.status, row.losses, row.failures) == (RoundStatus.QUEUED, 0, 0)
        with worker.database.read() as session:
            kept = artefacts.of_round(session, round.experiment_id, 0)["checkpoint/counters"].key
        keys = worker.store.list(f"experiments/{round.experiment_id}")
        assert kept == max(key for key in keys if key.endswith(".json")), (
            "the newest one is what the round goes on from"
        )
