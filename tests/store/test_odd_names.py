"""Names of files are bytes: whatever a folder has is listed as text that both databases store, and that can be sent."""

import os
from pathlib import Path

import pytest
from library.packs import ingest
from PIL import Image

from winnow.datasets import check
from winnow.domain import DatasetSpec
from winnow.errors import ImagesUnreadable, InvalidInput, PathForbidden
from winnow.store import Database, claims, datasets
from winnow.store.tables import Dataset

ODD = os.fsdecode(b"\xe9")


def anywhere(path: Path) -> None:
    """Allow every path."""


def spec_of(folder: Path, on_unreadable: str) -> DatasetSpec:
    body = {"name": "d", "image_size": 16, "sources": [{"kind": "folder", "path": str(folder)}]}
    return DatasetSpec.model_validate(body | {"on_unreadable": on_unreadable})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A class, an image and a suffix in Latin-1."""
    inside = tmp_path / "patches" / ODD
    inside.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(inside / f"{ODD}.png")
    (inside / f"notes.{ODD}").write_bytes(b"no image")
    return tmp_path / "patches"


def test_names_that_are_no_text_are_stored(database: Database, folder: Path, tmp_path: Path) -> None:
    spec = spec_of(folder, "skip")
    done = ingest(spec, tmp_path / "out", allow=anywhere)
    with database.begin() as session:
        datasets.insert(session, spec)
    with database.begin() as session:
        row = claims.claim(session, claims.INGEST, "w", 30)
        assert isinstance(row, Dataset)
    rows = [sample._asdict() for sample in done.samples()]
    ready = {"classes": done.classes, "counts": done.counts, "report": done.report, "location": "x"}
    with database.begin() as session:
        datasets.store(session, row.id, row.attempt, 30, rows, total=len(rows))
        datasets.complete(session, row.id, row.attempt, **ready)
    with database.read() as session:
        stored = datasets.get(session, "d")
    assert (rows[0]["key"], stored.classes) == ("\\xe9/\\xe9.png", ["\\xe9"])
    reason = "not a PNG, JPEG or TIFF file name (.\\xe9)"
    assert stored.report["skipped"] == [{"path": "\\xe9/notes.\\xe9", "reason": reason}]


def refuse(path: Path) -> None:
    if not path.name.isascii():
        raise PathForbidden(str(path), [])


def test_what_is_wrong_with_them_can_be_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ImagesUnreadable) as unreadable:
        ingest(spec_of(folder, "fail"), tmp_path / "out", allow=anywhere)
    with pytest.raises(PathForbidden) as forbidden:
        check(spec_of(folder, "fail"), refuse)
    (folder / ODD / ODD).symlink_to(folder)
    with pytest.raises(InvalidInput) as looped:
        check(spec_of(folder, "fail"), anywhere)
    for error in (unreadable.value, forbidden.value, looped.value):
        assert "\\xe9" in str(error) and str(error).isascii()
    assert forbidden.value.path == f"{folder}/\\xe9"


def test_half_of_a_pair_in_what_was_asked_for_is_shown(tmp_path: Path) -> None:
    assert str(InvalidInput("name", "no \ud800 and no \0")) == "name: no \\xed\\xa0\\x80 and no \\x00"
