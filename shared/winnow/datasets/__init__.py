"""Datasets: sources of patches, packed once to uint8 shards, each sample with one role.

check(spec, allow)              what can be refused before anything is decoded
ingest(spec, shelf, ...)        decode, pack, assign roles, report
Shelf(store, prefix)            where it packs, and goes on where an earlier attempt was lost
open_table(path)                a manifest's heading and rows; MANIFEST_SUFFIXES are what its name ends in
PackedImages.open(directory)    read the patches back, by mmap
ShardCache(...).open(directory) the same through copies on this machine's disk
synthetic.draw(tissue, i, size) an H&E-like patch
"""

from winnow.datasets import synthetic
from winnow.datasets.cache import ShardCache
from winnow.datasets.entries import NO_LABEL
from winnow.datasets.ingest import SKIPPED_LISTED, Ingested, IngestStopped, check, ingest
from winnow.datasets.manifest import SUFFIXES as MANIFEST_SUFFIXES
from winnow.datasets.manifest import open_table
from winnow.datasets.packing import PackedImages
from winnow.datasets.shelf import Shelf

SKIPPED_FILE = "skipped.csv"
"""Beside the shards of a dataset whose report cannot name all files that were skipped."""

__all__ = [
    "MANIFEST_SUFFIXES",
    "NO_LABEL",
    "SKIPPED_FILE",
    "SKIPPED_LISTED",
    "IngestStopped",
    "Ingested",
    "PackedImages",
    "ShardCache",
    "Shelf",
    "check",
    "ingest",
    "open_table",
    "synthetic",
]
