"""Words that map splits to roles: each must be one of the source's own."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from winnow.datasets import check
from winnow.domain import DatasetSpec
from winnow.errors import InvalidInput


def check_source(kind: str, path: Path, splits: dict[str, str]) -> None:
    source = {"kind": kind, "path": str(path), "splits": splits}
    check(DatasetSpec.model_validate({"name": "d", "sources": [source]}), lambda path: None)


def archive(at: Path) -> Path:
    arrays = {f"{name}_images": np.zeros((2, 16, 16, 3), np.uint8) for name in ("train", "val", "test")}
    labels = {f"{name}_labels": np.arange(2) for name in ("train", "val", "test")}
    np.savez(at / "m.npz", **arrays, **labels)
    return at / "m.npz"


def table(at: Path) -> Path:
    rows = "".join(f"{number}.png,x,{role}\n" for number, role in enumerate(["test", "pool", "", "validation"]))
    (at / "m.csv").write_text(f"path,label,role\n{rows}")
    return at / "m.csv"


def bare_table(at: Path) -> Path:
    (at / "m.csv").write_text("path,label\na.png,x\n")
    return at / "m.csv"


def folders(at: Path) -> Path:
    for name in ("train/x/a.png", "val/x/a.png", "empty/x/.hidden"):
        (at / "m" / name).parent.mkdir(parents=True)
        (at / "m" / name).touch()
    return at / "m"


@pytest.mark.parametrize(
    ("kind", "make", "splits", "said"),
    [
        ("npz", archive, {"vall": "labelled"}, "no split 'vall'; there are train, val, test"),
        ("manifest", table, {"nope": "test"}, "no split 'nope'; there are pool, test, validation"),
        ("manifest", bare_table, {"train": "pool"}, "no split 'train'; there are none: columns.role names .*"),
        ("folder", folders, {"trian": "pool", "val": "test"}, "no split 'trian'; there are empty, train, val"),
    ],
)
def test_a_split_that_is_not_there_is_refused(
    tmp_path: Path, kind: str, make: Callable[[Path], Path], splits: dict[str, str], said: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_source(kind, make(tmp_path), splits)
    assert refused.value.field == "sources.0.splits"
    assert re.fullmatch(said, refused.value.reason)


def test_of_many_splits_a_few_are_named(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"fold{number}").mkdir()
        (tmp_path / f"fold{number}" / "a.png").touch()
    with pytest.raises(InvalidInput, match="no split 'fold7'; there are fold0, fold1, fold2, fold3, fold4 and 2 more"):
        check_source("folder", tmp_path, {"fold7": "test"})


@pytest.mark.parametrize(
    ("kind", "make", "splits"),
    [
        ("npz", archive, {"val": "labelled"}),
        ("manifest", table, {"validation": "labelled", "test": "validation"}),
        ("folder", folders, {"train": "pool", "val": "test", "empty": "labelled"}),
    ],
)
def test_a_split_that_is_there_is_taken_though_it_be_empty(
    tmp_path: Path, kind: str, make: Callable[[Path], Path], splits: dict[str, str]
) -> None:
    check_source(kind, make(tmp_path), splits)
