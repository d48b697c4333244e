"""Parquet: one column of lists of floats, or one float column a dimension; a key column beside them.

The features are the column `features`, `feats`, `embedding` or `embeddings`, else the only column of lists of floats,
else all float columns but `x` and `y`, in the order of the file. Keys are the column `key`, `id`, `path` or `filename`,
the first there is; coordinates the columns `x` and `y`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.embeddings.blocks import Features, require_finite, require_shape
from winnow.errors import InvalidInput
from winnow.paths import open_file

MAGIC = b"PAR1"
FEATURES = ("features", "feats", "embedding", "embeddings")
KEYS = ("key", "id", "path", "filename")
COORDS = ["x", "y"]
_BATCH_ROWS = 4096
_BATCH_BYTES = 1 << 24
_TEXT_ROWS = 256
_MOST_TEXT = 1 << 30
"""Bytes of one column of text. A small file may repeat one long value for each of its rows."""


class ParquetFile:
    """One Parquet file with features. Raises InvalidInput where there are none, or they are anything else."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self._name = path, name
        with self._open() as file:
            schema = file.schema_arrow
            self._columns, self._is_list = self._find_features(schema)
            self._names: list[str] = list(schema.names)
            rows = file.metadata.num_rows
            inner = schema.field(self._columns[0]).type
            dtype = np.dtype((inner.value_type if self._is_list else inner).to_pandas_dtype())
            width = self._width(file) if self._is_list and rows else len(self._columns)
        self.rows, self.columns = require_shape(name, path, (rows, width), dtype)
        self.dtype = dtype.name

    def fill(self, out: Features) -> None:
        start = 0
        for batch in self._batches(self._columns):
            rows = slice(start, start + batch.num_rows)
            with np.errstate(over="ignore"):  # require_finite says so, with the row
                out[rows] = self._block(batch, start)
            require_finite(self._name, self.path, out[rows], start, self.dtype)
            start = rows.stop

    def coords(self) -> NDArray[Any] | None:
        if not set(COORDS) <= set(self._names):
            return None
        columns = [self._column(name) for name in COORDS]
        if not all(column.dtype.kind in "iuf" for column in columns):
            return None
        return np.stack(columns, axis=1)

    def keys(self) -> list[str] | None:
        name = next((one for one in KEYS if one in self._names), None)
        return None if name is None else self.values(name)

    def values(self, column: str) -> list[str]:
        """(rows,) one column as text, say the slide or the patient of each row. Raises InvalidInput: no such column."""
        if column not in self._names:
            raise self._refuse(f"has no column {column!r}; it has {', '.join(self._names[:20])}")
        found: list[str] = []
        texts: dict[str, str] = {}  # each text once in memory: slides and patients repeat
        size = 0
        for batch in self._batches([column], _TEXT_ROWS):
            size += batch.nbytes
            if size > _MOST_TEXT:
                raise self._refuse(f"the column {column!r} holds more than {_MOST_TEXT} bytes, which is the limit")
            found += [texts.setdefault(text, text) for text in map(str, batch.column(0).to_pylist())]
        return found

    def _column(self, name: str) -> NDArray[Any]:
        return np.concatenate([batch.column(0).to_numpy(zero_copy_only=False) for batch in self._batches([name])])

    def _find_features(self, schema: Any) -> tuple[list[str], bool]:
        import pyarrow.types as kinds

        def is_list(kind: Any) -> bool:
            lists = kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)
            return lists and kinds.is_floating(kind.value_type)

        lists = [field.name for field in schema if is_list(field.type)]
        named = [name for name in FEATURES if name in lists]
        if named or len(lists) == 1:
            return (named or lists)[:1], True
        if lists:
            raise self._refuse(f"several columns hold lists of floats: {', '.join(lists)}; call one of them features")
        floats = [field.name for field in schema if kinds.is_floating(field.type) and field.name not in COORDS]
        if not floats:
            raise self._refuse("has no column of lists of floats and no float columns")
        return floats, False

    def _width(self, file: Any) -> int:
        for batch in file.iter_batches(batch_size=1, columns=self._columns):
            return len(batch.column(0)[0].as_py() or [])
        raise self._refuse("holds fewer rows than its footer promises")

    def _block(self, batch: Any, start: int) -> NDArray[Any]:
        for column in batch.columns:
            if column.null_count:
                nulls = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
                raise self._refuse(f"nothing in row {start + int(nulls[0])}")
        if not self._is_list:
            return np.stack([column.to_numpy(zero_copy_only=False) for column in batch.columns], axis=1)
        lists = batch.column(0)
        lengths = np.asarray(lists.value_lengths())
        if (lengths != self.columns).any():
            odd = int(np.argmax(lengths != self.columns))
            raise self._refuse(f"row {start + odd} has {lengths[odd]} values, row 0 has {self.columns}")
        return lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.columns)

    def _batches(self, columns: list[str], most: int = _BATCH_ROWS) -> Iterator[Any]:
        """All rows. Raises InvalidInput unless they are as many as the footer promises."""
        taken = 0
        rows = max(1, min(most, _BATCH_BYTES // (8 * self.columns)))
        with self._open() as file:
            for batch in file.iter_batches(batch_size=rows, columns=columns):
                taken += batch.num_rows
                if taken > self.rows:
                    break
                batch.validate(full=True)  # else text that is not UTF-8 fails where it is turned into str
                yield batch.select(columns)  # in the order asked for, not in the file's
        if taken != self.rows:
            raise self._refuse(
                f"its footer promises {self.rows} rows, it holds {'more' if taken > self.rows else taken}"
            )

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            from pyarrow import parquet
        except ModuleNotFoundError as error:
            raise self._refuse("reading Parquet needs pyarrow: install winnow with its select extra") from error
        try:
            with open_file(self.path) as opened, parquet.ParquetFile(opened) as file:
                yield file
        except InvalidInput:
            raise
        except Exception as error:  # a damaged file makes pyarrow raise almost anything
            raise self._refuse(f"cannot be read as Parquet ({str(error) or type(error).__name__})") from error

    def _refuse(self, reason: str) -> InvalidInput:
        return InvalidInput(self._name, f"{self.path.name}: {reason}")
