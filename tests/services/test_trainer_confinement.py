"""The process that decodes strangers' files: its memory, its time, and what it is not given."""

import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services.trainer_parts import worker_at

from winnow.artefacts import DirectoryStore
from winnow.datasets import Shelf, ingest
from winnow.domain import DatasetSpec
from winnow.errors import ImageTooSlow, PathForbidden
from winnow.settings import SECRETS
from winnow.store import datasets
from winnow.store.claims import INGEST
from winnow.store.tables import Dataset
from winnow_trainer.process import Child

SIDE = 9000


def write_flat_png(path: Path, side: int) -> None:
    """A grey square of one colour: a small file, and a large image."""
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header), _chunk(b"IDAT", rows), _chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "patches" / "x"
    folder.mkdir(parents=True)
    write_flat_png(folder / "flat.png", SIDE)
    assert (folder / "flat.png").stat().st_size < 2_000_000
    yield tmp_path / "patches"


def spec_of(folder: Path) -> dict[str, Any]:
    source = {"kind": "folder", "path": str(folder)}
    return {"name": "t", "image_size": 32, "max_pixels": SIDE * SIDE, "on_unreadable": "skip", "sources": [source]}


def ingested(state: Path, folder: Path, **changes: Any) -> Dataset:
    """What became of a dataset of these files at a worker with these settings."""
    with worker_at(state, data_roots=(folder,), max_failures=1, **changes) as worker:
        with worker.database.begin() as session:
            row = datasets.insert(session, DatasetSpec.model_validate(spec_of(folder)))
        assert worker.attend(INGEST, row.id)
        with worker.database.read() as session:
            return datasets.get(session, row.id)


def test_an_image_that_needs_too_much_memory_ends_its_ingest_and_not_the_machine(tmp_path: Path, bomb: Path) -> None:
    ended = ingested(tmp_path, bomb, ingest_memory_gib=0.45)
    assert ended.status == "failed"
    assert "0.45 GiB" in str(ended.error) and "max_pixels" in str(ended.error), ended.error


def test_the_same_image_with_memory_enough_is_read(tmp_path: Path, bomb: Path) -> None:
    assert ingested(tmp_path, bomb, ingest_memory_gib=4).status == "ready"


def test_an_image_that_takes_too_long_ends_its_ingest_with_its_name(tmp_path: Path, bomb: Path) -> None:
    ended = ingested(tmp_path, bomb, decode_seconds=0.001)
    assert ended.status == "failed"
    assert "x/flat.png was not decoded within 0.001 s" in str(ended.error)


def test_the_library_names_the_image_and_keeps_nothing(tmp_path: Path, bomb: Path) -> None:
    spec = DatasetSpec.model_validate(spec_of(bomb))
    shelf, scratch = Shelf(DirectoryStore(tmp_path / "store"), "packed"), tmp_path / "scratch"
    with pytest.raises(ImageTooSlow, match=r"x/flat\.png"):
        ingest(spec, shelf, scratch, allow=lambda path: None, decode_seconds=0.001)
    assert not [*(tmp_path / "store").iterdir(), *scratch.iterdir()]


def test_a_path_that_the_coordinator_let_pass_is_checked_again_where_it_is_read(tmp_path: Path, bomb: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with worker_at(tmp_path, data_roots=(elsewhere,)) as worker:
        with worker.database.begin() as session:
            row = datasets.insert(session, DatasetSpec.model_validate(spec_of(bomb)))
        assert worker.attend(INGEST, row.id)
        with worker.database.read() as session:
            ended = datasets.get(session, row.id)
    assert ended.status == "failed" and str(ended.error) == str(PathForbidden(str(bomb), [str(elsewhere)]))


TELL = "import json, os; print(json.dumps(sorted(os.environ)), flush=True)"


def test_a_process_that_computes_is_given_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = {f"WINNOW_{name.upper()}{suffix}" for name in SECRETS for suffix in ("", "_FILE")}
    for name in secret:
        monkeypatch.setenv(name, "redis://:secret@host/0")
    monkeypatch.setenv("WINNOW_LOG_LEVEL", "info")
    child = Child([sys.executable, "-c", TELL], {"OWN": "1"})
    told: Any = child.messages.get(timeout=30)
    child.close()
    assert {"WINNOW_LOG_LEVEL", "OWN"} <= set(told)
    assert not secret & set(told)
