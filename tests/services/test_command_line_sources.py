"""`winnow dataset add`: what is typed for a source, its columns and its splits is used, or refused with a reason."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from services.conftest import Winnow


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    return path


def archive(data: Path, *splits: str) -> str:
    arrays = {f"{name}_images": np.zeros((2, 16, 16, 3), np.uint8) for name in splits}
    np.savez(data / "m.npz", **arrays, **{f"{name}_labels": np.arange(2) for name in splits})
    return str(data / "m.npz")


@pytest.fixture
def data(url: str, tmp_path: Path) -> Path:
    """The folder that the coordinator may read from."""
    return tmp_path / "data"


def test_a_split_that_is_misspelt_is_refused(data: Path, winnow: Winnow) -> None:
    said = winnow("dataset", "add", "m", archive(data, "train", "val", "test"), "--split", "vall=labelled", "--no-wait")
    assert (said.code, said.err) == (1, "error: sources.0.splits: no split 'vall'; there are train, val, test\n")


def test_splits_of_several_sources_may_differ(data: Path, winnow: Winnow) -> None:
    (data / "t.csv").write_text("path,label,role\n1.png,a,test\n2.png,a,fold1\n")
    save(data / "classes" / "a" / "1.png")
    sources = archive(data, "train", "val"), str(data / "t.csv"), str(data / "classes")
    given = "--split", "val=labelled", "--split", "fold1=pool", "--no-wait", "--json"
    said = winnow("dataset", "add", "m", *sources, *given)
    assert said.code == 0, said.out
    splits = [source["splits"] for source in said.json["spec"]["sources"]]
    assert splits == [{"val": "labelled"}, {"fold1": "pool"}, {}], "each has those of its own"
    nowhere = winnow("dataset", "add", "n", *sources, *given, "--split", "fold2=pool")
    assert nowhere.json["detail"] == "sources.0.splits: no split 'fold2'; there are train, val"


@pytest.mark.parametrize(
    ("source", "option", "said"),
    [
        ("FOLDER", ("--column", "foo=bar"), "--column: is for manifests; FOLDER is a folder of images\n"),
        ("m.npz", ("--column", "path=file"), "--column: is for manifests; m.npz is an .npz\n"),
        ("synthetic:40", ("--split", "train=pool"), "--split: is for manifests, folders and .npz; synthetic:40 is no "),
    ],
)
def test_an_option_that_no_source_can_use_is_refused(
    url: str, winnow: Winnow, source: str, option: tuple[str, str], said: str
) -> None:
    Path("FOLDER").mkdir()
    refused = winnow("dataset", "add", "x", source, *option, "--no-wait")
    assert refused.code == 1 and f"error: {said}" in refused.err


def test_a_column_is_for_those_sources_that_are_manifests(data: Path, winnow: Winnow) -> None:
    (data / "t.csv").write_text("file name,label\n1.png,a\n")
    sources = str(save(data / "classes" / "a" / "1.png").parents[1]), str(data / "t.csv")
    said = winnow("dataset", "add", "x", *sources, "--column", "path=file name", "--no-wait", "--json")
    assert [source["columns"] for source in said.json["spec"]["sources"]] == [{}, {"path": "file name"}]


@pytest.mark.parametrize(
    ("source", "meant"),
    [("tset=/data/x", "; did you mean test?"), ("trian=/data/x", "; did you mean pool?"), ("a=b", "")],
)
def test_what_is_no_role_is_not_taken_for_a_path(url: str, winnow: Winnow, source: str, meant: str) -> None:
    word = source.partition("=")[0]
    said = winnow("dataset", "add", "x", source, "--no-wait")
    roles = "pool, labelled, validation, test"
    assert (said.code, said.err) == (1, f"error: SOURCE: '{word}' is no role; roles: {roles}{meant}\n")


def test_a_path_may_hold_what_parts_a_role_from_it(data: Path, winnow: Winnow, monkeypatch: pytest.MonkeyPatch) -> None:
    save(data / "slide=1" / "a" / "1.png")
    monkeypatch.chdir(data)
    for number, text in enumerate(["slide=1", "pool=slide=1", str(data / "slide=1")]):
        said = winnow("dataset", "add", f"x{number}", text, "--no-wait", "--json")
        assert said.json["spec"]["sources"][0]["path"] == str(data / "slide=1")
    elsewhere = winnow("dataset", "add", "y", "/elsewhere/slide=1", "--no-wait")
    assert "outside the allowed data roots" in elsewhere.err, "a path of the coordinator's machine"
