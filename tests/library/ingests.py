"""An ingest of files of many kinds that is stopped somewhere, and goes on."""

import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from library.packs import ingest
from PIL import Image

from winnow.datasets import Ingested, IngestStopped
from winnow.domain import DatasetSpec

SHARD = 3
FILES = 20
TORN = (0, 4, 5, 12, 19)
"""First, last, two in a row, and one right behind a full shard."""
TWO_SHARDS = 9
"""Rows that make two full shards: six patches, and three files that are none."""


def anywhere(path: Path) -> None:
    """Every path is allowed."""


def draw_folder(root: Path) -> Path:
    """Files of many kinds: torn ones, greyscale, palettes, other sizes, and two that are equal."""
    rng = np.random.default_rng(7)
    for n in range(FILES):
        path = root / "in" / "ab"[n % 2] / f"{n:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (8, 8, 3) if n % 3 else (16, 16, 3)
        image = Image.fromarray(rng.integers(0, 256, size, np.uint8))
        image.convert({1: "L", 2: "P"}.get(n % 7, "RGB")).save(path)
    files = listed(root / "in")
    for n in TORN:
        files[n].write_bytes(b"torn")
    shutil.copyfile(files[1], files[14])
    return root / "in"


def listed(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def spec_of(folder: Path, **changes: Any) -> DatasetSpec:
    body = {"name": "d", "image_size": 8, "shard_size": SHARD, "on_unreadable": "skip", "draws": [{"count": 2}]}
    return DatasetSpec.model_validate(body | {"sources": [{"kind": "folder", "path": str(folder)}]} | changes)


def stopping_at(row: int) -> Callable[[], bool]:
    seen = count()
    return lambda: next(seen) == row  # of those that it reads


def stop(spec: DatasetSpec, directory: Path, row: int) -> None:
    with pytest.raises(IngestStopped, match=f"stopped after {row} of"):
        ingest(spec, directory, allow=anywhere, should_stop=stopping_at(row))


def go_on(spec: DatasetSpec, directory: Path, *earlier: str) -> tuple[Ingested, list[int]]:
    """What it gives, and how many images it had read whenever it said so."""
    seen: list[int] = []
    done = ingest(spec, directory, earlier=earlier, allow=anywhere, on_progress=lambda read, _: seen.append(read))
    return done, seen


def all_of(done: Ingested) -> object:
    return done.report, done.skipped, done.classes, done.counts, list(done.samples())


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def spoil(files: list[Path]) -> None:
    """Whoever reads these again finds nothing in them; they look as they did."""
    for path in files:
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
