"""How minibatches reach the device: resident on it where they fit, else fetched ahead of the network.

The order of a round's minibatches is known before it begins, so nothing is ever waited for that could have been
asked for earlier, and no Python code runs for single images.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from winnow.simclr.model import Images

Batch = tuple[Tensor, Tensor]
"""Patches uint8 (n, H, W, 3) and their sample indices int64 (n,), both on the device."""
Fetched = tuple[Batch, "torch.cuda.Event | None"]
AHEAD = 3
"""Minibatches fetched before they are needed."""
RESIDENT_SHARE = 0.6
"""Of the device's free memory, what patches may take; the rest is the network's."""
_UPLOAD = 256


Ready = queue.Queue[Fetched | BaseException | None]


class Feed(Protocol):
    """Where minibatches come from."""

    def batches(self, order: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        """The minibatches in this order, each an array of sample indices."""
        ...


class HostFeed:
    """Patches read from the host when they are asked for: the device is the host's own processor."""

    def __init__(self, images: Images) -> None:
        self._images = images

    def batches(self, order: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        return ((torch.from_numpy(self._images.take(batch)), torch.from_numpy(batch)) for batch in order)


class ResidentFeed:
    """Patches that lie on the device. They stay there from round to round; a new round adds what it needs."""

    def __init__(self, images: Images, rows: int, device: str) -> None:
        self._images = images
        self._device = device
        self._held = 0
        size = images.image_size
        self._pixels = torch.empty(rows, size, size, 3, dtype=torch.uint8, device=device)
        self._words = _words(self._pixels)
        self._place = np.full(0, -1, np.int64)  # by sample: its row on the device, -1 for none

    @property
    def rows(self) -> int:
        """How many patches fit."""
        return len(self._pixels)

    def hold(self, indices: NDArray[np.int64], *, displace: bool = True) -> bool:
        """Bring these samples to the device, if they fit: beside those that lie there already, or in their place."""
        if len(indices) and indices.max() >= len(self._place):
            grown = np.full(int(indices.max()) + 1, -1, np.int64)
            grown[: len(self._place)] = self._place
            self._place = grown
        missing = np.unique(indices[self._place[indices] < 0])
        if self._held + len(missing) > self.rows:
            if not displace or len(np.unique(indices)) > self.rows:
                return False
            self._place[:], self._held, missing = -1, 0, np.unique(indices)
        for first in range(0, len(missing), _UPLOAD):
            part = missing[first : first + _UPLOAD]
            rows = slice(self._held, self._held + len(part))
            self._pixels[rows].copy_(_taken(self._images, part, self._device), non_blocking=True)
            self._place[part] = np.arange(rows.start, rows.stop)
            self._held += len(part)
        return True

    def batches(self, order: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        if not order:
            return
        samples = np.concatenate(order)
        both = to_device(torch.from_numpy(np.stack([samples, self._place[samples]])), self._device)  # once an epoch
        start = 0
        for batch in order:
            part = both[:, start : start + len(batch)]
            start += len(batch)
            # Not index_select, which counts a byte at a time, and all that lie there: more than 32 bits can.
            yield self._words[part[1]].view(torch.uint8).view(-1, *self._pixels.shape[1:]), part[0]


class StreamedFeed:
    """Patches fetched by a thread, through pinned memory and a stream of their own, while the device computes."""

    def __init__(self, images: Images, device: str) -> None:
        self._images = images
        self._device = device
        self._on_gpu = device.startswith("cuda")

    def batches(self, order: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        ready: Ready = queue.Queue(AHEAD)
        ended = threading.Event()
        thread = threading.Thread(target=self._fetch, args=(order, ready, ended), name="feed", daemon=True)
        thread.start()
        try:
            while (found := ready.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                batch, copied = found
                if copied is not None:
                    current = torch.cuda.current_stream(self._device)
                    current.wait_event(copied)
                    for part in batch:
                        part.record_stream(current)
                yield batch
        finally:
            ended.set()
            while thread.is_alive():  # a fetcher that waits for room must see the end
                _drain(ready)
                thread.join(0.05)

    def _fetch(self, order: Sequence[NDArray[np.int64]], ready: Ready, ended: threading.Event) -> None:
        try:
            if self._on_gpu:
                torch.cuda.set_device(self._device)  # of this thread: else it takes memory of the first GPU
            stream = _side_stream(self._device) if self._on_gpu else None
            for batch in order:
                if ended.is_set():
                    return
                ready.put(self._copy(batch, stream))
            ready.put(None)
        except BaseException as error:  # the training loop raises it
            ready.put(error)

    def _copy(self, batch: NDArray[np.int64], stream: "torch.cuda.Stream | None") -> Fetched:
        pixels, samples = _taken(self._images, batch, self._device), torch.from_numpy(np.ascontiguousarray(batch))
        if stream is None:
            return (pixels, samples), None
        with torch.cuda.stream(stream):
            pixels = pixels.to(self._device, non_blocking=True)
            samples = to_device(samples, self._device)
            copied = torch.cuda.Event()
            copied.record(stream)
        return (pixels, samples), copied


def to_device(tensor: Tensor, device: str) -> Tensor:
    """A tensor of the host on the device, which nobody waits for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else tensor.to(device)


def _taken(images: Images, indices: NDArray[np.int64], device: str) -> Tensor:
    """(n, H, W, 3) on the host; where a GPU fetches them, in memory that it can read while the host goes on."""
    shape = len(indices), images.image_size, images.image_size, 3
    pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=device.startswith("cuda"))
    images.take(indices, pixels.numpy())
    return pixels


@cache
def _side_stream(device: str) -> "torch.cuda.Stream":
    """For copies. One for good: torch keeps apart what was used on each, and would hold it for each that was."""
    return torch.cuda.Stream(device)


def _words(pixels: Tensor) -> Tensor:
    """(n, H, W, 3) uint8 as (n, bytes / 8) int64, the same memory; where that does not divide, (n, bytes) as it is."""
    rows = pixels.flatten(1)
    return rows if rows.shape[1] % 8 else rows.view(torch.int64)


def resident_rows(images: Images, count: int, free_bytes: int, *, share: float = RESIDENT_SHARE) -> int:
    """How many of `count` patches may lie on a device with this much free memory."""
    return min(count, int(free_bytes * share) // (images.image_size**2 * 3))


def _drain(ready: Ready) -> None:
    try:
        while True:
            ready.get_nowait()
    except queue.Empty:
        return
