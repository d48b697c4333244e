"""Valid files of every kind that is read, small, as bytes: what mutations start from."""

import csv
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Specimen = tuple[str, str, bytes]
"""The reader, the file's suffix, its bytes."""
_RANDOM = np.random.default_rng(0)
_ROWS = _RANDOM.random((3, 4))
_PIXELS = _RANDOM.integers(0, 256, (12, 12, 3), np.uint8)
SPEC: dict[str, Any] = {
    "name": "e",
    "dataset": "tissue",
    "arms": ["entropy", "k_center"],
    "seeds": [0, 1],
    "positive_class": "a",
    "simclr": {"epochs": 2, "learning_rate": 1e-4, "betas": [0.9, 0.99]},
    "views": {"crop_scale": [0.1, 1.0]},
}
SPEC_YAML = b"""
name: nct  # a dataset
defaults: &defaults {kind: folder, path: /data/train}
sources:
  - *defaults
  - {<<: *defaults, path: /data/test, role: test, labels: {'0': ADI}}
draws: [{count: 100, by: stratum}]
"""


def specimens() -> list[Specimen]:
    """At least one of each kind, and each of another make."""
    return [*_arrays(), *_tables(), *_hdf5(), *_images(), *_archives(), *_specs()]


def _arrays() -> list[Specimen]:
    floats = [_ROWS.astype(kind) for kind in ("<f4", ">f4", "f2", "f8")] + [np.asfortranarray(_ROWS.astype("f4"))]
    found = [("embeddings", ".npy", npy(one)) for one in floats]
    labels = [np.array(["a", "b", "c"]), np.array([b"a", b"b", b"c"]), np.arange(3), np.arange(3, dtype="u1")]
    found += [("labels", ".npy", npy(one)) for one in labels]
    found += [("rows", ".npy", npy(np.array([0, 2], kind))) for kind in ("i8", "u4")]
    found += [("labels", ".txt", b"a\nb\nc\n"), ("rows", ".csv", b"rank,row,score\n0,5,0.5\n1,7,0.25\n")]
    return found


def _tables() -> list[Specimen]:
    keys = ["a", "b", "c"]
    lists: Any = [row.tolist() for row in _ROWS.astype("f4")]
    wide: Any = {f"d{i}": _ROWS[:, i].tolist() for i in range(4)}
    found = [
        ("embeddings", ".parquet", parquet({"features": lists, "key": keys, "x": [1.0, 2.0, 3.0], "y": [1, 2, 3]})),
        ("embeddings", ".parquet", parquet(wide | {"id": [1, 2, 3]}, compression="zstd")),
    ]
    rows = {"path": ["a.png", "b.png", "c.png"], "label": ["x", "y", ""], "role": ["pool", "test", ""]}
    found.append(("manifest", ".parquet", parquet(rows | {"group": [1.0, 2.0, float("nan")]})))
    text = io.StringIO()
    table = csv.writer(text)
    table.writerows([list(rows), *zip(*rows.values(), strict=True)])
    return [
        *found,
        ("manifest", ".csv", text.getvalue().encode()),
        ("manifest", ".tsv", b"path\tlabel\na.png\tx\nb.png\t\n"),
    ]


def _hdf5() -> list[Specimen]:
    def trident(file: Any) -> None:
        file.create_dataset("features", data=_ROWS.astype("f4"), chunks=(2, 4), compression="gzip", shuffle=True)
        file.create_dataset("coords", data=np.arange(6).reshape(3, 2)).attrs["patch_size"] = 256

    def stamp(file: Any) -> None:
        file.create_dataset("feats", data=_ROWS.astype("f2"))
        file.create_dataset("coords", data=_ROWS[:, :2].astype("f4"))
        file.create_group("other")

    return [("embeddings", ".h5", hdf5(trident)), ("embeddings", ".h5", hdf5(stamp))]


def patch() -> bytes:
    """A PNG that manifests may name."""
    return _picture(Image.fromarray(_PIXELS), {"format": "PNG"})


def _images() -> list[Specimen]:
    colour, grey = Image.fromarray(_PIXELS), Image.fromarray(_PIXELS[..., 0])
    palette, clear = colour.quantize(16), colour.convert("RGBA")
    found = [(one, {"format": "PNG"}) for one in (colour, grey, palette, clear)]
    found += [(colour, {"format": "JPEG"}), (grey, {"format": "JPEG"}), (colour, {"format": "JPEG", "progressive": 1})]
    found += [(colour, {"format": "TIFF", "compression": how}) for how in (None, "tiff_lzw", "tiff_deflate", "jpeg")]
    found += [(grey, {"format": "TIFF", "save_all": True, "append_images": [grey, grey]})]
    return [("image", ".img", _picture(image, options)) for image, options in found]


def _archives() -> list[Specimen]:
    images = _RANDOM.integers(0, 256, (3, 8, 8, 3), np.uint8)
    members = {"train_images": images, "train_labels": np.array([[0], [1], [0]]), "val_images": images[:2, ..., 0]} | {
        "val_labels": np.array([1, 0], "u1")
    }
    return [("npz", ".npz", _npz(np.savez, members)), ("npz", ".npz", _npz(np.savez_compressed, members))]


def _specs() -> list[Specimen]:
    return [("spec", ".json", json.dumps(SPEC).encode()), ("spec", ".yaml", SPEC_YAML)]


def npy(array: Any) -> bytes:
    """A `.npy` file."""
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    return data.getvalue()


def parquet(columns: Any, **options: Any) -> bytes:
    """A Parquet file."""
    import pyarrow as arrow
    from pyarrow import parquet as format

    data = io.BytesIO()
    format.write_table(columns if isinstance(columns, arrow.Table) else arrow.table(columns), data, **options)
    return data.getvalue()


def hdf5(fill: Callable[[Any], None]) -> bytes:
    """An HDF5 file that `fill` writes to."""
    import h5py

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.h5"
        with h5py.File(path, "w") as file:
            fill(file)
        return path.read_bytes()


def _picture(image: Image.Image, options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, **options)
    return data.getvalue()


def _npz(save: Any, members: Any) -> bytes:
    data = io.BytesIO()
    save(data, **members)
    return data.getvalue()
