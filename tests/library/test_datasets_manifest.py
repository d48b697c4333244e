"""Manifests: what of a table is read, and what may not stand in it."""

from pathlib import Path

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

from winnow.datasets import check, open_table
from winnow.datasets.sources import list_sources
from winnow.domain import DatasetSpec
from winnow.errors import InvalidInput


def anywhere(path: Path) -> None:
    """Allow every path."""


def spec_of(table: Path, **more: object) -> DatasetSpec:
    source = {"kind": "manifest", "path": str(table)} | more
    return DatasetSpec.model_validate({"name": "d", "sources": [source]})


@pytest.fixture
def with_thumbnails(tmp_path: Path) -> Path:
    """A manifest with a column of images, which is no part of one: more than a manifest may hold, in a small file."""
    rows = 20_000
    thumbnails = arrow.DictionaryArray.from_arrays(arrow.array(np.zeros(rows, np.int32)), arrow.array([bytes(60_000)]))
    columns = {"thumbnail": thumbnails, "file": [f"{n}.png" for n in range(rows)], "set": ["train"] * rows}
    parquet.write_table(arrow.table(columns), tmp_path / "m.parquet", store_schema=False)
    return tmp_path / "m.parquet"


def test_columns_that_are_ignored_are_not_read(with_thumbnails: Path) -> None:
    columns = {"path": "file", "role": "set"}
    found = list_sources(spec_of(with_thumbnails, columns=columns, splits={"train": "pool"}), allow=anywhere)
    assert len(found.entries) == 20_000
    with open_table(with_thumbnails, wanted=["set"]) as (names, rows):
        assert names == ["thumbnail", "file", "set"] and next(rows) == (None, None, "train")


def test_the_columns_there_are_are_all_named(with_thumbnails: Path) -> None:
    with pytest.raises(InvalidInput, match=r"columns\.path: no column 'path'; there are thumbnail, file, set"):
        check(spec_of(with_thumbnails), anywhere)


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("column", ["label", "group"])
def test_text_that_postgres_cannot_store_is_refused_where_rows_are_listed(
    tmp_path: Path, form: str, column: str
) -> None:
    cells = {"path": ["a.png", "b.png", "c.png"], "slide": ["x", "y", "y\0"]}
    table = tmp_path / f"m.{form}"
    if form == "parquet":
        parquet.write_table(arrow.table(cells), table)
    else:
        rows = zip(*cells.values(), strict=True)
        table.write_text("\n".join(map(",".join, [tuple(cells), *rows])))
    with pytest.raises(InvalidInput, match=r"row 3: 'y\\x00' in the column 'slide' .*; take it out") as refused:
        check(spec_of(table, columns={column: "slide"}), anywhere)
    assert refused.value.field == "sources.0.path"


@pytest.mark.parametrize("column", ["path", "label", "group", "role"])
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_no_text_comes_from_bytes_that_are_none(tmp_path: Path, form: str, column: str) -> None:
    half = b"\xed\xa0\x80"  # of a surrogate pair
    cells = {"path": b"a.png", "label": b"x"} | {column: half}
    table = tmp_path / f"m.{form}"
    if form == "parquet":
        ends = arrow.py_buffer(np.array([0, 3], np.int32))
        columns = {name: arrow.array([cell.decode()]) for name, cell in cells.items() if cell != half}
        odd = arrow.StringArray.from_buffers(1, ends, arrow.py_buffer(half))
        parquet.write_table(arrow.table(columns | {column: odd}), table)
    else:
        table.write_bytes(b",".join(name.encode() for name in cells) + b"\n" + b",".join(cells.values()))
    with pytest.raises(InvalidInput, match=r"m\.(csv is not CSV in UTF-8|parquet is not Parquet)"):
        check(spec_of(table), anywhere)
