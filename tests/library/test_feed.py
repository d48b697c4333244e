"""Minibatches arrive in order and whole, whichever way they take."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import wait_until
from library.arrays import ArrayImages
from numpy.typing import NDArray

from winnow.simclr.feed import Feed, HostFeed, ResidentFeed, StreamedFeed, resident_rows

IMAGES = ArrayImages(np.arange(40 * 8 * 8 * 3, dtype=np.uint32).astype(np.uint8).reshape(40, 8, 8, 3))
ORDER = [np.array([5, 3, 9]), np.array([0, 39]), np.array([7, 7, 1, 2])]


def resident() -> ResidentFeed:
    feed = ResidentFeed(IMAGES, 40, "cpu")
    assert feed.hold(np.unique(np.concatenate(ORDER)))
    return feed


@pytest.mark.parametrize("make", [lambda: HostFeed(IMAGES), lambda: StreamedFeed(IMAGES, "cpu"), resident])
def test_batches_are_the_patches_asked_for_in_order(make: Callable[[], Feed]) -> None:
    got = list(make().batches(ORDER))
    assert len(got) == len(ORDER)
    for (x, samples), batch in zip(got, ORDER, strict=True):
        assert torch.equal(x, torch.from_numpy(IMAGES.array[batch]))
        assert samples.tolist() == batch.tolist() and samples.dtype == torch.int64
    assert list(make().batches([])) == []


def test_a_streams_error_reaches_who_reads_it() -> None:
    feed = StreamedFeed(IMAGES, "cpu").batches([np.array([1]), np.array([99])])
    next(feed)
    with pytest.raises(IndexError):
        next(feed)


def test_a_stream_left_early_ends_its_thread() -> None:
    feed = StreamedFeed(IMAGES, "cpu").batches([np.array([i]) for i in range(40)])
    next(feed)
    feed.close()  # type: ignore[attr-defined]  # it is a generator
    wait_until(lambda: "feed" not in {t.name for t in threading.enumerate()}, 60, "the fetching thread to end")


def test_resident_patches_stay_and_new_ones_join_them() -> None:
    class Counted(ArrayImages):
        taken = 0

        def take(self, indices: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
            self.taken += len(indices)
            return super().take(indices, out)

    images = Counted(IMAGES.array)
    feed = ResidentFeed(images, 20, "cpu")
    assert feed.hold(np.arange(12)) and images.taken == 12
    assert feed.hold(np.arange(15)) and images.taken == 15, "only what is new is fetched"
    assert feed.hold(np.arange(20, 40)) and images.taken == 35, "others make room when they must"
    assert not feed.hold(np.arange(21)), "more than fits is refused"
    assert not feed.hold(np.arange(10), displace=False) and images.taken == 35, "what is read once displaces nothing"
    ((x, _),) = feed.batches([np.array([33, 21])])
    assert torch.equal(x, torch.from_numpy(IMAGES.array[[33, 21]]))


def test_patches_take_their_share_of_the_memory_and_no_more() -> None:
    assert resident_rows(IMAGES, 1000, 192 * 100, share=0.5) == 50
    assert resident_rows(IMAGES, 10, 192 * 100, share=0.5) == 10
