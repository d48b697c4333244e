"""A pool of millions of patches in the database: what each step takes, and how long others wait for it.

    python benchmarks/pool.py --samples 5000000

Runs the code of trainers and coordinators itself, in one process, on an SQLite file and a Postgres of its own: samples
are stored as an ingest stores them, an experiment is begun, its first round is prepared, the whole pool is sent as the
`full` arm's batch, and the dataset is removed. A second thread writes all the while, as renewals of leases do: a write
that waits for longer than a lease costs a round its claim. No image is read.
"""

import argparse
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from processes import Guard
from servers import create_database, make_postgres
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from winnow.domain import DatasetSpec, ExperimentSpec, ExperimentStatus
from winnow.settings import Settings
from winnow.store import Database, claims, datasets, experiments
from winnow.store.tables import Dataset, Round, Worker
from winnow_coordinator import batches
from winnow_coordinator import datasets as asked
from winnow_coordinator import experiments as planned
from winnow_coordinator.context import Coordinator
from winnow_trainer.assignments import Ingest, Train

OWNER = "pool"
NAME = "large"
CLASSES = ["a", "b"]


class Others:
    """Writes five times a second, and looks at this process's memory twenty times."""

    def __init__(self, url: str) -> None:
        self._database, self._process, self._over = Database(url), psutil.Process(), threading.Event()
        self._written = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._write, self._weigh)]
        self.longest, self.given_up, self.most = 0.0, 0, 0

    def __enter__(self) -> "Others":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._database.close()

    @contextmanager
    def beside(self, step: str) -> Iterator[None]:
        """Print what a step took, and what it took from others."""
        self.longest, self.given_up, self.most = 0.0, 0, 0
        before, begun = self._process.memory_info().rss, time.monotonic()
        yield
        seconds = time.monotonic() - begun
        self._written.clear()
        self._written.wait()  # a write that waited for the end of it is counted, too
        waited = f"{self.longest:.1f} s" + (f", {self.given_up} given up" if self.given_up else "")
        grown = max(0, self.most - before) / 2**20
        print(f"{step:34}{seconds:8.1f} s   others waited {waited:20} memory +{grown:,.0f} MiB", flush=True)

    def _write(self) -> None:
        while not self._over.wait(0.2):
            begun = time.monotonic()
            try:
                with self._database.begin() as session:
                    session.execute(update(Worker).values(busy_with=None))
            except OperationalError:
                self.given_up += 1
            self.longest = max(self.longest, time.monotonic() - begun)
            self._written.set()

    def _weigh(self) -> None:
        while not self._over.wait(0.05):
            self.most = max(self.most, self._process.memory_info().rss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5_000_000)
    parser.add_argument("--only", nargs="+", choices=("sqlite", "postgres"), default=("sqlite", "postgres"))
    parser.add_argument("--folder", type=Path, help="where the database lies while it runs")
    options = parser.parse_args()
    for kind in options.only:
        with tempfile.TemporaryDirectory(prefix="winnow-pool-", dir=options.folder) as made, server(kind, made) as url:
            print(f"{kind}, {options.samples:,} samples")
            measure(url, Path(made), options.samples)


