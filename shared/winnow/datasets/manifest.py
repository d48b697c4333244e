"""A table of images, CSV or Parquet: `path`, and any of `label`, `group`, `role`."""

import csv
import io
import math
import os
from array import array
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache, partial
from itertools import islice, repeat
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from winnow.datasets.decode import FilePicture, Picture, Unreadable, resolve
from winnow.datasets.entries import Allow, Entries, Entry, Listing, Words, allow_link, require_file, require_splits
from winnow.domain import Role, Source
from winnow.errors import InvalidInput
from winnow.paths import open_file, open_folder

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
"""What a manifest's name ends in; a file of another name is read as CSV."""
MOST_ROWS = 10_000_000
MOST_BYTES = 1 << 30
"""Of a manifest, whose paths are held in memory: of a CSV, or of the values that are read from Parquet."""
_COLUMNS = ("path", "label", "group", "role")
_NAMELESS = ("/", ".")
"""What a path ends in that may not end in the name of a file."""
Row = list[str | None]
"""The cells of the four columns, in their order."""


def list_manifest(source: Source, number: int, *, allow: Allow, max_pixels: int) -> Listing:
    """The rows of the manifest, by path. Columns beyond the four are ignored; an empty cell is none.

    Paths start from `source.root`, or from the manifest's own folder; absolute ones stand where `allow` permits.
    A file that is missing is found on reading, under the dataset's policy.

    Raises InvalidInput (no such file, no such column, no path, a path twice, a role word without a role, no such word),
    PathForbidden.
    """
    field = f"sources.{number}"
    table = Path(source.path or "")
    root = table.parent / (source.root or "")
    placed = _resolved(table, f"{field}.path")
    for place in (placed, _resolved(root, f"{field}.path")):
        allow(place)
    require_file(placed, f"{field}.path", "manifest file")
    folders = _Folders(root, allow)
    hashes = array("q")
    role_of = cache(partial(_role_of, source=source, number=number))
    words: set[str | None] = set()

    def read() -> Iterator[Entry]:
        for line, (path, label, group, word) in enumerate(_rows(table, placed, source, field), start=1):
            if not path or "\0" in path or (path.endswith(_NAMELESS) and PurePath(path).name in ("", "..")):
                raise InvalidInput(f"{field}.path", f"row {line} has no usable path")
            hashes.append(hash(folders.place(path)))
            words.add(word)
            yield Entry(path, role_of(word), label, group, number)

    listed = Entries.of(read())
    require_splits(source, number, sorted(word for word in words if word))
    _require_storable(listed.labels, source.columns.get("label", "label"), field)
    _require_storable(listed.groups, source.columns.get("group", "group"), field)
    repeated = first_repeated(np.array(hashes, np.int64), lambda row: folders.place(listed.keys[row]))
    if repeated is not None:
        reason = f"row {repeated + 1}: {listed.keys[repeated]} is listed twice; keep one of the rows"
        raise InvalidInput(f"{field}.path", reason)
    entries = listed.take(listed.in_order_of_keys())

    def pictures(start: int) -> Iterator[Picture]:
        keys = islice(entries.keys, start, None)
        return (FilePicture(Path(folders.place(key)), allow, max_pixels) for key in keys)

    return Listing(entries, pictures)


def _require_storable(words: Words, column: str, field: str) -> None:
    """Raise InvalidInput for a NUL, which SQLite stores and Postgres refuses, hours later. A CSV or Parquet with any
    other text that nothing can store is refused as it is read.
    """
    odd = next((number for number, word in enumerate(words.words) if "\0" in word), None)
    if odd is not None:
        row = int(np.argmax(words.codes == odd)) + 1
        reason = f"row {row}: {words.words[odd]!r} in the column {column!r} holds a NUL, which cannot be stored"
        raise InvalidInput(f"{field}.path", f"{reason}; take it out, or map another column")


def first_repeated(hashes: NDArray[np.int64], path_of: Callable[[int], str]) -> int | None:
    """The first row whose path an earlier one has. Paths are compared where their hashes (n,) are equal: a set of ten
    million would take gigabytes.
    """
    values, counts = np.unique(hashes, return_counts=True)
    suspects = np.flatnonzero(np.isin(hashes, values[counts > 1]))
    seen: set[str] = set()
    for row in suspects.tolist():
        path = path_of(row)
        if path in seen:
            return row
        seen.add(path)
    return None


@contextmanager
def open_table(
    table: Path, field: str = "path", *, placed: Path | None = None, wanted: Collection[str] | None = None
) -> Iterator[tuple[list[str], Iterator[Sequence[Any]]]]:
    """The heading of a manifest, and its rows as they stand, each as long as the heading, while they are read. Of a
    Parquet file only the columns in `wanted` are read, where these are given; the cells of others are None.

    `placed` is where it lies with all links followed; what was allowed there is read, and nothing that took its place.

    Raises InvalidInput, here or at the row that cannot be read.
    """
    read = partial(_parquet, wanted=wanted) if table.suffix.lower() in (".parquet", ".pq") else _csv
    try:
        with open_file(placed or table.resolve()) as file, closing(read(table, file, field)) as rows:
            yield list(next(rows)), rows
    except OSError as error:
        raise InvalidInput(f"{field}.path", f"{table.name} cannot be read: {error.strerror or error}") from None


def _rows(table: Path, placed: Path, source: Source, field: str) -> Iterator[Row]:
    wanted = [source.columns.get(column, column) for column in _COLUMNS]
    with open_table(table, field, placed=placed, wanted=wanted) as (names, rows):
        columns = [_place_of(column, names, source, field) for column in _COLUMNS]
        for row in rows:
            yield [None if at is None else _text(row[at]) for at in columns]


