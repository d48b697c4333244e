"""Parquet by its pages: how many rows are decoded together, which columns are what, and headers that lead nowhere."""

import io
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from pyarrow import parquet

from winnow.embeddings import survey
from winnow.embeddings.pages import pages
from winnow.embeddings.parquet import ParquetFile
from winnow.errors import InvalidInput

VALUELESS = bytes.fromhex("1500 1500 1500 2c 1500 1500 00 00")
"""The header of a plain page of no bytes and no values."""


def write(path: Path, columns: dict[str, Any], **options: Any) -> ParquetFile:
    parquet.write_table(arrow.table(columns), path, **options)
    return ParquetFile(path, "pool")


def sizes(file: ParquetFile, column: str) -> list[int]:
    return [batch.num_rows for batch in file._batches([column])]


def test_texts_of_one_large_page_are_decoded_by_hundreds(tmp_path: Path) -> None:
    """As DuckDB writes it, a page a row group: none of its texts takes another one's bytes."""
    keys = [f"{row:060}" for row in range(20_000)]
    columns = {"d0": [1.0] * len(keys), "key": keys}
    whole: dict[str, Any] = {"use_dictionary": False, "data_page_size": 1 << 30, "max_rows_per_page": len(keys)}
    file = write(tmp_path / "a.parquet", columns, **whole)
    assert file.keys() == keys
    assert max(sizes(file, "key")) == 256 and len(sizes(file, "key")) < 100


@pytest.mark.parametrize("options", [{"column_encoding": {"key": "DELTA_BYTE_ARRAY"}}, {"use_dictionary": ["key"]}])
def test_texts_that_share_their_bytes_are_decoded_by_a_few(tmp_path: Path, options: dict[str, Any]) -> None:
    keys = ["k" * (4 << 20)] * 20
    options = {"use_dictionary": False, **options}
    file = write(tmp_path / "a.parquet", {"d0": [1.0] * 20, "key": keys}, **options)
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 23
    assert max(sizes(file, "key")) <= 8


def test_numbers_of_few_columns_are_decoded_by_thousands_whatever_the_features_width(tmp_path: Path) -> None:
    columns = {"features": [[0.0] * 4096] * 5000, "id": list(range(5000))}
    assert sizes(write(tmp_path / "a.parquet", columns), "id")[0] == 4096


def test_a_column_whose_name_begins_with_anothers_is_no_part_of_it(tmp_path: Path) -> None:
    columns = {"embedding": [[1.0, 2.0]] * 3, "embedding.model": ["m" * 100_000] * 3}
    write(tmp_path / "lists.parquet", columns)
    assert survey([tmp_path / "lists.parquet"]).read().features.tolist() == [[1.0, 2.0]] * 3
    columns = {"d0": [1.0] * 3, "x": [1.0] * 3, "y": [2.0] * 3, "x.unit": ["u" * 100_000] * 3}
    write(tmp_path / "places.parquet", columns)
    (part,) = survey([tmp_path / "places.parquet"]).parts()
    assert part.origin(2)["coords"] == [1.0, 2.0]
    columns = {"features": [[1.0]], "features.raw": [[1.0, 2.0]]}
    with pytest.raises(InvalidInput, match=r"the names of several lists begin with features"):
        write(tmp_path / "two.parquet", columns)


def test_a_dictionary_may_hold_more_than_its_last_rows_have(tmp_path: Path) -> None:
    """As categories of pandas do: each group of rows has all of them."""
    slides = [f"slide {row:03}" for row in range(600)]
    columns = {"d0": [1.0] * 603, "slide": arrow.array([*slides, *slides[:3]]).dictionary_encode()}
    file = write(tmp_path / "a.parquet", columns, row_group_size=600)
    assert file.values("slide") == [*slides, *slides[:3]]


def test_a_column_of_lists_is_no_key(tmp_path: Path) -> None:
    columns = {"d0": [1.0, 2.0], "path": [["a"], ["b"]], "filename": ["c", "d"]}
    file = write(tmp_path / "a.parquet", columns)
    assert file.keys() == ["c", "d"]
    with pytest.raises(InvalidInput, match=r"the column 'path' holds list<.*one value a row is needed"):
        file.values("path")


def test_pages_without_values_are_read_up_to_a_thousand(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"d0": [1.0]}, use_dictionary=False)
    whole = (tmp_path / "a.parquet").read_bytes()
    metadata = parquet.read_metadata(tmp_path / "a.parquet")
    one = whole[4:]  # the page with the value, and what is behind it
    assert sum(page.values for page in pages(io.BytesIO(b"PAR1" + 900 * VALUELESS + one), metadata, ["d0"])) == 1
    with pytest.raises(ValueError, match="more than 1000 pages without values"):
        list(pages(io.BytesIO(b"PAR1" + 1001 * VALUELESS + one), metadata, ["d0"]))


def test_a_length_that_thrift_would_cut_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"d0": [1.0]}, use_dictionary=False)
    metadata = parquet.read_metadata(tmp_path / "a.parquet")
    text_of_four_gigabytes = b"\x08\xc8\x01" + b"\x80\x80\x80\x80\x10"
    with pytest.raises(ValueError, match="damaged"):
        list(pages(io.BytesIO(b"PAR1" + text_of_four_gigabytes + VALUELESS), metadata, ["d0"]))