@contextmanager
def server(kind: str, folder: str) -> Iterator[str]:
    """The address of an empty database."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/pool.sqlite3"
        return
    guard = Guard()
    member, url, data = make_postgres(Path(folder) / "postgres.log", guard, settings=())
    try:
        member.start()
        member.wait_ready()
        create_database(url)
        yield url
    finally:
        member.stop()
        guard.close()
        shutil.rmtree(data, ignore_errors=True)


def measure(url: str, folder: Path, samples: int) -> None:
    coordinator = Coordinator.open(Settings(state_dir=folder / "state", database_url=url))
    coordinator.database.migrate()
    told = write_samples(folder / "samples.jsonl", samples)
    with Others(url) as others:
        ingest = claim_ingest(coordinator)
        with others.beside("samples stored"):
            store(coordinator.database, ingest, told)
        for initial in ("random", "stratum"):
            with others.beside(f"an experiment begun, {initial}"):
                begin(coordinator, initial=initial)
        with others.beside("its round prepared"):
            prepare(coordinator, folder)
        full = begin(coordinator, arm="full")
        with others.beside("the pool sent as JSON"):
            size = send(coordinator, full)
        print(f"  {size / 2**20:,.0f} MiB of JSON")
        end(coordinator)
        with others.beside("the dataset removed"):
            asked.remove(coordinator, NAME)
    coordinator.close()


def write_samples(path: Path, samples: int) -> dict[str, Any]:
    """What an ingest's child tells of that many samples: one in a hundred labelled, two in a hundred for tests."""
    roles = ["labelled", "test", "test"] + 97 * ["pool"]
    counts: dict[str, dict[str, int]] = {}
    with path.open("w") as out:
        for idx in range(samples):
            role, label, slide = roles[idx % 100], CLASSES[idx % 7 == 0], f"slide-{idx // 4000:05}"
            row = {"idx": idx, "key": f"{slide}/{idx:08}.png", "role": role, "label": label, "group": slide}
            out.write(json.dumps(row) + "\n")
            by_label = counts.setdefault(role, dict.fromkeys(CLASSES, 0))
            by_label[label] += 1
    result = {"classes": CLASSES, "counts": counts, "report": {}, "location": "datasets/large/a1"}
    return {"samples": str(path), "total": samples, **result}


def claim_ingest(coordinator: Coordinator) -> Ingest:
    spec = {"name": NAME, "image_size": 224, "sources": [{"kind": "folder", "path": "/patches"}]}
    with coordinator.database.begin() as session:
        datasets.insert(session, DatasetSpec.model_validate(spec))
    with coordinator.database.begin() as session:
        row = claims.claim(session, claims.INGEST, OWNER, coordinator.settings.lease_seconds)
    assert isinstance(row, Dataset)
    return Ingest(row, coordinator.settings)


def store(database: Database, ingest: Ingest, told: dict[str, Any]) -> None:
    """As a supervisor does."""

    def persist(part: Callable[..., Any]) -> Any:
        with database.begin() as session:
            return part(session)

    for part in ingest.slices(told):
        while persist(part):
            pass
    persist(lambda session: ingest.complete(session, told))


def begin(coordinator: Coordinator, **changes: Any) -> str:
    spec = {"name": "e", "dataset": NAME, "arm": "random", "positive_class": "b", "rounds": 3, "budget": 1000}
    plan = planned.plan(coordinator, ExperimentSpec.model_validate({**spec, **changes}))
    with coordinator.database.begin() as session:
        return planned.begin(coordinator, session, plan).id


def prepare(coordinator: Coordinator, folder: Path) -> None:
    with coordinator.database.begin() as session:
        row = claims.claim(session, claims.TRAIN, OWNER, coordinator.settings.lease_seconds)
    assert isinstance(row, Round)
    train = Train(row, coordinator.settings, coordinator.artefacts)
    with coordinator.database.read() as session:
        train.prepare(session, folder)
    with coordinator.database.begin() as session:
        train.start(session)


def send(coordinator: Coordinator, id: str) -> int:
    """Bytes of the whole batch of round 0."""
    with coordinator.database.read() as session:
        batch = batches.of_round(session, id, 0)
    content, _ = batches.render(batch, coordinator.database, "application/json")
    return sum(map(len, content))


def end(coordinator: Coordinator) -> None:
    """Remove every experiment: a dataset goes when none is on it."""
    with coordinator.database.begin() as session:
        for row in experiments.page(session, before=None, limit=10):
            row.status = ExperimentStatus.CANCELLED
            session.flush()
            experiments.remove(session, row.id)


if __name__ == "__main__":
    main()
