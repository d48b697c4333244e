"""A table of images, CSV or Parquet: `path`, and any of `label`, `group`, `role`."""

import csv
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from winnow.datasets.decode import FilePicture, Picture, Unreadable, resolve
from winnow.datasets.entries import Allow, Entry, Listing, allow_link, require_file
from winnow.domain import Role, Source
from winnow.errors import InvalidInput
from winnow.paths import open_file, open_folder

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
"""What a manifest's name ends in; a file of another name is read as CSV."""
MOST_ROWS = 10_000_000
MOST_BYTES = 1 << 30
"""Of a manifest, which is held in memory while it is read: of the file, or of the values in it."""
_COLUMNS = ("path", "label", "group", "role")
_NAMELESS = ("/", ".")
"""What a path ends in that may not end in the name of a file."""
Row = dict[str, str | None]
Table = tuple[list[str], Sequence[Sequence[Any]]]
"""A heading, and rows as long as it."""


def list_manifest(source: Source, number: int, *, allow: Allow, max_pixels: int) -> Listing:
    """The rows of the manifest, by path. Columns beyond the four are ignored; an empty cell is none.

    Paths start from `source.root`, or from the manifest's own folder; absolute ones stand where `allow` permits.
    A file that is missing is found on reading, under the dataset's policy.

    Raises InvalidInput (no such file, no such column, no path, a path twice, a role word without a role),
    PathForbidden.
    """
    field = f"sources.{number}"
    table = Path(source.path or "")
    root = table.parent / (source.root or "")
    placed = _resolved(table, f"{field}.path")
    for place in (placed, _resolved(root, f"{field}.path")):
        allow(place)
    require_file(placed, f"{field}.path", "manifest file")
    folders = _Folders(allow)
    paths: dict[str, Entry] = {}
    for line, row in enumerate(_rows(table, placed, source, field), start=1):
        entry = _entry(row, line, source, number)
        path = folders.place(os.path.join(root, entry.key))  # noqa: PTH118 - two thirds of the time would be Path's
        if path in paths:
            raise InvalidInput(f"{field}.path", f"row {line}: {entry.key} is listed twice; keep one of the rows")
        paths[path] = entry
    ordered = sorted(((entry, path) for path, entry in paths.items()), key=lambda pair: pair[0].key)
    paths.clear()

    def pictures() -> Iterator[Picture]:
        return (FilePicture(Path(path), allow, max_pixels) for _, path in ordered)

    return Listing([entry for entry, _ in ordered], pictures)


def read_table(table: Path, field: str = "path", *, placed: Path | None = None) -> Table:
    """The heading and the rows of a manifest as they stand.

    `placed` is where it lies with all links followed; what was allowed there is read, and nothing that took its place.

    Raises InvalidInput.
    """
    read = _parquet if table.suffix.lower() in (".parquet", ".pq") else _csv
    try:
        with open_file(placed or table.resolve()) as file:
            return read(table, file, field)
    except OSError as error:
        raise InvalidInput(f"{field}.path", f"{table.name} cannot be read: {error.strerror or error}") from None


def _rows(table: Path, placed: Path, source: Source, field: str) -> Iterator[Row]:
    """Each row as the four columns under their own names."""
    names, records = read_table(table, field, placed=placed)
    chosen: dict[str, int] = {}
    for column in _COLUMNS:
        name = source.columns.get(column, column)
        if name in names:
            chosen[column] = names.index(name)
        elif column == "path" or column in source.columns:
            raise InvalidInput(f"{field}.columns.{column}", f"no column {name!r}; there are {', '.join(names)}")
    for record in records:
        yield {column: _text(record[at]) for column, at in chosen.items()}


def _csv(table: Path, file: BinaryIO, field: str) -> Table:
    delimiter = "\t" if table.suffix.lower() == ".tsv" else ","
    try:
        _require_small(table, 0, os.fstat(file.fileno()).st_size, field)
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            rows = [row for row in csv.reader(text, delimiter=delimiter, strict=True) if row]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InvalidInput(f"{field}.path", f"{table.name} is not CSV in UTF-8: {error}") from None
    if not rows:
        raise InvalidInput(f"{field}.path", f"{table.name} is empty")
    names = [name.strip() for name in rows[0]]
    for line, row in enumerate(rows[1:], start=1):
        if len(row) != len(names):
            raise InvalidInput(f"{field}.path", f"row {line} has {len(row)} cells, the heading {len(names)}")
    return names, rows[1:]


