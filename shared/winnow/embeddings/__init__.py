"""Embeddings in the files that encoders leave: `.npy`, HDF5 (TRIDENT, STAMP) and Parquet, as one pool.

    survey(paths)          what the files hold, from their headers: rows, columns, bytes that reading takes
    survey(paths).read()   the features as one float32 array, and where each row came from

One float32 `.npy` is memory-mapped; everything else is read into one array by blocks. Nothing is ever unpickled.
"""

from winnow.embeddings.pool import SUFFIXES, Embeddings, Part, Survey, holds_features, list_files, survey
from winnow.embeddings.table import origins_of, tabulate
from winnow.embeddings.vectors import read_labels, read_rows

__all__ = [
    "SUFFIXES",
    "Embeddings",
    "Part",
    "Survey",
    "holds_features",
    "list_files",
    "origins_of",
    "read_labels",
    "read_rows",
    "survey",
    "tabulate",
]
