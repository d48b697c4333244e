"""Datasets: sources of patches, packed once to uint8 shards, each sample with one role.

check(spec, allow)              what can be refused before anything is decoded
ingest(spec, directory, ...)    decode, pack, assign roles, report
read_table(path)                a manifest's heading and rows; MANIFEST_SUFFIXES are what its name ends in
PackedImages.open(directory)    read the patches back, by mmap
ShardCache(...).open(directory) the same through copies on this machine's disk
synthetic.draw(tissue, i, size) an H&E-like patch
"""

from winnow.datasets import synthetic
from winnow.datasets.cache import ShardCache
from winnow.datasets.entries import NO_LABEL
from winnow.datasets.ingest import Ingested, IngestStopped, SampleRow, check, ingest
from winnow.datasets.manifest import SUFFIXES as MANIFEST_SUFFIXES
from winnow.datasets.manifest import read_table
from winnow.datasets.packing import PackedImages

__all__ = [
    "MANIFEST_SUFFIXES",
    "NO_LABEL",
    "IngestStopped",
    "Ingested",
    "PackedImages",
    "SampleRow",
    "ShardCache",
    "check",
    "ingest",
    "read_table",
    "synthetic",
]
