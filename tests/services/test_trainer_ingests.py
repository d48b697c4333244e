"""An ingest that loses its trainer: the next attempt goes on behind the last full shard, and nothing is left over."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from PIL import Image
from services.trainer_parts import TISSUE, children_of, worker_at, working

from winnow.domain import DatasetSpec, DatasetStatus
from winnow.store import datasets
from winnow.store.claims import INGEST
from winnow.store.tables import Dataset, Sample
from winnow_trainer.worker import Worker

PATCHES = 1200
SLOW: dict[str, Any] = {
    **TISSUE,
    "name": "slow",
    "image_size": 96,
    "shard_size": 8,
    "sources": [{"kind": "synthetic", "synthetic": {"patches": PATCHES, "slides": 6, "test_slides": 2}}],
}


def insert(worker: Worker, spec: dict[str, Any]) -> Dataset:
    with worker.database.begin() as session:
        return datasets.insert(session, DatasetSpec.model_validate(spec))


def read(worker: Worker, row: Dataset) -> Dataset:
    with worker.database.read() as session:
        return datasets.get(session, row.id)


def below(worker: Worker, row: Dataset) -> list[str]:
    return [key.removeprefix(f"datasets/{row.id}/") for key in worker.store.list(f"datasets/{row.id}")]


def shards(worker: Worker, row: Dataset, attempt: int) -> dict[str, int]:
    """The inode of each shard by its name: one that was moved has its own still."""
    folder = worker.settings.artefact_dir / "datasets" / row.id / f"a{attempt}"
    return {path.name: path.stat().st_ino for path in folder.glob("images-*.npy")}


def wait_for_shards(worker: Worker, row: Dataset, attempt: int, count: int) -> None:
    parts = worker.settings.artefact_dir / "datasets" / row.id / f"a{attempt}" / "parts"
    wait_until(lambda: len(list(parts.glob("images-*"))) >= count, 60, "a few shards to be kept")


def test_an_ingest_goes_on_where_a_killed_one_was(worker: Worker) -> None:
    row = insert(worker, SLOW)
    with working(worker.attend, INGEST, row.id):
        wait_for_shards(worker, row, 1, 3)
        (pid,) = children_of()
        os.kill(pid, signal.SIGKILL)
    lost = read(worker, row)
    assert (lost.status, lost.failures) == (DatasetStatus.QUEUED, 1) and "SIGKILL" in str(lost.error)
    kept = shards(worker, row, 1)
    with working(worker.attend, INGEST, row.id):
        first = wait_until(lambda: read(worker, row).progress, 60, "the first word of it")
        assert first["phase"] == "ingest" and first["step"] >= 3 * 8, "and it says at once where it is"
    ready = read(worker, row)
    assert (ready.status, ready.location) == (DatasetStatus.READY, f"datasets/{row.id}/a2")
    again = shards(worker, row, 2)
    assert len(again) == PATCHES // 8
    assert {name for name in kept if kept[name] == again[name]} >= set(sorted(kept)[:3])
    assert below(worker, row) == sorted(f"a2/{name}" for name in (*again, "packed.json")), "and no part of a1"


def test_a_trainer_that_is_to_leave_keeps_what_is_packed(worker: Worker) -> None:
    row = insert(worker, SLOW)
    with working(worker.attend, INGEST, row.id):
        wait_for_shards(worker, row, 1, 1)
        worker.leave()
    left = read(worker, row)
    assert (left.status, left.losses, left.failures) == (DatasetStatus.QUEUED, 0, 0)
    kept = [name for name in below(worker, row) if name.startswith("a1/parts/")]
    assert kept and kept == sorted(f"a1/parts/{name}.json" for name in shards(worker, row, 1))


def test_a_trainer_that_is_to_leave_stores_no_more_samples(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of millions of patches take longer than it has."""

    def stored() -> int:
        with worker.database.read() as session:
            return session.query(Sample).filter_by(dataset_id=row.id).count()

    row = insert(worker, SLOW)
    monkeypatch.setattr(datasets, "SLICE", 4)
    with working(worker.attend, INGEST, row.id):
        wait_until(stored, 60, "some samples")
        worker.leave()
    left = read(worker, row)
    assert (left.status, left.losses, left.failures) == (DatasetStatus.QUEUED, 0, 0)
    assert stored() < PATCHES
    before = shards(worker, row, 1)
    with worker_at(worker.settings.state_dir) as another:
        assert another.attend(INGEST, row.id)
    assert read(worker, row).status == DatasetStatus.READY and stored() == PATCHES
    assert shards(worker, row, 2) == before, "none is packed again"


def test_what_was_packed_before_a_restart_equals_what_is_packed_at_once(worker: Worker) -> None:
    whole, row = insert(worker, SLOW | {"name": "whole"}), insert(worker, SLOW)
    assert worker.attend(INGEST, whole.id)
    with working(worker.attend, INGEST, row.id):
        wait_for_shards(worker, row, 1, 2)
        (pid,) = children_of()
        os.kill(pid, signal.SIGKILL)
    assert worker.attend(INGEST, row.id)
    one, other = read(worker, whole), read(worker, row)
    assert (one.report, one.counts, one.classes) == (other.report, other.counts, other.classes)
    root = worker.settings.artefact_dir
    for path in (root / str(one.location)).iterdir():
        if path.is_file():
            assert path.read_bytes() == (root / str(other.location) / path.name).read_bytes()
    with worker.database.read() as session:
        rows = [
            [(s.idx, s.key, s.role, s.label, s.group) for s in session.query(Sample).filter_by(dataset_id=id)]
            for id in (whole.id, row.id)
        ]
    assert rows[0] == rows[1] and len(rows[0]) == PATCHES


def test_a_dataset_that_failed_goes_on_when_it_is_added_again(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "x"
    folder.mkdir(parents=True)
    for n in range(5):
        Image.new("RGB", (32, 32), (n, 0, 0)).save(folder / f"{n}.png")
    (folder / "9.png").write_bytes(b"torn")
    spec = {"name": "torn", "image_size": 32, "shard_size": 2}
    with worker_at(tmp_path / "state", data_roots=(tmp_path,)) as worker:
        row = insert(worker, spec | {"sources": [{"kind": "folder", "path": str(folder.parent)}]})
        assert worker.attend(INGEST, row.id)
        failed = read(worker, row)
        assert failed.status == DatasetStatus.FAILED and "x/9.png" in str(failed.error)
        kept = shards(worker, row, 1)
        assert len(kept) == 2
        again = insert(worker, failed.spec | {"on_unreadable": "skip"})
        assert again.id == row.id and worker.attend(INGEST, row.id)
        ready = read(worker, row)
        assert (ready.status, ready.report["packed"], ready.report["skipped_count"]) == (DatasetStatus.READY, 5, 1)
        assert kept.items() < shards(worker, row, 2).items()
        assert below(worker, row) == [
            "a2/images-00000.npy",
            "a2/images-00001.npy",
            "a2/images-00002.npy",
            "a2/packed.json",
        ]
