"""A pool of millions of patches: what each step takes, and how long others wait for it.

    python benchmarks/pool.py --samples 5000000

A manifest of that many rows in random order is looked through, as a coordinator does when a dataset is added. Then the
code of trainers and coordinators runs itself, in one process, on an SQLite file and a Postgres of its own: samples are
stored as an ingest stores them, all are sent as `winnow verify` reads them, an experiment is begun, its first round is
prepared, the whole pool is sent as the `full` arm's batch, and the dataset is removed. A second thread writes all the
while, as renewals of leases do: a write that waits for longer than a lease costs a round its claim. No image is read.

`--only ingest` packs that many patches of 8x8 pixels from an .npz: ten million take a quarter of an hour.
"""

import argparse
import asyncio
import json
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.lib import format as npy
from processes import Guard
from servers import create_database, make_postgres
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from winnow.domain import DatasetSpec, ExperimentSpec, ExperimentStatus, SampleRow
from winnow.settings import Settings
from winnow.store import Database, claims, datasets, experiments
from winnow.store.tables import Dataset, Round, Worker
from winnow_coordinator import batches, streams
from winnow_coordinator import datasets as asked
from winnow_coordinator import experiments as planned
from winnow_coordinator import samples as listed
from winnow_coordinator.context import Coordinator
from winnow_coordinator.source_check import SourceCheck
from winnow_trainer.assignments import Ingest, Train
from winnow_trainer.worker import Worker as Trainer

OWNER = "pool"
NAME = "large"
CLASSES = ["a", "b"]


class Others:
    """Writes five times a second, and looks twenty times at the memory of this process and of those that `beside` is
    said to start.
    """

    def __init__(self, url: str) -> None:
        self._database, self._process, self._over = Database(url), psutil.Process(), threading.Event()
        self._known: set[int] | None = None
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
    def beside(self, step: str, *, starts: bool = False) -> Iterator[None]:
        """Print what a step took, and what it took from others. `starts`: it starts processes, whose memory counts."""
        self._known = {child.pid for child in self._process.children()} if starts else None
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
            self.most = max(self.most, self._process.memory_info().rss + self._started())

    def _started(self) -> int:
        if self._known is None:
            return 0
        taken = 0
        for child in self._process.children():
            with suppress(psutil.NoSuchProcess):  # it has ended
                taken += 0 if child.pid in self._known else child.memory_info().rss
        return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5_000_000)
    parts = ("manifest", "ingest", "sqlite", "postgres")
    parser.add_argument("--only", nargs="+", choices=parts, default=("manifest", "sqlite", "postgres"))
    parser.add_argument("--folder", type=Path, help="where the database lies while it runs")
    options = parser.parse_args()
    for part in options.only:
        kind = "postgres" if part == "postgres" else "sqlite"
        measure = {"manifest": measure_manifest, "ingest": measure_ingest}.get(part, measure_database)
        with tempfile.TemporaryDirectory(prefix="winnow-pool-", dir=options.folder) as made, server(kind, made) as url:
            print(f"{part}, {options.samples:,} samples")
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


def measure_manifest(url: str, folder: Path, samples: int) -> None:
    """Slides of 4,000 patches, two tests sets of a hundredth each to be drawn."""
    settings = Settings(state_dir=folder / "state", database_url=url, data_roots=(folder,))
    table = folder / "manifest.csv"
    order = np.random.default_rng(0).permutation(samples).tolist()
    with table.open("w") as out:
        out.write("path,label,group\n")
        for at in order:
            slide = f"slide-{at // 4000:05}"
            out.write(f"patches/{slide}/{at:08}_{at % 997}_{at % 1013}.png,{CLASSES[at % 7 == 0]},{slide}\n")
    del order
    print(f"  {table.stat().st_size / 2**20:,.0f} MiB of CSV")
    share = max(samples // 100, 1)
    draws = [{"role": "test", "count": share}, {"role": "labelled", "count": share, "by": "stratum"}]
    source = {"kind": "manifest", "path": str(table)}
    spec = DatasetSpec.model_validate({"name": NAME, "sources": [source], "draws": draws})
    with closing(Database(url)) as database:
        database.migrate()
    with Others(url) as others, others.beside("a manifest looked through", starts=True):
        asyncio.run(SourceCheck(settings, threading.Event()).run(spec))


def measure_ingest(url: str, folder: Path, samples: int) -> None:
    """By the process that a trainer starts for it."""
    source = write_patches(folder / "patches.npz", samples)
    settings = Settings(state_dir=folder / "state", database_url=url, data_roots=(folder,))
    database = Database(url)
    database.migrate()
    spec = {
        "name": NAME,
        "image_size": 8,
        "sources": [source],
        "draws": [{"role": "labelled", "count": samples // 100}],
    }
    with database.begin() as session:
        id = datasets.insert(session, DatasetSpec.model_validate(spec)).id
    trainer = Trainer(settings)
    with Others(url) as others, others.beside("patches packed and stored", starts=True):
        trainer.attend(claims.INGEST, id)
    trainer.leave()
    trainer.close()
    with database.read() as session:
        print(f"  {datasets.get(session, id).status}")
    database.close()


def write_patches(path: Path, samples: int) -> dict[str, Any]:
    """A source of noise, its archive written piece by piece."""
    rng, piece = np.random.default_rng(0), 100_000
    with zipfile.ZipFile(path, "w") as archive, archive.open("train_images.npy", "w", force_zip64=True) as member:
        npy.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (samples, 8, 8, 3)})
        for start in range(0, samples, piece):
            member.write(rng.integers(0, 256, (min(piece, samples - start), 8, 8, 3), dtype=np.uint8).tobytes())
    with zipfile.ZipFile(path, "a") as archive, archive.open("train_labels.npy", "w") as member:
        np.save(member, rng.integers(0, 2, samples).astype(np.uint8))
    return {"kind": "npz", "path": str(path)}


def measure_database(url: str, folder: Path, samples: int) -> None:
    coordinator = Coordinator.open(Settings(state_dir=folder / "state", database_url=url))
    coordinator.database.migrate()
    told = write_samples(folder / "samples.jsonl", samples)
    with Others(url) as others:
        ingest = claim_ingest(coordinator)
        with others.beside("samples stored"):
            store(coordinator.database, ingest, told)
        with others.beside("all samples sent as NDJSON"):
            size = list_all(coordinator)
        print(f"  {size / 2**20:,.0f} MiB of NDJSON")
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
    place = {"location": "datasets/large/a1", "parts": "datasets/large/a1/parts"}
    result = {"classes": CLASSES, "counts": counts, "report": {}, **place}
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


def list_all(coordinator: Coordinator) -> int:
    """Bytes of all samples."""
    with coordinator.database.read() as session:
        listing = listed.listing(session, NAME, None, None)
    return sum(map(len, streams.ndjson(SampleRow._fields, listing.pages(coordinator.database))))


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
