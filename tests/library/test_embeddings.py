"""Files of embeddings: what encoders leave is read as it is, and what cannot be used is refused with its reason."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as arrow
import pytest
from numpy.typing import NDArray
from pyarrow import parquet

from winnow.embeddings import origins_of, read_labels, read_rows, survey, tabulate
from winnow.errors import InvalidInput

ROWS = np.random.default_rng(5).normal(size=(7, 4)).astype(np.float32)
COORDS = np.arange(14).reshape(7, 2)
Write = Callable[[Path, NDArray[Any]], None]


def write_npy(path: Path, rows: NDArray[Any]) -> None:
    with path.open("wb") as file:
        np.save(file, rows, allow_pickle=False)


def write_trident(path: Path, rows: NDArray[Any]) -> None:
    with h5py.File(path, "w") as file:
        file["features"] = rows
        file["coords"] = np.arange(2 * len(rows)).reshape(-1, 2)


def write_stamp(path: Path, rows: NDArray[Any]) -> None:
    with h5py.File(path, "w") as file:
        file["feats"] = rows
        file["coords"] = np.arange(2 * len(rows), dtype=np.float32).reshape(-1, 2) / 2
        file.attrs["unit"] = "um"


def write_lists(path: Path, rows: NDArray[Any]) -> None:
    lists = arrow.array(list(rows), arrow.list_(arrow.from_numpy_dtype(rows.dtype)))
    parquet.write_table(arrow.table({"key": [f"p{row}" for row in range(len(rows))], "features": lists}), path)


def write_columns(path: Path, rows: NDArray[Any]) -> None:
    columns = {f"f{column}": rows[:, column] for column in range(rows.shape[1])}
    parquet.write_table(arrow.table(columns | {"x": COORDS[: len(rows), 0], "y": COORDS[: len(rows), 1]}), path)


WRITERS: list[Write] = [write_npy, write_trident, write_stamp, write_lists, write_columns]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_rows_come_back_as_float32(tmp_path: Path, write: Write, dtype: str) -> None:
    stored = ROWS.astype(dtype)
    write(tmp_path / "slide", stored)
    found = survey([tmp_path / "slide"]).read()
    assert found.features.dtype == np.float32
    assert np.array_equal(found.features, stored.astype(np.float32))
    assert found.notes == (() if dtype == "float32" else (f"{dtype} converted to float32",))


@pytest.mark.parametrize("odd", [ROWS.astype(">f4"), np.asfortranarray(ROWS)])
def test_other_layouts_of_npy_are_the_same_rows(tmp_path: Path, odd: NDArray[Any]) -> None:
    write_npy(tmp_path / "odd.npy", odd)
    assert np.array_equal(survey([tmp_path / "odd.npy"]).read().features, ROWS)


@pytest.mark.parametrize("stored", [ROWS.astype(">f4"), np.asfortranarray(ROWS), ROWS.astype(np.float64), ROWS])
def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(tmp_path: Path, stored: NDArray[Any]) -> None:
    """Mapped, it would end the process that reads it."""
    write_npy(tmp_path / "pool.npy", stored)
    found = survey([tmp_path / "pool.npy"])
    os.truncate(tmp_path / "pool.npy", 140)
    with pytest.raises(InvalidInput, match=r"pool: pool\.npy: became shorter while it was read"):
        found.read(tmp_path)
    (tmp_path / "pool.npy").unlink()
    with pytest.raises(InvalidInput, match=r"pool: pool\.npy: cannot be read \(No such file"):
        found.read(tmp_path)


def test_a_copy_of_ones_own_outlives_the_file(tmp_path: Path) -> None:
    write_npy(tmp_path / "pool.npy", ROWS)
    (tmp_path / "own").mkdir()
    features = survey([tmp_path / "pool.npy"]).read(tmp_path / "own").features
    os.truncate(tmp_path / "pool.npy", 0)
    assert isinstance(features, np.memmap) and np.array_equal(features, ROWS)
    assert not list((tmp_path / "own").iterdir()), "the copy has no name"


def test_coordinates_that_are_none_are_left_out(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["feats"], file["coords"] = ROWS[:2], np.array([[1.5, 2], [np.nan, 3]])
    found = survey([tmp_path / "s.h5"])
    first, second = origins_of(found.parts(), [0, 1])
    assert first == {"file": "s.h5", "row": 0, "coords": [1.5, 2]} and second == {"file": "s.h5", "row": 1}


def test_one_plain_npy_is_not_read_into_memory(tmp_path: Path) -> None:
    write_npy(tmp_path / "pool.npy", ROWS)
    found = survey([tmp_path / "pool.npy"])
    assert found.bytes_to_read == 0 and isinstance(found.read().features, np.memmap)
    write_npy(tmp_path / "wide.npy", ROWS.astype(np.float64))
    assert survey([tmp_path / "wide.npy"]).bytes_to_read == 4 * ROWS.size


def test_a_folder_of_slides_is_one_pool(tmp_path: Path) -> None:
    write_trident(tmp_path / "b.h5", ROWS[:3])
    write_stamp(tmp_path / "a.h5", ROWS[3:5])
    write_lists(tmp_path / "c.parquet", ROWS[5:])
    (tmp_path / ".hidden.npy").write_bytes(b"not looked at")
    (tmp_path / "notes.txt").write_text("not looked at")
    found = survey([tmp_path])
    assert (found.rows, found.columns) == (7, 4)
    assert found.groups() == ["a", "a", "b", "b", "b", "c", "c"]
    pool = found.read()
    assert np.array_equal(pool.features, ROWS[[3, 4, 0, 1, 2, 5, 6]])
    origins = origins_of(found.parts(), [0, 4, 6])
    assert origins == [
        {"file": "a.h5", "row": 0, "coords": [0.0, 0.5]},
        {"file": "b.h5", "row": 2, "coords": [4, 5]},
        {"file": "c.parquet", "row": 1, "key": "p1"},
    ]
    table = tabulate([0, 4, 6], [3.0, 2.0, 1.0], origins)
    assert list(table) == ["rank", "row", "score", "file", "file_row", "x", "y", "key"]
    assert table["x"] == [0.0, 4, None] and table["key"] == [None, None, "p1"]


def test_slides_of_one_stem_keep_their_folders_apart(tmp_path: Path) -> None:
    for folder in ("p1", "p2"):
        (tmp_path / folder).mkdir()
        write_npy(tmp_path / folder / "s.npy", ROWS[:2])
    assert survey([tmp_path]).groups() == ["p1/s", "p1/s", "p2/s", "p2/s"]


def test_files_of_two_folders_that_are_called_alike(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        write_npy(tmp_path / folder / "s.npy", ROWS)
    paths = [tmp_path / "a" / "s.npy", tmp_path / "b" / "s.npy"]
    groups = survey(paths).groups()
    assert len(set(groups)) == 2 and groups[0].endswith("a/s")
    with pytest.raises(InvalidInput, match=r"groups: two files are called s, and would be one group"):
        survey(paths, names=["s.npy", "s.npy"]).groups()


def test_a_column_of_parquet_is_a_group(tmp_path: Path) -> None:
    write_lists(tmp_path / "a.parquet", ROWS)
    assert survey([tmp_path / "a.parquet"]).values("key", "groups") == [f"p{row}" for row in range(7)]
    with pytest.raises(InvalidInput, match=r"groups: a.parquet: has no column 'patient'; it has key, features"):
        survey([tmp_path / "a.parquet"]).values("patient", "groups")


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    ends, torn = (arrow.py_buffer(part) for part in (np.array([0, 1, 2], np.int32), b"a\xe2"))
    keys = arrow.StringArray.from_buffers(2, ends, torn)
    parquet.write_table(arrow.table({"key": keys, "features": [[1.0], [2.0]]}), tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match=r"a.parquet: cannot be read as Parquet .*UTF8"):
        survey([tmp_path / "a.parquet"]).values("key", "groups")


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_row_that_is_not_finite_is_named(tmp_path: Path, write: Write, value: float) -> None:
    rows = ROWS.astype(np.float64)
    rows[4, 1] = value
    write(tmp_path / "bad", rows)
    with pytest.raises(InvalidInput, match=r"pool: bad: NaN or infinity.* in row 4"):
        survey([tmp_path / "bad"]).read()


@pytest.mark.parametrize("write", WRITERS)
def test_a_value_beyond_float32_is_refused_not_made_infinite(tmp_path: Path, write: Write) -> None:
    rows = ROWS.astype(np.float64)
    rows[6, 0] = 1e39
    write(tmp_path / "bad", rows)
    with pytest.raises(InvalidInput, match=r"beyond float32.* in row 6"):
        survey([tmp_path / "bad"]).read()


def npy_bytes(array: NDArray[Any], **options: Any) -> bytes:
    data = io.BytesIO()
    np.save(data, array, **options)
    return data.getvalue()


def npz_bytes() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a.npy", npy_bytes(ROWS))
    return data.getvalue()


def parquet_bytes(table: Any) -> bytes:
    data = io.BytesIO()
    parquet.write_table(table, data)
    return data.getvalue()


TORN_HEADER = b"\x93NUMPY\x01\x00\xff\x0f{'descr': "
WHOLE = npy_bytes(ROWS)
RAGGED = arrow.table({"features": [[1.0, 2.0], [3.0]]})
NULLS = arrow.table({"a": arrow.array([1.0, None]), "b": [1.0, 2.0]})
TWO_LISTS = arrow.table({"u": [[1.0]], "v": [[2.0]]})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty, 0 bytes"),
        (b"some text", "none of .npy, HDF5, Parquet"),
        (pickle.dumps(ROWS), "never loaded"),
        (npz_bytes(), "never loaded"),
        (npy_bytes(np.array([[{}]], object), allow_pickle=True), "never done"),
        (WHOLE[:-1], "is cut short: its header promises 112 bytes of data, there are 111"),
        (WHOLE[:40], "header cannot be read"),
        (TORN_HEADER, "header cannot be read"),
        (npy_bytes(np.zeros((3, 2), np.int64)), "needs float16, float32, float64, got int64"),
        (npy_bytes(np.zeros((3, 2), np.complex64)), "got complex64"),
        (npy_bytes(np.zeros(5, np.float32)), "needs 2 dimensions"),
        (npy_bytes(np.zeros((2, 3, 4), np.float32)), "needs 2 dimensions"),
        (npy_bytes(np.zeros((0, 4), np.float32)), "holds no embeddings"),
        (npy_bytes(np.zeros((4, 0), np.float32)), "holds no embeddings"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 50, "cannot be read as HDF5"),
        (b"PAR1" + b"\0" * 50, "cannot be read as Parquet"),
        (parquet_bytes(RAGGED), "row 1 has 1 values, and the rows of the file 2 on average"),
        (parquet_bytes(NULLS), "nothing in row 1"),
        (parquet_bytes(arrow.table({"features": [[1.0, 2.0], None]})), "nothing in row 1"),
        (parquet_bytes(TWO_LISTS), "several columns hold lists of floats: u, v"),
        (parquet_bytes(arrow.table({"name": ["a"]})), "no float columns"),
        (parquet_bytes(RAGGED.slice(0, 0)), "holds no embeddings"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "bad.npy").write_bytes(data)
    with pytest.raises(InvalidInput) as refused:
        survey([tmp_path / "bad.npy"]).read()
    assert str(refused.value).startswith("pool: bad.npy: ") and reason in str(refused.value)


def test_a_promise_of_more_bytes_than_numbers_can_count(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4611686018427387904), }"
    (tmp_path / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(InvalidInput, match="is cut short"):
        survey([tmp_path / "huge.npy"])


def hdf5_without(path: Path) -> str:
    with h5py.File(path, "w") as file:
        file["embedding"] = ROWS
        file["coords"] = COORDS
    return "has no dataset features or feats; it holds coords, embedding"


def hdf5_group(path: Path) -> str:
    with h5py.File(path, "w") as file:
        file.create_group("features")
    return "features is a group, not a dataset"


def hdf5_short_coords(path: Path) -> str:
    with h5py.File(path, "w") as file:
        file["features"] = ROWS
        file["coords"] = COORDS[:3]
    return r"coords needs 7 rows of x and y, got shape \(3, 2\)"


def hdf5_external_link(path: Path) -> str:
    write_trident(path.with_name("secret.h5"), ROWS)
    with h5py.File(path, "w") as file:
        file["features"] = h5py.ExternalLink("secret.h5", "/features")
    return "features is a link; only data that the file itself holds is read"


def hdf5_external_storage(path: Path) -> str:
    path.with_name("secret.bin").write_bytes(ROWS.tobytes())
    with h5py.File(path, "w") as file:
        file.create_dataset("features", ROWS.shape, "f4", external=[(str(path.with_name("secret.bin")), 0, 112)])
    return "features lies in other files"


def hdf5_virtual(path: Path) -> str:
    write_trident(path.with_name("secret.h5"), ROWS)
    layout = h5py.VirtualLayout(ROWS.shape, "f4")
    layout[:] = h5py.VirtualSource(str(path.with_name("secret.h5")), "features", ROWS.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("features", layout)
    return "features lies in other files"


def hdf5_cut(path: Path) -> str:
    write_trident(path, np.tile(ROWS, (400, 1)))
    path.write_bytes(path.read_bytes()[:3000])
    return "cannot be read as HDF5"


@pytest.mark.parametrize(
    "make",
    [
        hdf5_without,
        hdf5_group,
        hdf5_short_coords,
        hdf5_external_link,
        hdf5_external_storage,
        hdf5_virtual,
        hdf5_cut,
    ],
)
def test_hdf5_that_cannot_be_used_or_points_elsewhere(tmp_path: Path, make: Callable[[Path], str]) -> None:
    reason = make(tmp_path / "bad.h5")
    with pytest.raises(InvalidInput, match=f"pool: bad.h5: {reason}"):
        survey([tmp_path / "bad.h5"]).read()


def test_files_of_different_widths_are_no_pool(tmp_path: Path) -> None:
    write_npy(tmp_path / "a.npy", ROWS)
    write_npy(tmp_path / "b.npy", ROWS[:, :3])
    with pytest.raises(InvalidInput, match=r"a.npy has 4 columns, b.npy has 3; one pool has one width"):
        survey([tmp_path])


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is not there"):
        survey([tmp_path / "none.npy"])
    with pytest.raises(InvalidInput, match="cannot be read"):
        survey([tmp_path / ("x" * 300)])
    with pytest.raises(InvalidInput, match="holds no file of"):
        survey([tmp_path])


def test_row_numbers_from_every_format(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("3\n1\n")
    (tmp_path / "picks.csv").write_text("rank,row,score\n0,3,0.5\n1,1,0.25\n")
    (tmp_path / "spaced.csv").write_text("rank, row\n0, 3\n1, 1\n")
    np.save(tmp_path / "rows.npy", np.array([3, 1]))
    for name in ("lines", "picks.csv", "spaced.csv", "rows.npy"):
        assert read_rows(tmp_path / name, "exclude") == [3, 1], name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("1\nx\n", "needs a row number in line 2, got 'x'"),
        ("1\n-2\n", "-2 in line 2 is no row number"),
        ("row\n1\n\nx\n", "needs a row number in line 4, got 'x'"),
        ("key\np1\n", "the pool has no keys"),
        (f"{2**63}\n", "does not fit int64"),
        ("rank,score\n0,0.5\n", "has no column 'row' or 'key'; it has rank, score"),
        ("\udcff", "cannot be read as lines of text"),
    ],
)
def test_row_numbers_that_are_none(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "rows").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InvalidInput, match=f"exclude: .*{reason}"):
        read_rows(tmp_path / "rows", "exclude")


def test_rows_by_the_keys_of_the_pool(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("p3\np1\n")
    (tmp_path / "picks.csv").write_text("rank,score,key\n0,0.5,p3\n1,0.25,p1\n")
    np.save(tmp_path / "keys.npy", np.array(["p3", "p1"]))
    np.save(tmp_path / "bytes.npy", np.array([b"p3", b"p1"]))
    (tmp_path / "rows").write_text("3\n1\n")
    write_lists(tmp_path / "pool.parquet", ROWS)
    pool = survey([tmp_path / "pool.parquet"])
    for name in ("lines", "picks.csv", "keys.npy", "bytes.npy", "rows"):
        assert read_rows(tmp_path / name, "exclude", pool.keys) == [3, 1], name
    (tmp_path / "lines").write_text("p3\nq\n")
    with pytest.raises(InvalidInput, match="exclude: lines: the pool has no key 'q', of line 2"):
        read_rows(tmp_path / "lines", "exclude", pool.keys)
    with pytest.raises(InvalidInput, match=r"keys\.npy: the pool has no key 'p3', of line 1"):
        read_rows(tmp_path / "keys.npy", "exclude", lambda: ["p1"])
    with pytest.raises(InvalidInput, match="has a key twice"):
        read_rows(tmp_path / "picks.csv", "exclude", lambda: ["p3", "p3"])


def test_labels_must_be_one_for_each_row(tmp_path: Path) -> None:
    (tmp_path / "groups").write_text("a\nb\n")
    np.save(tmp_path / "groups.npy", np.array(["a", "b"]))
    assert read_labels(tmp_path / "groups", "groups", 2) == read_labels(tmp_path / "groups.npy", "groups", 2)
    with pytest.raises(InvalidInput, match="groups: groups: needs 3 values, one for each row of the pool, got 2"):
        read_labels(tmp_path / "groups", "groups", 3)
    np.save(tmp_path / "objects.npy", np.array([{}, {}], object), allow_pickle=True)
    with pytest.raises(InvalidInput, match="never done"):
        read_labels(tmp_path / "objects.npy", "groups", 2)
