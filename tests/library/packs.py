"""Packs in a directory, by the code that packs into an artefact store."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow import datasets
from winnow.artefacts import DirectoryStore
from winnow.datasets import Ingested, Shelf
from winnow.datasets.packing import PackWriter
from winnow.domain import DatasetSpec


@contextmanager
def writer(directory: Path, **sizes: int) -> Iterator[PackWriter]:
    with tempfile.TemporaryDirectory() as scratch:
        with PackWriter(Path(scratch), DirectoryStore(directory).put, **sizes) as made:
            yield made
        assert not list(Path(scratch).iterdir())


def pack(directory: Path, images: Iterable[NDArray[np.uint8]], *, image_size: int, shard_size: int) -> Path:
    with writer(directory, image_size=image_size, shard_size=shard_size) as made:
        for image in images:
            made.append(image)
        made.finish()
    return directory


def ingest(spec: DatasetSpec, directory: Path, *, earlier: Iterable[str] = (), **options: Any) -> Ingested:
    """As the attempt whose shards are kept in `directory`, after others beside it."""
    shelf = Shelf(DirectoryStore(directory.parent), directory.name, list(earlier))
    with tempfile.TemporaryDirectory() as scratch:
        return datasets.ingest(spec, shelf, Path(scratch), **options)
