"""An ingest that goes on decodes again what changed meanwhile, and nothing else."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from library.ingests import (
    FILES,
    SHARD,
    TORN,
    TWO_SHARDS,
    all_of,
    anywhere,
    files_of,
    go_on,
    listed,
    spec_of,
    spoil,
    stop,
    stopping_at,
)
from library.packs import ingest
from PIL import Image

from winnow.datasets import IngestStopped, PackedImages
from winnow.errors import ImagesUnreadable, InvalidInput


def change_listing(folder: Path, directory: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "a" / "000.png")


def lose_image(folder: Path, directory: Path) -> None:
    listed(folder)[1].unlink()


def change_image(folder: Path, directory: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(listed(folder)[1])


def mend_image(folder: Path, directory: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(listed(folder)[0])


def change_decoder(folder: Path, directory: Path) -> None:
    for part in (directory / "parts").iterdir():
        told = json.loads(part.read_text())
        part.write_text(json.dumps(told | {"maker": "0" * 64}))


def tear_part(folder: Path, directory: Path) -> None:
    part = directory / "parts" / "images-00000.npy.json"
    part.write_bytes(part.read_bytes()[:-10])


def tear_shard(folder: Path, directory: Path) -> None:
    shard = directory / "images-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1])


def lose_shard(folder: Path, directory: Path) -> None:
    (directory / "images-00000.npy").unlink()


def another_version(folder: Path, directory: Path) -> None:
    part = directory / "parts" / "images-00000.npy.json"
    told = json.loads(part.read_text())
    part.write_text(json.dumps(told | {"reached": {"rows": 3}}))


CHANGES = (
    *(change_listing, lose_image, change_image, mend_image, change_decoder),
    *(tear_part, tear_shard, lose_shard, another_version),
)


@pytest.mark.parametrize("change", CHANGES)
def test_what_it_cannot_go_on_from_is_decoded_again(
    tmp_path: Path, folder: Path, change: Callable[[Path, Path], None]
) -> None:
    spec = spec_of(folder)
    stop(spec, tmp_path / "a1", TWO_SHARDS)
    spoil(listed(folder)[2:4])
    change(folder, tmp_path / "a1")
    whole = ingest(spec, tmp_path / "whole", allow=anywhere)
    again = ingest(spec, tmp_path / "a2", earlier=["a1"], allow=anywhere)
    assert all_of(again) == all_of(whole)
    assert files_of(tmp_path / "a2") == files_of(tmp_path / "whole")


def test_what_is_behind_an_image_that_changed_is_decoded_again(tmp_path: Path, folder: Path) -> None:
    spec = spec_of(folder)
    stop(spec, tmp_path / "a1", FILES - 1)
    Image.new("RGB", (8, 8), "red").save(listed(folder)[TWO_SHARDS])
    whole = ingest(spec, tmp_path / "whole", allow=anywhere)
    spoil(listed(folder)[:TWO_SHARDS])
    again, seen = go_on(spec, tmp_path / "a2", "a1")
    assert seen == list(range(TWO_SHARDS, FILES + 1))
    assert all_of(again) == all_of(whole) and files_of(tmp_path / "a2") == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    "changes",
    [
        {"on_unreadable": "skip"},
        {"on_unreadable": "skip", "draws": [{"role": "test", "count": 3}, {"count": 4, "seed": 1}]},
        {"on_unreadable": "skip", "name": "other"},
    ],
)
def test_what_failed_goes_on_under_another_policy(tmp_path: Path, folder: Path, changes: dict[str, Any]) -> None:
    whole = ingest(spec_of(folder, **changes), tmp_path / "whole", allow=anywhere)
    with pytest.raises(ImagesUnreadable) as failed:
        ingest(spec_of(folder, on_unreadable="fail"), tmp_path / "a1", allow=anywhere)
    assert len(failed.value.problems) == len(TORN)
    spoil(listed(folder)[: FILES - 1])
    again = ingest(spec_of(folder, **changes), tmp_path / "a2", earlier=["a1"], allow=anywhere)
    assert all_of(again) == all_of(whole) and files_of(tmp_path / "a2") == files_of(tmp_path / "whole")


OTHER = (
    *({"image_size": 16}, {"max_pixels": 100}, {"shard_size": 4}),
    {"sources": [{"kind": "synthetic", "synthetic": {"patches": FILES, "slides": 2, "seed": 2}}]},
)


@pytest.mark.parametrize("changes", OTHER)
def test_what_makes_other_patches_is_begun_anew(tmp_path: Path, folder: Path, changes: dict[str, Any]) -> None:
    tissue = {"kind": "synthetic", "synthetic": {"patches": FILES, "slides": 2}}
    stop(spec_of(folder, **({"sources": [tissue]} if "sources" in changes else {})), tmp_path / "a1", FILES - 1)
    whole = ingest(spec_of(folder, **changes), tmp_path / "whole", allow=anywhere)
    again = ingest(spec_of(folder, **changes), tmp_path / "a2", earlier=["a1"], allow=anywhere)
    assert all_of(again) == all_of(whole) and files_of(tmp_path / "a2") == files_of(tmp_path / "whole")


def test_a_folder_with_the_same_names_elsewhere_is_another(tmp_path: Path, folder: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("path,label\n" + "".join(f"{path.relative_to(folder)},x\n" for path in listed(folder)))
    shutil.copytree(folder, tmp_path / "other")
    spoil([path for path in listed(tmp_path / "other") if path.read_bytes() != b"torn"])
    for path, copy in zip(listed(folder), listed(tmp_path / "other"), strict=True):
        shutil.copystat(path, copy)
    mine, others = (
        spec_of(folder, sources=[{"kind": "manifest", "path": str(table), "root": str(root)}])
        for root in (folder, tmp_path / "other")
    )
    stop(mine, tmp_path / "a1", FILES - 1)
    with pytest.raises(InvalidInput, match="20 of 20 images could not be read"):
        ingest(others, tmp_path / "a2", earlier=["a1"], allow=anywhere)


def test_another_decoder_begins_anew(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop(spec_of(folder), tmp_path / "a1", FILES - 1)
    monkeypatch.setattr("PIL.__version__", "0")
    taken: list[int] = []
    ingest(spec_of(folder), tmp_path / "a2", earlier=["a1"], allow=anywhere, on_taken_over=taken.append)
    assert taken == [0]


def restore(path: Path, good: Path) -> None:
    """The file as it was before it was damaged, with the size and the time of writing that the damaged one has."""
    status = path.stat()
    shutil.copyfile(good, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_file_that_can_be_read_after_all_is_read(tmp_path: Path, folder: Path) -> None:
    spec, torn = spec_of(folder), listed(folder)[4]
    shutil.copyfile(listed(folder)[3], tmp_path / "good")
    torn.write_bytes(bytes((tmp_path / "good").stat().st_size))
    stop(spec, tmp_path / "a1", FILES - 1)
    restore(torn, tmp_path / "good")
    whole = ingest(spec, tmp_path / "whole", allow=anywhere)
    again, seen = go_on(spec, tmp_path / "a2", "a1")
    assert seen[0] == 4, "behind the shard before it"
    assert all_of(again) == all_of(whole) and files_of(tmp_path / "a2") == files_of(tmp_path / "whole")


def test_a_file_that_is_written_while_it_is_read_is_read_again(tmp_path: Path, folder: Path) -> None:
    spec, target = spec_of(folder), listed(folder)[2]

    def write(path: Path) -> None:
        if path == target and (tmp_path / "a1").exists() is False:
            Image.new("RGB", (8, 8), "red").save(target)

    with pytest.raises(IngestStopped):
        ingest(spec, tmp_path / "a1", allow=write, should_stop=stopping_at(FILES - 1))
    _, seen = go_on(spec, tmp_path / "a2", "a1")
    assert seen[0] == 1, "its mark was taken before"


def test_images_that_look_alike_are_told_apart_by_their_names(tmp_path: Path) -> None:
    """Uncompressed, all of one size, unpacked with one time of writing."""

    def draw(number: int) -> Path:
        path = tmp_path / "alike" / "a" / f"{number:02d}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
        os.utime(path, (1e9, 1e9))
        return path

    files = [draw(number) for number in range(FILES)]
    spec = spec_of(tmp_path / "alike")
    stop(spec, tmp_path / "a1", FILES - 1)
    files[1].unlink()
    draw(FILES)
    whole = ingest(spec, tmp_path / "whole", allow=anywhere)
    again = ingest(spec, tmp_path / "a2", earlier=["a1"], allow=anywhere)
    assert all_of(again) == all_of(whole) and files_of(tmp_path / "a2") == files_of(tmp_path / "whole")


def test_unreadable_files_of_an_earlier_attempt_are_told(tmp_path: Path, folder: Path) -> None:
    spec = spec_of(folder, on_unreadable="fail")
    stop(spec, tmp_path / "a1", TWO_SHARDS)
    for file in listed(folder)[TWO_SHARDS:]:
        Image.new("RGB", (8, 8)).save(file)
    with pytest.raises(ImagesUnreadable) as failed:
        ingest(spec, tmp_path / "a2", earlier=["a1"], allow=anywhere)
    assert [name for name, _ in failed.value.problems] == ["a/00.png", "a/08.png", "a/10.png"]


SOURCES: dict[str, Callable[[Path], dict[str, Any]]] = {}


def source(write: Callable[[Path], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
    SOURCES[write.__name__] = write
    return write


@source
def manifest(folder: Path) -> dict[str, Any]:
    table = folder.parent / "table.csv"
    table.write_text("path,label\n" + "".join(f"{path.relative_to(folder)},x\n" for path in listed(folder)))
    return {"kind": "manifest", "path": str(table), "root": str(folder)}


@source
def npz(folder: Path) -> dict[str, Any]:
    images = np.random.default_rng(3).integers(0, 256, (FILES, 8, 8, 3), np.uint8)
    np.savez(folder / "images.npz", train_images=images, train_labels=np.arange(FILES))
    return {"kind": "npz", "path": str(folder / "images.npz")}


@source
def tissue(folder: Path) -> dict[str, Any]:
    return {"kind": "synthetic", "synthetic": {"patches": FILES, "slides": 3}}


@pytest.mark.parametrize("write", SOURCES.values(), ids=SOURCES)
def test_every_source_is_gone_on_from(tmp_path: Path, folder: Path, write: Callable[[Path], dict[str, Any]]) -> None:
    spec = spec_of(folder, sources=[write(folder), {"kind": "synthetic", "synthetic": {"patches": 3, "slides": 3}}])
    whole = ingest(spec, tmp_path / "whole", allow=anywhere)
    stop(spec, tmp_path / "a1", FILES)
    again, seen = go_on(spec, tmp_path / "a2", "a1")
    assert seen[0] >= FILES - SHARD and seen[-1] == FILES + 3
    assert all_of(again) == all_of(whole) and files_of(tmp_path / "a2") == files_of(tmp_path / "whole")


def test_an_archive_that_was_written_anew_is_read_anew(tmp_path: Path, folder: Path) -> None:
    spec = spec_of(folder, sources=[npz(folder)])
    stop(spec, tmp_path / "a1", FILES - 1)
    images, labels = np.zeros((FILES, 8, 8, 3), np.uint8), np.arange(FILES)
    np.savez(folder / "images.npz", train_images=images, train_labels=labels)
    again = ingest(spec, tmp_path / "a2", earlier=["a1"], allow=anywhere)
    assert again.report["duplicates"]["count"] == FILES - 1
    assert not PackedImages.open(tmp_path / "a2").take(np.arange(FILES)).any()


def test_who_begins_anew_is_told(tmp_path: Path, folder: Path) -> None:
    stop(spec_of(folder), tmp_path / "a1", FILES - 1)
    taken: list[int] = []
    ingest(spec_of(folder, image_size=16), tmp_path / "a2", earlier=["a1"], allow=anywhere, on_taken_over=taken.append)
    assert taken == [0]