def _parquet(table: Path, file: BinaryIO, field: str) -> Table:
    from pyarrow import parquet

    rows: list[tuple[Any, ...]] = []
    texts: dict[str, str] = {}
    size = 0
    try:
        with parquet.ParquetFile(file) as stored:
            names = list(dict.fromkeys(stored.schema_arrow.names))
            _require_small(table, stored.metadata.num_rows, 0, field)
            for batch in stored.iter_batches(batch_size=1024):
                size += batch.nbytes  # a small file may repeat one long value for each of its rows
                _require_small(table, len(rows) + batch.num_rows, size, field)
                columns = [_shared(cells, texts) for cells in batch.to_pydict().values()]
                rows += zip(*columns, strict=True)
    except (InvalidInput, MemoryError):
        raise
    except Exception as error:  # a damaged file makes pyarrow raise almost anything
        raise InvalidInput(f"{field}.path", f"{table.name} is not Parquet: {error}") from None
    return names, rows


def _shared(cells: list[Any], texts: dict[str, str]) -> list[Any]:
    """The cells, each text once in memory: labels and groups are a few words over and over."""
    return [texts.setdefault(cell, cell) if isinstance(cell, str) else cell for cell in cells]


def _require_small(table: Path, rows: int, size: int, field: str) -> None:
    if rows > MOST_ROWS or size > MOST_BYTES:
        raise InvalidInput(f"{field}.path", f"{table.name} holds more than {MOST_ROWS} rows or {MOST_BYTES} bytes")


def _text(cell: Any) -> str | None:
    """A cell as text: 1.0 is '1' (a column of integers with gaps), NaN and blanks are none."""
    if isinstance(cell, float):
        if math.isnan(cell):
            return None
        cell = int(cell) if cell.is_integer() else cell
    return str(cell).strip() or None if cell is not None else None


def _entry(row: Row, line: int, source: Source, number: int) -> Entry:
    path, word = row["path"], row.get("role")
    if not path or "\0" in path or (path.endswith(_NAMELESS) and PurePath(path).name in ("", "..")):
        raise InvalidInput(f"sources.{number}.path", f"row {line} has no usable path")
    role = source.role_or_pool if word is None else _role_of(word, source, number)
    return Entry(path, role, row.get("label"), row.get("group"), number)


def _role_of(word: str, source: Source, number: int) -> Role:
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
    """Where the cells of a manifest point. A table may have a million rows: each folder is resolved, allowed and
    looked through for links once, and a row costs two look-ups more.
    """

    def __init__(self, allow: Allow) -> None:
        self._allow = allow
        self._known: dict[str, tuple[str, frozenset[str]]] = {}

    def place(self, path: str) -> str:
        """`path` with its folder resolved. Raises PathForbidden when that, or a link there, leaves the roots."""
        if path.endswith(_NAMELESS):
            path = str(PurePath(path))
        above, name = os.path.split(path)
        if above not in self._known:
            folder, links = self._look(Path(above))
            self._known[above] = str(folder), links
        folder, links = self._known[above]
        placed = os.path.join(folder, name)  # noqa: PTH118 - as above
        if name in links:
            allow_link(Path(placed), self._allow)
        return placed

    def _look(self, folder: Path) -> tuple[Path, frozenset[str]]:
        try:
            resolved = resolve(folder)  # `a/../b` is not `b` where `a` is a link
        except Unreadable:
            return folder, frozenset()  # leads nowhere; reading it gives the reason
        self._allow(resolved)
        try:
            with open_folder(resolved) as handle, os.scandir(handle) as found:
                return resolved, frozenset(child.name for child in found if child.is_symlink())
        except OSError:
            return resolved, frozenset()  # nothing is there to be read either, and the worker asks again


def _resolved(path: Path, field: str) -> Path:
    try:
        return resolve(path)
    except Unreadable as error:
        raise InvalidInput(field, f"{path}: {error}") from None
