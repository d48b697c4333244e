"""Datasets: sources of patches, packed once to uint8 shards, each sample with one role.

check(spec, allow)              what can be refused before anything is decoded
ingest(spec, directory, ...)    decode, pack, assign roles, report
PackedImages.open(directory)    read the patches back, by mmap
synthetic.draw(tissue, i, size) an H&E-like patch
"""

from winnow.datasets import synthetic
from winnow.datasets.ingest import Ingested, IngestStopped, SampleRow, check, ingest
from winnow.datasets.packing import PackedImages

__all__ = ["IngestStopped", "Ingested", "PackedImages", "SampleRow", "check", "ingest", "synthetic"]
