"""Parquet: one column of lists of floats, or one float column a dimension; a key column beside them.

The features are the column `features`, `feats`, `embedding` or `embeddings`, else the only column of lists of floats,
else all float columns but `x` and `y`, in the order of the file. Keys are the column `key`, `id`, `path` or `filename`,
the first there is that holds no lists; coordinates the columns `x` and `y`.

A value that repeats is stored once, so that a few bytes may decode to gigabytes. So the file is asked before anything
is decoded: its footer how wide the features are, the headers of its pages what each of them takes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from winnow.embeddings.blocks import Features, require_finite, require_shape
from winnow.embeddings.pages import leaves, pages
from winnow.errors import InvalidInput
from winnow.paths import open_file

MAGIC = b"PAR1"
FEATURES = ("features", "feats", "embedding", "embeddings")
KEYS = ("key", "id", "path", "filename")
COORDS = ["x", "y"]
MOST_COLUMNS = 1 << 16
"""Of lists: wider ones are no embeddings."""
_BATCH_ROWS = 4096
_BATCH_BYTES = 1 << 24
_NUMBER_BYTES = 16
"""What a number takes in a page at most, with where its list ends."""
_PAGE_SLACK = 4096
_TEXT_ROWS = 256
_TEXT_BYTES = 1 << 25
_MOST_PAGE = 1 << 26
"""Of text. Where one value may repeat, as many rows are decoded together as if each of them filled the largest page."""
_MOST_TEXT = 1 << 30
"""Characters of one column. A small file may repeat one long value for each of its rows."""


class ParquetFile:
    """One Parquet file with features. Raises InvalidInput where there are none, or they are anything else."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self._name = path, name
        with self._open() as (file, _):
            schema = file.schema_arrow
            self._columns, self._is_list = self._find_features(schema)
            self._kinds = {field.name: field.type for field in schema}
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
        if not set(COORDS) <= set(self._kinds) or not all(_is_number(self._kinds[name]) for name in COORDS):
            return None
        return np.stack([self._column(name) for name in COORDS], axis=1)

    def keys(self) -> list[str] | None:
        name = next((one for one in KEYS if one in self._kinds and not _is_nested(self._kinds[one])), None)
        return None if name is None else self.values(name)

    def values(self, column: str) -> list[str]:
        """(rows,) one column as text, say the slide or the patient of each row. Raises InvalidInput: no such column."""
        if column not in self._kinds:
            raise self._refuse(f"has no column {column!r}; it has {', '.join(list(self._kinds)[:20])}")
        if _is_nested(self._kinds[column]):
            raise self._refuse(f"the column {column!r} holds {self._kinds[column]}; one value a row is needed")
        found: list[str] = []
        texts: dict[str, str] = {}  # each text once in memory: slides and patients repeat
        size = 0
        for batch in self._batches([column]):
            read = list(map(str, batch.column(0).to_pylist()))
            size += sum(map(len, read))
            if size > _MOST_TEXT:
                raise self._refuse(f"the column {column!r} holds more than {_MOST_TEXT} characters, which is the limit")
            found += [texts.setdefault(text, text) for text in read]
        return found

    def _column(self, name: str) -> NDArray[Any]:
        batches = self._batches([name])
        return np.concatenate([batch.column(0).to_numpy(zero_copy_only=False) for batch in batches])

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
        """How many values a row has, by the footer. Rows of unlike length have one more than their mean here: what they
        take together stays below what these columns say, and reading them names the row.
        """
        stored = leaves(file.metadata, self._columns)
        lists = [at for at in stored if file.metadata.schema.column(at).max_repetition_level]
        if len(lists) > 1:
            raise self._refuse(f"the names of several lists begin with {self._columns[0]}; rename the others")
        (at,) = lists
        groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
        width = -(-sum(group.column(at).num_values for group in groups) // file.metadata.num_rows)
        if width > MOST_COLUMNS:
            raise self._refuse(f"its rows hold {width} values each, and at most {MOST_COLUMNS} are taken")
        return width

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
            mean = f"and the rows of the file {self.columns} on average; all need as many"
            raise self._refuse(f"row {start + odd} has {lengths[odd]} values, {mean}")
        return lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.columns)

    def _rows_at_once(self, file: Any, opened: BinaryIO, columns: list[str]) -> int:
        """How many rows to decode together. Raises InvalidInput for pages that would take too much."""
        width = self.columns if columns == self._columns else len(columns)
        rows, each = min(_BATCH_ROWS, _BATCH_BYTES // (8 * width)), 0
        for page in pages(opened, file.metadata, columns):
            if not page.is_text:
                if page.size > _NUMBER_BYTES * page.values + _PAGE_SLACK:
                    raise self._refuse(f"a page of {page.values} numbers says that it takes {page.size} bytes")
                continue
            if page.size > _MOST_PAGE:
                hint = "write it with smaller pages, or in more row groups"
                raise self._refuse(
                    f"a page of text takes {page.size} bytes, and at most {_MOST_PAGE} are taken; {hint}"
                )
            each = max(each, page.each)
        return max(1, min(rows, _TEXT_ROWS, _TEXT_BYTES // each) if each else rows)

    def _batches(self, columns: list[str]) -> Iterator[Any]:
        """All rows. Raises InvalidInput unless they are as many as the footer promises."""
        taken = 0
        with self._open() as (file, opened):
            size = self._rows_at_once(file, opened, columns)
            for batch in file.iter_batches(batch_size=size, columns=columns):
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
    def _open(self) -> Iterator[tuple[Any, BinaryIO]]:
        """The file as Parquet, and as bytes."""
        try:
            from pyarrow import parquet
        except ModuleNotFoundError as error:
            raise self._refuse("reading Parquet needs pyarrow: install winnow with its select extra") from error
        try:
            with open_file(self.path) as opened, parquet.ParquetFile(opened) as file:
                yield file, opened
        except InvalidInput:
            raise
        except Exception as error:  # a damaged file makes pyarrow raise almost anything
            raise self._refuse(f"cannot be read as Parquet ({str(error) or type(error).__name__})") from error

    def _refuse(self, reason: str) -> InvalidInput:
        return InvalidInput(self._name, f"{self.path.name}: {reason}")


def _is_number(kind: Any) -> bool:
    import pyarrow.types as kinds

    return kinds.is_integer(kind) or kinds.is_floating(kind)


def _is_nested(kind: Any) -> bool:
    import pyarrow.types as kinds

    return kinds.is_nested(getattr(kind, "storage_type", kind))
