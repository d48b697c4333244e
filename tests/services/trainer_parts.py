"""A real worker on a real database, with a small dataset of synthetic tissue."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import wait_until

from winnow.domain import DatasetSpec, ExperimentSpec, derive_seed
from winnow.selection.draws import draw_initial
from winnow.settings import Settings
from winnow.store import datasets, experiments, picks, rounds
from winnow.store.claims import INGEST
from winnow.store.tables import Dataset, Round
from winnow_trainer.standby import Standby
from winnow_trainer.worker import Worker

TISSUE: dict[str, Any] = {
    "name": "tissue",
    "image_size": 32,
    "sources": [{"kind": "synthetic", "synthetic": {"patches": 90, "slides": 6, "test_slides": 2}}],
    "draws": [{"count": 20, "by": "stratum"}],
}


@contextmanager
def worker_at(state: Path, *, standby: Standby | None = None, **changes: Any) -> Iterator[Worker]:
    """A worker with its database migrated; nothing polls. Its training process is its own unless it is given one."""
    quick = {"lease_seconds": 20, "renew_seconds": 0.2, "retry_seconds": 0, "threads": 1, "device": "cpu"}
    worker = Worker(Settings(state_dir=state, **{**quick, **changes}), standby)
    worker.database.migrate()
    try:
        yield worker
    finally:
        worker.leave()
        worker.close()


def add_dataset(worker: Worker, **changes: Any) -> Dataset:
    with worker.database.begin() as session:
        row = datasets.insert(session, DatasetSpec.model_validate({**TISSUE, **changes}))
    assert worker.attend(INGEST, row.id)
    with worker.database.read() as session:
        return datasets.get(session, row.id)


def add_round(worker: Worker, **changes: Any) -> Round:
    """An experiment with its S^0 and round 0, as the coordinator inserts them."""
    simclr = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "checkpoint_every": 1, **changes.pop("simclr", {})}
    body = {"name": "e", "dataset": "tissue", "positive_class": "TUM", "budget": 16, "rounds": 2, "candidates": 30}
    spec = ExperimentSpec.model_validate({**body, "simclr": simclr, "proxy": {"epochs": 3}, **changes})
    with worker.database.begin() as session:
        dataset = datasets.get(session, spec.dataset)
        experiment = experiments.insert(session, spec, dataset.id)
        pool = datasets.indices(session, dataset.id, "pool")
        samples = len(pool)
        if spec.arm != "full":
            first = draw_initial(pool, spec.budget, seed=derive_seed(spec.seed, "initial"))
            picks.insert(session, experiment.id, 0, first, [0.0] * len(first))
            samples = spec.budget
        return rounds.insert(session, experiment.id, 0, samples=samples)


def read_round(worker: Worker, round: Round) -> Round:
    with worker.database.read() as session:
        return rounds.get(session, round.experiment_id, round.number)


def wait_for_epoch(worker: Worker, round: Round, epoch: int) -> None:
    """Until the row says that so many epochs are over, and a later one under way: each has left a checkpoint."""
    wait_until(lambda: read_round(worker, round).progress.get("epoch", 0) >= epoch, 90, f"epoch {epoch}")


@contextmanager
def working(target: Any, *arguments: Any) -> Iterator[threading.Thread]:
    """`target` in a thread, joined at the end."""
    thread = threading.Thread(target=target, args=arguments)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(60)
        assert not thread.is_alive()


def children_of(supervisor: int | None = None) -> list[int]:
    """Process ids of the training processes that a trainer started, by default of a worker in this process."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    mine = f"winnow_trainer.child {supervisor or os.getpid()}"
    return [int(line.split()[0]) for line in listed.splitlines() if line.endswith(mine)]


def members() -> dict[int, int]:
    """Rank by process id of the members of teams that a worker in this process started."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    launchers = {pid for pid, _, args in rows if f"winnow_trainer.launcher {os.getpid()} " in args}
    ranks = {}
    for pid in (int(pid) for pid, parent, args in rows if parent in launchers and "winnow_trainer.member" in args):
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        except OSError:
            continue
        ranks[pid] = next(int(word[5:]) for word in environment if word.startswith("RANK="))
    return ranks


@contextmanager
def standing_still() -> Iterator[None]:
    """While the training process of this process's worker does nothing: its round stays in flight, however long."""
    (pid,) = children_of()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
