"""An ingest that is stopped anywhere and goes on gives what an undisturbed one gives, byte for byte."""

import os
from itertools import count
from pathlib import Path

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

from winnow import datasets
from winnow.artefacts import DirectoryStore
from winnow.datasets import IngestStopped, PackedImages, Shelf


@pytest.mark.parametrize("row", range(FILES))
def test_it_goes_on_behind_the_last_full_shard(tmp_path: Path, folder: Path, row: int) -> None:
    spec = spec_of(folder)
    whole = ingest(spec, tmp_path / "whole", allow=anywhere)
    stop(spec, tmp_path / "a1", row)
    readable = [n for n in range(FILES) if n not in TORN]
    full = len([n for n in readable if n < row]) // SHARD
    reached = readable[full * SHARD - 1] + 1 if full else 0
    spoil(listed(folder)[:reached])
    again, seen = go_on(spec, tmp_path / "a2", "a1")
    assert all_of(again) == all_of(whole)
    assert files_of(tmp_path / "a2") == files_of(tmp_path / "whole")
    first = [reached] if full else []
    assert seen == [*first, *range(reached + 1, FILES + 1)], "and it says at once where it is"
    assert full == 0 or not (tmp_path / "a1").exists()


def test_attempt_after_attempt_gets_further(tmp_path: Path, folder: Path) -> None:
    spec = spec_of(folder)
    whole = ingest(spec, tmp_path / "whole", allow=anywhere)
    for attempt in range(1, 20):
        seen: list[int] = []
        try:
            again = ingest(
                spec,
                tmp_path / f"a{attempt}",
                earlier=[f"a{n}" for n in range(1, attempt)],
                allow=anywhere,
                on_progress=lambda done, total, seen=seen: seen.append(done),
                should_stop=lambda seen=seen: len(seen) > SHARD + 2,
            )
        except IngestStopped:
            continue
        break
    else:
        pytest.fail("it never ended")
    assert attempt > 3, "one after the other"
    assert all_of(again) == all_of(whole)
    assert files_of(tmp_path / f"a{attempt}") == files_of(tmp_path / "whole")


def test_all_that_was_packed_is_decoded_once(tmp_path: Path, folder: Path) -> None:
    spec = spec_of(folder)
    whole = ingest(spec, tmp_path / "a1", allow=anywhere)  # and its trainer is lost before it could say so
    before = files_of(tmp_path / "a1")
    spoil(listed(folder))
    again = ingest(spec, tmp_path / "a2", earlier=["a1"], allow=anywhere)
    assert all_of(again) == all_of(whole), "fifteen patches are five full shards"
    assert files_of(tmp_path / "a2") == before


def test_shards_behind_a_gap_are_not_taken_for_its_own(tmp_path: Path, folder: Path) -> None:
    spec = spec_of(folder)
    stop(spec, tmp_path / "a1", FILES - 1)
    (tmp_path / "a1" / "parts" / "images-00001.npy.json").unlink()
    (tmp_path / "a1" / ".images-00002.npy.0a0b").write_bytes(b"half a shard")
    asked = count()
    with pytest.raises(IngestStopped, match="stopped after 4 of"):  # asked twice while it looks, and then for a row
        ingest(spec, tmp_path / "a2", earlier=["a1"], allow=anywhere, should_stop=lambda: next(asked) == 2)
    left = {str(path.relative_to(tmp_path / "a2")) for path in (tmp_path / "a2").rglob("*") if path.is_file()}
    assert left == {"images-00000.npy", "parts/images-00000.npy.json"}


def test_the_attempt_that_came_furthest_is_gone_on_from(tmp_path: Path, folder: Path) -> None:
    spec = spec_of(folder)
    stop(spec, tmp_path / "a1", FILES - 1)
    stop(spec, tmp_path / "a2", TWO_SHARDS)  # while a1 could not be seen
    _, seen = go_on(spec, tmp_path / "a3", "a1", "a2")
    assert seen[0] == FILES - 1 and not (tmp_path / "a1").exists() and (tmp_path / "a2").exists()