def _place_of(
    column: Literal["path", "label", "group", "role"], names: list[str], source: Source, field: str
) -> int | None:
    name = source.columns.get(column, column)
    if name in names:
        return names.index(name)
    if column == "path" or column in source.columns:
        reason = f"no column {name!r}; there are {', '.join(names)}{_other_mark(names)}"
        raise InvalidInput(f"{field}.columns.{column}", reason)
    return None


def _other_mark(names: list[str]) -> str:
    """What a heading of one long name says of the file: another program's separator stands in it."""
    found = next((mark for mark in ";\t,|" if len(names) == 1 and mark in names[0]), None)
    shown = "a tab" if found == "\t" else repr(found)
    return "" if found is None else f"; it looks separated by {shown}: a .csv needs commas, a .tsv tabs"


def _csv(table: Path, file: BinaryIO, field: str) -> Generator[list[str]]:
    """The heading, and the rows."""
    delimiter = "\t" if table.suffix.lower() == ".tsv" else ","
    names: list[str] = []
    try:
        _require_small(table, 0, os.fstat(file.fileno()).st_size, field)
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            filled = (row for row in csv.reader(text, delimiter=delimiter, strict=True) if row)
            for line, row in enumerate(filled):
                if not line:
                    yield (names := [name.strip() for name in row])
                    continue
                if len(row) != len(names):
                    raise InvalidInput(f"{field}.path", f"row {line} has {len(row)} cells, the heading {len(names)}")
                yield row
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InvalidInput(f"{field}.path", f"{table.name} is not CSV in UTF-8: {error}") from None
    if not names:
        raise InvalidInput(f"{field}.path", f"{table.name} is empty")


def _parquet(
    table: Path, file: BinaryIO, field: str, *, wanted: Collection[str] | None = None
) -> Generator[Sequence[Any]]:
    """The heading, and the rows."""
    from pyarrow import parquet

    rows = size = 0
    try:
        with parquet.ParquetFile(file) as stored:
            yield (names := list(dict.fromkeys(stored.schema_arrow.names)))
            columns = [name for name in names if wanted is None or name in wanted]
            _require_small(table, stored.metadata.num_rows, 0, field)
            for batch in stored.iter_batches(batch_size=1024, columns=columns):
                rows, size = rows + batch.num_rows, size + batch.nbytes  # a value may be repeated for each of the rows
                _require_small(table, rows, size, field)
                cells = batch.to_pydict()
                yield from zip(*(cells.get(name, repeat(None, batch.num_rows)) for name in names), strict=True)
    except (InvalidInput, MemoryError):
        raise
    except Exception as error:  # a damaged file makes pyarrow raise almost anything
        raise InvalidInput(f"{field}.path", f"{table.name} is not Parquet: {error}") from None


def _require_small(table: Path, rows: int, size: int, field: str) -> None:
    if rows > MOST_ROWS or size > MOST_BYTES:
        reason = f"{table.name} holds more than {MOST_ROWS} rows or {MOST_BYTES} bytes; make several sources of it"
        raise InvalidInput(f"{field}.path", reason)


def _text(cell: Any) -> str | None:
    """A cell as text: 1.0 is '1' (a column of integers with gaps), NaN and blanks are none."""
    if isinstance(cell, str):
        return cell.strip() or None
    if isinstance(cell, float):
        if math.isnan(cell):
            return None
        cell = int(cell) if cell.is_integer() else cell
    return str(cell).strip() or None if cell is not None else None


def _role_of(word: str | None, *, source: Source, number: int) -> Role:
    if word is None:
        return source.role_or_pool
    if word in source.splits:
        return source.splits[word]
    try:
        return Role(word)
    except ValueError:
        known = ", ".join([*source.splits, *Role])
        raise InvalidInput(
            f"sources.{number}.splits", f"no role for the word {word!r}; map it here, e.g. {{{word}: pool}} ({known})"
        ) from None


class _Folders:
    """Where the cells of a manifest point. A table may have millions of rows: each folder is resolved, allowed and
    looked through for links once, and a row costs two look-ups more.
    """

    def __init__(self, root: Path, allow: Allow) -> None:
        self._root, self._allow = root, allow
        self._known: dict[str, tuple[str, frozenset[str]]] = {}

    def place(self, cell: str) -> str:
        """The path of a cell with its folder resolved. Raises PathForbidden when that or a link leaves the roots."""
        if cell.endswith(_NAMELESS):
            cell = str(PurePath(cell))
        name = cell.rpartition("/")[2]
        above = cell[: -len(name)]
        if above not in self._known:
            self._known[above] = self._look(self._root / above)
        folder, links = self._known[above]
        placed = folder + name
        if name in links:
            allow_link(Path(placed), self._allow)
        return placed

    def _look(self, folder: Path) -> tuple[str, frozenset[str]]:
        """The resolved folder, with a slash behind it, and the names of the links in it."""
        try:
            resolved = resolve(folder)  # `a/../b` is not `b` where `a` is a link
        except Unreadable:
            return f"{folder}/", frozenset()  # leads nowhere; reading it gives the reason
        self._allow(resolved)
        inside = f"{resolved}/" if resolved.name else str(resolved)
        try:
            with open_folder(resolved) as handle, os.scandir(handle) as found:
                return inside, frozenset(child.name for child in found if child.is_symlink())
        except OSError:
            return inside, frozenset()  # nothing is there to be read either, and the worker asks again


def _resolved(path: Path, field: str) -> Path:
    try:
        return resolve(path)
    except Unreadable as error:
        raise InvalidInput(field, f"{path}: {error}") from None
