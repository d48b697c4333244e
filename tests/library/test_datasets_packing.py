"""Packed shards: what goes in comes out, in any order; what is half-written or damaged is never read."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from library import packs
from numpy.typing import NDArray

from winnow.artefacts import Stored
from winnow.datasets import PackedImages
from winnow.datasets.packing import PackWriter
from winnow.errors import ArtefactCorrupt, InvalidInput

SIZE = 8


def patches(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def pack(directory: Path, images: NDArray[np.uint8], shard_size: int = 4) -> Path:
    return packs.pack(directory, images, image_size=SIZE, shard_size=shard_size)


@pytest.fixture(scope="module")
def eleven(tmp_path_factory: pytest.TempPathFactory) -> PackedImages:
    return PackedImages.open(pack(tmp_path_factory.mktemp("eleven"), patches(11)))


WANTED = st.lists(st.integers(0, 10), max_size=30)


@given(WANTED | WANTED.map(sorted))
def test_take_gives_the_patches_in_the_order_asked(eleven: PackedImages, wanted: list[int]) -> None:
    indices = np.array(wanted, np.int64)
    taken = eleven.take(indices)
    assert np.array_equal(taken, patches(11)[indices])
    assert taken.flags.c_contiguous
    assert taken.dtype == np.uint8
    given = np.empty_like(taken)
    assert eleven.take(indices, given) is given and np.array_equal(given, taken)


def test_room_of_another_shape_is_refused(eleven: PackedImages) -> None:
    for shape, kind in ((3, SIZE, SIZE, 3), np.uint8), ((2, SIZE, SIZE, 3), np.int64):
        with pytest.raises(ValueError, match="out must be uint8"):
            eleven.take(np.array([0, 1]), np.empty(shape, kind))


def test_length_and_size(eleven: PackedImages) -> None:
    assert (len(eleven), eleven.image_size) == (11, SIZE)


def test_what_is_taken_is_a_copy(eleven: PackedImages) -> None:
    eleven.take(np.array([3]))[:] = 0
    assert np.array_equal(eleven.take(np.array([3]))[0], patches(11)[3])


@pytest.mark.parametrize("indices", [[11], [-1], [[0]], [0.5]])
def test_indices_that_do_not_exist_are_refused(eleven: PackedImages, indices: list[object]) -> None:
    with pytest.raises(IndexError):
        eleven.take(np.array(indices))


@pytest.mark.parametrize("count", [1, 4, 5, 8])
def test_shards_are_plain_arrays_with_their_digests(tmp_path: Path, count: int) -> None:
    pack(tmp_path, patches(count))
    manifest = json.loads((tmp_path / "packed.json").read_text())
    assert (manifest["version"], manifest["count"], manifest["image_size"]) == (1, count, SIZE)
    shards = [np.load(tmp_path / shard["name"]) for shard in manifest["shards"]]
    assert [len(shard) for shard in shards] == [4] * (count // 4) + [count % 4] * (count % 4 > 0)
    assert np.array_equal(np.concatenate(shards), patches(count))
    for shard in manifest["shards"]:
        content = (tmp_path / shard["name"]).read_bytes()
        assert (shard["size"], shard["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    PackedImages.open(tmp_path).verify()


def test_a_failed_write_leaves_full_shards_and_no_pack(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="No space"),
        packs.writer(tmp_path, image_size=SIZE, shard_size=2) as writer,
    ):
        for image in patches(5):
            writer.append(image)
        raise OSError(28, "No space left on device")
    assert {path.name for path in tmp_path.iterdir()} == {"images-00000.npy", "images-00001.npy"}
    for path in tmp_path.iterdir():
        assert len(np.load(path)) == 2


def test_nothing_has_its_final_name_before_it_is_whole(tmp_path: Path) -> None:
    with packs.writer(tmp_path, image_size=SIZE, shard_size=4) as writer:
        for image in patches(3):
            writer.append(image)
        assert not list(tmp_path.iterdir())
        with pytest.raises(InvalidInput, match="nothing was packed"):
            PackedImages.open(tmp_path)
        writer.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images-00000.npy", "packed.json"]


def test_a_shard_that_cannot_be_stored_ends_the_writing_soon(tmp_path: Path) -> None:
    def put(name: str, source: Path | bytes) -> Stored:
        tried.append(name)
        raise OSError(28, "No space left on device")

    tried: list[str] = []
    with (
        pytest.raises(OSError, match="No space"),
        PackWriter(tmp_path, put, image_size=SIZE, shard_size=2) as writer,
    ):
        for image in patches(100):
            writer.append(image)
    assert writer.count == 6 and tried[0] == "images-00000.npy", "two shards wait while a third one is written"
    assert not list(tmp_path.iterdir())


def test_packing_again_replaces_the_pack(tmp_path: Path) -> None:
    pack(tmp_path, patches(9))
    pack(tmp_path, patches(6))
    assert np.array_equal(PackedImages.open(tmp_path).take(np.arange(6)), patches(6))


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (SIZE, SIZE + 1, 3), (SIZE, SIZE, 4)])
def test_a_patch_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with packs.writer(tmp_path, image_size=SIZE, shard_size=4) as writer, pytest.raises(ValueError, match="uint8"):
        writer.append(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("damage", ["truncate", "grow", "remove", "reshape", "manifest", "count", "escape"])
def test_damage_is_found_on_opening(tmp_path: Path, damage: str) -> None:
    pack(tmp_path, patches(6))
    shard, table = tmp_path / "images-00001.npy", tmp_path / "packed.json"
    match damage:
        case "truncate":
            shard.write_bytes(shard.read_bytes()[:-1])
        case "grow":
            shard.write_bytes(shard.read_bytes() + b"x")
        case "remove":
            shard.unlink()
        case "reshape":
            np.save(shard, np.zeros((2, SIZE, SIZE), np.uint8))
        case "manifest":
            table.write_text("{")
        case "count":
            table.write_text(table.read_text().replace('"count": 6', '"count": 7'))
        case _:
            table.write_text(table.read_text().replace("images-00001.npy", "../images-00001.npy"))
    with pytest.raises(ArtefactCorrupt):
        PackedImages.open(tmp_path)


def test_a_flipped_bit_is_found_by_verify(tmp_path: Path) -> None:
    pack(tmp_path, patches(6))
    shard = tmp_path / "images-00000.npy"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ArtefactCorrupt, match="sha256"):
        PackedImages.open(tmp_path).verify()


def test_a_machine_verifies_a_pack_once(tmp_path: Path) -> None:
    out, records = tmp_path / "out", tmp_path / "records"
    pack(out, patches(6))
    images = PackedImages.open(out)
    assert not images.verify_once(records, should_stop=lambda: True), "stopped, and nothing is recorded"
    assert [images.verify_once(records) for _ in range(3)] == [True, False, False]
    assert images.verify_once(tmp_path / "another machine's")
    shard = out / "images-00000.npy"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(0, 1))  # written anew, whatever the clock's steps
    for _ in range(2):
        with pytest.raises(ArtefactCorrupt, match="sha256"):
            PackedImages.open(out).verify_once(records)
    pack(out, patches(8))
    assert PackedImages.open(out).verify_once(records)


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    pack(tmp_path, patches(2))
    table = tmp_path / "packed.json"
    table.write_text(table.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(InvalidInput, match="version 2"):
        PackedImages.open(tmp_path)