def test_what_lies_where_an_attempt_packs_is_of_another_history(tmp_path: Path, folder: Path) -> None:
    """A database that was restored from a backup counts attempts that the store has seen."""
    spec = spec_of(folder)
    whole = ingest(spec, tmp_path / "whole", allow=anywhere)
    for earlier in ("a1", "a2"):
        stop(spec, tmp_path / earlier, FILES - 1)
        for shard in (tmp_path / earlier).glob("images-*"):
            np.save(shard, np.zeros_like(np.load(shard)))
    fresh = ingest(spec, tmp_path / "a1", allow=anywhere)
    assert all_of(fresh) == all_of(whole) and files_of(tmp_path / "a1") == files_of(tmp_path / "whole")
    again = ingest(spec, tmp_path / "a2", earlier=["a1"], allow=anywhere)
    assert all_of(again) == all_of(whole) and files_of(tmp_path / "a2") == files_of(tmp_path / "whole")


def test_what_another_machine_cannot_go_on_from_is_left_to_who_can(tmp_path: Path, folder: Path) -> None:
    spec, times = spec_of(folder), {path: path.stat().st_mtime_ns for path in listed(folder)}
    stop(spec, tmp_path / "a1", FILES - 1)
    for path, at in times.items():
        os.utime(path, ns=(at, at // 10**9 * 10**9))  # a copy that keeps whole seconds
    with pytest.raises(IngestStopped):
        ingest(spec, tmp_path / "a2", earlier=["a1"], allow=anywhere, should_stop=stopping_at(TWO_SHARDS))
    for path, at in times.items():
        os.utime(path, ns=(at, at))
    _, seen = go_on(spec, tmp_path / "a3", "a1", "a2")
    assert seen[0] == FILES - 1


def test_of_two_that_came_as_far_the_newest_is_gone_on_from(tmp_path: Path, folder: Path) -> None:
    for name in ("a1", "a2"):
        stop(spec_of(folder), tmp_path / name, FILES - 1)
    go_on(spec_of(folder), tmp_path / "a3", "a1", "a2")
    assert (tmp_path / "a1").exists() and not (tmp_path / "a2").exists()


def test_whoever_waits_for_a_stop_does_not_wait_for_marks(tmp_path: Path, folder: Path) -> None:
    stop(spec_of(folder), tmp_path / "a1", FILES - 1)
    with pytest.raises(IngestStopped, match="how far"):
        ingest(spec_of(folder), tmp_path / "a2", earlier=["a1"], allow=anywhere, should_stop=lambda: True)
    taken: list[int] = []
    names = ["a1", "a2"]
    ingest(spec_of(folder), tmp_path / "a3", earlier=names, allow=anywhere, on_taken_over=taken.append)
    assert taken == [5 * SHARD], "and nothing is lost by that"


class Losing(DirectoryStore):
    """A store of which somebody deletes a shard right before it is taken over: one who saw the dataset as failed."""

    def move(self, prefix: str, target: str) -> None:
        self.delete(f"{prefix}/images-00002.npy")
        super().move(prefix, target)


def test_what_goes_while_it_is_taken_over_is_decoded_again(tmp_path: Path, folder: Path) -> None:
    spec = spec_of(folder)
    whole = ingest(spec, tmp_path / "whole", allow=anywhere)
    stop(spec, tmp_path / "a1", FILES - 1)
    shelf = Shelf(Losing(tmp_path), "a2", ["a1"])
    again = datasets.ingest(spec, shelf, tmp_path / "scratch", allow=anywhere)
    assert all_of(again) == all_of(whole) and files_of(tmp_path / "a2") == files_of(tmp_path / "whole")


class Late(DirectoryStore):
    """A store of which a frozen attempt wakes up and takes over what this one is about to."""

    def move(self, prefix: str, target: str) -> None:
        super().move(prefix, "woken")
        super().move(prefix, target)


def test_what_is_gone_when_it_is_to_be_taken_over_is_decoded_again(tmp_path: Path, folder: Path) -> None:
    spec = spec_of(folder)
    whole = ingest(spec, tmp_path / "whole", allow=anywhere)
    stop(spec, tmp_path / "a1", FILES - 1)
    again = datasets.ingest(spec, Shelf(Late(tmp_path), "a2", ["a1"]), tmp_path / "scratch", allow=anywhere)
    assert all_of(again) == all_of(whole) and files_of(tmp_path / "a2") == files_of(tmp_path / "whole")


def test_parts_are_beside_what_is_read(tmp_path: Path, folder: Path) -> None:
    done = ingest(spec_of(folder), tmp_path / "a1", allow=anywhere)
    images = PackedImages.open(tmp_path / "a1")
    assert images.verify() and len(images) == len(done.packed)
