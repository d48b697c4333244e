"""Copies of shards on this machine's disk: whole or not there, bounded, shared."""

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from library import packs

from winnow.datasets import PackedImages, ShardCache
from winnow.errors import ArtefactCorrupt

SIZE, SHARD = 6, 4
ELSEWHERE = Path("/dev/shm")  # a file system of its own wherever there is one
Make = Callable[..., ShardCache]
BYTES = 128 + SHARD * SIZE * SIZE * 3


def patches(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def pack(directory: Path, count: int, seed: int = 0) -> Path:
    return packs.pack(directory, patches(count, seed), image_size=SIZE, shard_size=SHARD)


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system than the cache."""
    if not ELSEWHERE.is_dir() or ELSEWHERE.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two file systems")
    directory = Path(tempfile.mkdtemp(dir=ELSEWHERE))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Caches of one directory, as processes of one machine have them."""
    made: list[ShardCache] = []

    def make(capacity: int = 1 << 20, note: Callable[[str], None] = print, spare_share: float = 0.0) -> ShardCache:
        made.append(ShardCache(tmp_path / "cache", capacity, spare_share=spare_share, note=note))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


def copies(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.npy"))


def everything(images: PackedImages) -> np.ndarray:
    return images.take(np.arange(len(images)))


def test_shards_of_another_file_system_are_copied_once(far: Path, tmp_path: Path, make: Make) -> None:
    packed, notes = pack(far / "a", 10), list[str]()
    cache = make(note=notes.append)
    assert np.array_equal(everything(cache.open(packed)), patches(10))
    made = [(path.name, path.stat().st_ino) for path in copies(cache.directory)]
    assert len(made) == 3
    for shard in packed.glob("*.npy"):
        shard.write_bytes(b"gone bad")  # a second look at the bytes would find it
    assert np.array_equal(everything(make().open(packed)), patches(10))
    assert [(path.name, path.stat().st_ino) for path in copies(cache.directory)] == made
    assert notes == []


def test_shards_beside_the_cache_are_read_where_they_lie_and_verified_once(tmp_path: Path, make: Make) -> None:
    packed, cache = pack(tmp_path / "a", 6), make()
    assert np.array_equal(everything(cache.open(packed)), patches(6))
    assert copies(cache.directory) == [] and len(list((cache.directory / "verified").iterdir())) == 1
    shard = packed / "images-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtefactCorrupt, match="sha256"):
        cache.open(packed)


def test_equal_shards_of_two_datasets_are_kept_once(far: Path, tmp_path: Path, make: Make) -> None:
    cache = make()
    cache.open(pack(far / "a", 4))
    cache.open(pack(far / "b", 8))
    assert len(copies(cache.directory)) == 2


def test_those_unused_for_longest_go_first_and_those_in_use_stay(far: Path, tmp_path: Path, make: Make) -> None:
    a, b, c = (pack(far / name, SHARD, seed) for seed, name in enumerate("abc"))
    caches = [make(2 * BYTES) for _ in range(3)]
    caches[0].open(a)
    caches[1].open(b)
    (of_a,) = [path for path in copies(tmp_path / "cache") if np.array_equal(np.load(path), patches(SHARD, 0))]
    os.utime(of_a, (1, 1))  # the longest unused by its time, yet open
    assert np.array_equal(everything(caches[2].open(c)), patches(SHARD, 2))
    assert of_a in copies(tmp_path / "cache"), "nobody takes away what is in use"
    caches[2].close()
    caches[0].close()
    caches[2].open(b)
    os.utime(of_a, (1, 1))
    caches[1].close()
    assert np.array_equal(everything(caches[1].open(c)), patches(SHARD, 2))
    assert of_a not in copies(tmp_path / "cache")
    assert sum(path.stat().st_size for path in copies(tmp_path / "cache")) <= 2 * BYTES


def test_what_does_not_fit_is_read_where_it_lies_and_the_reason_is_told(far: Path, tmp_path: Path, make: Make) -> None:
    packed, notes = pack(far / "a", 10), list[str]()
    images = make(BYTES, note=notes.append).open(packed)
    assert np.array_equal(everything(images), patches(10))
    assert len(copies(tmp_path / "cache")) == 1
    assert len(notes) == 2 and "images-00001.npy" in notes[0] and str(BYTES) in notes[0]


def test_a_disk_that_is_wanted_for_other_things_is_left_to_them(far: Path, tmp_path: Path, make: Make) -> None:
    packed, notes = pack(far / "a", SHARD), list[str]()
    assert np.array_equal(everything(make(note=notes.append, spare_share=1.0).open(packed)), patches(SHARD))
    assert copies(tmp_path / "cache") == []
    assert len(notes) == 1 and "100% of the disk" in notes[0]


def test_bytes_that_went_bad_are_found_on_the_way_and_not_kept(far: Path, tmp_path: Path, make: Make) -> None:
    packed = pack(far / "a", 6)
    shard = packed / "images-00001.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtefactCorrupt, match="images-00001"):
        make().open(packed)
    assert len(copies(tmp_path / "cache")) == 1 and not list((tmp_path / "cache").glob(".*"))


def test_a_stop_leaves_nothing_half_copied(far: Path, tmp_path: Path, make: Make) -> None:
    images = make().open(pack(far / "a", 6), should_stop=lambda: True)
    assert np.array_equal(everything(images), patches(6))
    assert copies(tmp_path / "cache") == [] and not list((tmp_path / "cache").glob("*/*"))


def test_what_a_dead_process_left_is_removed(far: Path, tmp_path: Path, make: Make) -> None:
    left = tmp_path / "cache" / ".0123.npy.part"
    left.parent.mkdir()
    left.write_bytes(b"half")
    make().open(pack(far / "a", 4))
    assert not left.exists()


def read(packed: Path, directory: Path) -> bool:
    cache = ShardCache(directory, 1 << 20, spare_share=0.0)
    images = cache.open(packed)
    cache.close()
    return np.array_equal(everything(images), patches(40)) and images.directory == packed


def test_processes_share_it(far: Path, tmp_path: Path) -> None:
    packed = pack(far / "a", 40)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert all(pool.starmap(read, [(packed, tmp_path / "cache")] * 8))
    assert len(copies(tmp_path / "cache")) == 10
