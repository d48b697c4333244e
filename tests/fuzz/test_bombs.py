"""Files made to hurt: each is refused with a reason, soon and within the limit of memory."""

import io
import itertools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
from fuzz.reader import Reader
from fuzz.specimens import hdf5, npy, parquet, patch


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    opened = Reader()
    yield opened
    opened.close()


def header(text: str, *, version: int = 1, length: int | None = None) -> bytes:
    """A `.npy` of this header alone; it may say that it is longer than it is."""
    said = len(text) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", said) + text.encode()


def shaped(shape: str, kind: str = "<f4") -> bytes:
    return header(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n") + bytes(16)


def archive(how: int = zipfile.ZIP_DEFLATED, **members: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", how) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return data.getvalue()


def images(count: int, side: int) -> bytes:
    return npy(np.zeros((count, side, side), np.uint8))


def promised(**datasets: tuple[tuple[int, ...], str]) -> bytes:
    """An HDF5 file of fill values alone: it promises any shape and holds nothing."""

    def fill(file: Any) -> None:
        for name, (shape, kind) in datasets.items():
            file.create_dataset(name, shape, kind, chunks=(1, min(shape[1], 1024)), fillvalue=1)

    return hdf5(fill)


def chunked(size: int) -> bytes:
    def fill(file: Any) -> None:
        file.create_dataset("features", (4, size), "f4", chunks=(4, size), compression="gzip", fillvalue=1)

    return hdf5(fill)


def repeated(rows: int, text: str) -> Any:
    """A Parquet table that holds one value once, however many rows have it."""
    numbers = arrow.array(np.zeros(rows, np.int32))
    return arrow.DictionaryArray.from_arrays(numbers, arrow.array([text])).cast(arrow.string())


def once(rows: int, length: int) -> Any:
    """The same, of a text too long to be written out for each of them."""
    return arrow.DictionaryArray.from_arrays(arrow.array(np.zeros(rows, np.int32)), arrow.array(["a" * length]))


def keyed(**columns: Any) -> bytes:
    """Features of one column, and these; nothing says that they were encoded as dictionaries."""
    rows = len(next(iter(columns.values())))
    return parquet({"d0": arrow.array(np.ones(rows))} | columns, store_schema=False, compression="zstd")


def lists(*lengths: int) -> bytes:
    """Features of zeros, as a few bytes; row by row as many."""
    ends = arrow.array(np.cumsum([0, *lengths]), arrow.int32())
    zeros = arrow.array(np.zeros(sum(lengths), np.float32))
    return parquet({"features": arrow.ListArray.from_arrays(ends, zeros)}, compression="zstd")


def varint(number: int, length: int = 0) -> bytes:
    """A number as Thrift writes it, in so many bytes or more."""
    digits = bytearray()
    number *= 2
    while number > 127 or len(digits) + 1 < length:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes(digits) + bytes([number])


def lying(values: int, said: int) -> bytes:
    """Two rows of lists, of which the second has most of the values; the footer says that all are `said`."""
    data = lists(1, values - 1)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    told = varint(values)
    return data[:footer] + data[footer:].replace(told, varint(said, len(told)), 1)


def swollen(size: int) -> bytes:
    """A page of three numbers whose header says that it takes `size` bytes."""
    data = parquet({"d0": arrow.array(np.ones(3))}, use_dictionary=False)
    start, told = b"PAR1\x15\x00\x15", varint(3 * 8 + 6)
    assert data.startswith(start + told)
    return start + varint(size) + data[len(start + told) :]


def understated(length: int, rows: int) -> bytes:
    """A key that repeats, in a dictionary that is not compressed and says that it takes a kilobyte."""
    columns = {"d0": arrow.array(np.ones(rows)), "key": once(rows, length)}
    data = parquet(columns, store_schema=False, compression="none")
    told = varint(length + 4)
    start = data.index(b"\x15\x04\x15" + told)
    return data[: start + 3] + varint(1000, len(told)) + data[start + 3 + len(told) :]


def laughs() -> bytes:
    """Nine lists, each of nine times the one before."""
    lines = ["a: &a [x]"]
    for before, letter in itertools.pairwise("abcdefghi"):
        lines.append(f"{letter}: &{letter} [{', '.join([f'*{before}'] * 9)}]")
    return "\n".join(lines).encode()


def sized(side: int) -> bytes:
    """A PNG whose header says this size, with the checksum that belongs to it."""
    start, data = patch()[:12], patch()[33:]
    head = b"IHDR" + struct.pack(">II", side, side) + patch()[24:29]
    return start + head + struct.pack(">I", zlib.crc32(head)) + data


BOMBS: dict[str, list[tuple[str, str, bytes, str]]] = {
    "npy": [
        ("embeddings", ".npy", header("", version=2, length=2**32 - 1), "it says that it has 4294967295 bytes"),
        ("embeddings", ".npy", header("{'descr': (", version=2), "header cannot be read"),
        ("embeddings", ".npy", header("(" * 60_000), "header cannot be read"),
        ("embeddings", ".npy", header("-" * 60_000 + "1"), "header cannot be read"),
        ("embeddings", ".npy", header("{'descr': '<f4', b'fortran_order': False, 'shape': ()}"), "cannot be read"),
        ("embeddings", ".npy", shaped("(1099511627776, 4)"), "is cut short"),
        ("embeddings", ".npy", shaped("(-1, 4)"), "promises the shape (-1, 4)"),
        ("embeddings", ".npy", shaped(f"({'9' * 4000}, 4)"), "is cut short"),
        ("embeddings", ".npy", shaped(f"({'9' * 6000}, 4)"), "header cannot be read"),
        ("embeddings", ".npy", npy(np.array([[np.nan, 1.0]])), "NaN or infinity"),
        ("embeddings", ".npy", header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"), "never done"),
        ("labels", ".npy", npy(np.array([2**31] * 3, "<u4").view("<U1")), "letters that Unicode does not have"),
        ("labels", ".npy", npy(np.array([0xD800] * 3, "<u4").view("<U1")), "letters that Unicode does not have"),
        ("labels", ".npy", npy(np.array([b"\xff", b"a", b"b"])), "no UTF-8"),
        ("rows", ".csv", b"row,a\n1," + b"9" * 200_000, "is no CSV"),
        ("rows", ".txt", b"9" * 5000, "needs a row number"),
    ],
    "tables": [
        ("embeddings", ".h5", promised(features=((2**40, 4), "f4")), "rows at most"),
        ("embeddings", ".h5", promised(features=((2**31 - 1, 2**20), "f4")), "more than there is"),
        ("embeddings", ".h5", promised(features=((3, 4), "f4"), coords=((3, 2**40), "i8")), "coords needs 3 rows"),
        ("embeddings", ".h5", chunked(1 << 27), "is stored in chunks of 2147483648 bytes"),
        ("embeddings", ".parquet", b"PAR1" + b"\xff" * 64 + struct.pack("<I", 2**31) + b"PAR1", "cannot be read"),
        (
            "embeddings",
            ".parquet",
            parquet({"d0": arrow.array(np.ones(20_000)), "key": repeated(20_000, "k" * 100_000)}),
            "the column 'key' holds more than 1073741824 characters",
        ),
        ("embeddings", ".parquet", lists(30_000_000), "its rows hold 30000000 values each, and at most 65536"),
        ("embeddings", ".parquet", lists(1, 60_000_000), "its rows hold 30000001 values each, and at most 65536"),
        ("embeddings", ".parquet", lying(60_000_001, 2), "60000001 values, where its footer promises 2 in all"),
        ("embeddings", ".parquet", swollen(2**30), "a page of 3 numbers says that it takes 1073741824 bytes"),
        ("embeddings", ".parquet", keyed(key=once(20, 70 << 20)), "and at most 67108864 are taken"),
        ("embeddings", ".parquet", keyed(key=once(20, 60 << 20)), "holds more than 1073741824 characters"),
        ("manifest", ".parquet", parquet({"path": repeated(200_000, "p" * 10_000)}), "holds more than"),
        ("manifest", ".parquet", parquet({"path": arrow.nulls(20_000_000)}), "holds more than 10000000 rows"),
        ("manifest", ".csv", b"path\na\0.png\n", "row 1 has no usable path"),
        ("manifest", ".csv", b"path\n" + b"a" * 200_000, "field larger than"),
        ("manifest", ".csv", b"path\n\xed\xa0\x80.png\n", "is not CSV in UTF-8"),
    ],
    "archives": [
        ("npz", ".npz", archive(train_images=shaped("(1099511627776, 0, 0)", "|u1")), "at most 10000000 images"),
        ("npz", ".npz", archive(train_images=shaped("(1099511627776, 8, 8)", "|u1")), "at most 10000000 images"),
        ("npz", ".npz", archive(train_images=images(1, 20_000)), "of 1 to 1000000 pixels"),
        ("npz", ".npz", archive(train_images=header("", version=2, length=2**32 - 1)), "it says that it has"),
        (
            "npz",
            ".npz",
            archive(train_images=images(2, 8), train_labels=npy(np.zeros(200_000_000, np.int64))),
            "integers of shape (2,) or (2, 1) are needed",
        ),
        ("npz", ".npz", archive(**{"../../train_images": images(2, 8)}), "no role for the split '../../train'"),
        ("npz", ".npz", archive(train_images=b"\x80\x04K\x01."), "cannot be used"),
        ("embeddings", ".npz", archive(train_images=images(2, 8)), "never loaded"),
    ],
    "specs": [
        ("spec", ".yaml", laughs(), "100000 values"),
        ("spec", ".yaml", b"sources: &a [*a]", "nested more than"),
        ("spec", ".yaml", b"[" * 5000, "nested too deeply"),
        ("spec", ".json", b'{"name":' + b"[" * 30_000, "nested too deeply"),
        ("spec", ".yaml", b"a: 1" + b":1" * 1_000_000, "larger than 65536 bytes"),
        ("spec", ".yaml", b"seed: " + b"9" * 5000, "neither YAML nor JSON"),
        ("spec", ".json", b'{"\\ud800": 1}', "neither YAML nor JSON"),
        ("spec", ".yaml", b'name: "\\uD800"', "neither YAML nor JSON"),
        ("spec", ".yaml", b"name: a\0b", "neither YAML nor JSON"),
        ("spec", ".yaml", b"name: !!python/object/apply:os.system [x]", "neither YAML nor JSON"),
        ("spec", ".yaml", b"? [a]\n: b", "neither YAML nor JSON"),
        ("spec", ".yaml", b"\xff\xfen\0a\0", "neither YAML nor JSON"),
    ],
    "images": [
        ("image", ".png", sized(2**31 - 1), "too large"),
        ("image", ".png", sized(1001), "too large: 1001x1001 is above 1000000 pixels"),
        ("image", ".png", patch()[:-20], "broken or truncated"),
        ("image", ".png", b"", "empty file"),
        ("image", ".jpg", b"\xff\xd8\xff" + bytes(64), "not a PNG, JPEG or TIFF"),
    ],
}
CASES = [(kind, number) for kind, found in BOMBS.items() for number in range(len(found))]


@pytest.mark.parametrize(("kind", "number"), CASES, ids=[f"{kind}-{number}" for kind, number in CASES])
def test_it_is_refused_with_its_reason(kind: str, number: int, reader: Reader, tmp_path: Path) -> None:
    name, suffix, data, reason = BOMBS[kind][number]
    (path := tmp_path / f"bomb{suffix}").write_bytes(data)
    verdict = reader.read(name, path)
    assert verdict.kind == "refused" and reason in verdict.text, verdict


def test_text_that_repeats_takes_no_memory_whatever_its_page_says(reader: Reader, tmp_path: Path) -> None:
    (path := tmp_path / "long.parquet").write_bytes(understated(4 << 20, 250))
    verdict = reader.read("embeddings", path)
    assert verdict.kind == "read", verdict


@pytest.mark.parametrize("columns", [["key"], ["x", "y"]])
def test_text_that_repeats_takes_no_memory_for_each_row(reader: Reader, tmp_path: Path, columns: list[str]) -> None:
    data = keyed(**dict.fromkeys(columns, once(250, 4 << 20)))
    (path := tmp_path / "long.parquet").write_bytes(data)
    verdict = reader.read("embeddings", path)
    assert verdict.kind == "read" and len(data) < 2000, verdict


def test_text_beyond_unicode_in_a_known_key_is_explained(reader: Reader, tmp_path: Path) -> None:
    """The values of a spec that are read but wrong are refused by name, in text that can be shown."""
    (path := tmp_path / "spec.yaml").write_bytes(b"name: e\ndataset: tissue\n1: 2\nviews: {2020-01-01: x}\n")
    verdict = reader.read("spec", path)
    assert verdict.kind == "read" and "views" in verdict.text, verdict
