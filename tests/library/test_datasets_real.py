"""Real patches: breast (50x50 PNG with a manifest) and colon (224x224 TIFF in class folders)."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from library.packs import ingest

from winnow.datasets import PackedImages
from winnow.domain import DatasetSpec, Role


def anywhere(path: Path) -> None:
    """Allow every path."""


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("WINNOW_REAL_DATA")
    if not folder:
        pytest.skip("WINNOW_REAL_DATA names no directory with idc50.tar.gz and nct_sample.tar.gz")
    return Path(folder)


def unpack(archive: Path, target: Path) -> Path:
    if not archive.is_file():
        pytest.skip(f"{archive.name} is not in WINNOW_REAL_DATA")
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    return target / archive.name.removesuffix(".tar.gz")


def test_idc50_by_its_manifest(real_data: Path, tmp_path: Path) -> None:
    root = unpack(real_data / "idc50.tar.gz", tmp_path)
    source = {
        "kind": "manifest",
        "path": str(root / "manifest.csv"),
        "columns": {"role": "split", "group": "patient"},
    }
    spec = DatasetSpec.model_validate({"name": "idc50", "sources": [source], "image_size": 50})
    done = ingest(spec, tmp_path / "out", allow=anywhere)
    assert {role: sum(labels.values()) for role, labels in done.counts.items()} == {
        "pool": 7131,
        "labelled": 500,
        "test": 2563,
    }
    assert done.classes == ["idc", "non_idc"]
    assert sum(labels["idc"] for labels in done.counts.values()) == 2694
    groups = {row.group for row in done.samples()} - {None}
    assert done.report["groups"] == f"{len(groups)} (those held out are in no other role)"
    assert sum(done.report["resized"].values()) == 87
    assert done.report["skipped"] == []
    tested = {row.group for row in done.samples() if row.role is Role.TEST}
    assert len(tested) == 74
    assert not tested & {row.group for row in done.samples() if row.role is not Role.TEST}
    assert len(PackedImages.open(tmp_path / "out")) == 10_194


def test_nct_tiffs_by_their_folders(real_data: Path, tmp_path: Path) -> None:
    root = unpack(real_data / "nct_sample.tar.gz", tmp_path)
    draws = [{"count": 30, "by": "stratum"}, {"count": 60, "role": "test", "by": "stratum"}]
    spec = DatasetSpec.model_validate(
        {"name": "nct", "sources": [{"kind": "folder", "path": str(root)}], "draws": draws, "shard_size": 64}
    )
    done = ingest(spec, tmp_path / "out", allow=anywhere)
    assert done.classes == ["MUS", "NORM", "STR"]
    assert {role: sum(labels.values()) for role, labels in done.counts.items()} == {
        "pool": 109,
        "labelled": 30,
        "test": 60,
    }
    assert done.counts["labelled"] == {"MUS": 10, "NORM": 10, "STR": 10}
    assert done.report["resized"] == {}
    images = PackedImages.open(tmp_path / "out")
    assert (len(images), images.image_size) == (199, 224)
    means = images.take(np.arange(199)).mean(axis=(1, 2))
    assert (means[:, 1] < means[:, 0]).all(), "H&E takes more green than red"
