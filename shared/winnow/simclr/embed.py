"""Features h of many images, straight into an array or a memory-mapped `.npy`."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from winnow.errors import is_out_of_memory
from winnow.simclr.determinism import deterministic
from winnow.simclr.model import Images
from winnow.simclr.rig import Rig
from winnow.simclr.train import TrainingStopped
from winnow.simclr.views import normalise

T = TypeVar("T")
PIXELS = 1024 * 224**2
"""Pixels a pass that keep a large GPU busy."""
SMALLEST_PASS = 16


def embed(
    encoder: nn.Module,
    images: Images,
    indices: NDArray[np.int64],
    *,
    rig: Rig | None = None,
    batch_size: int | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    out: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> NDArray[np.float32]:
    """h of each image, without augmentation.

    Args:
        encoder: (n, 3, H, W) → (n, d), in evaluation mode, on the rig's device. indices: (n,) sample indices.
        rig: the device, and the patches that lie there already; by default the CPU.
        batch_size: images a pass; by default what suits the device. Where memory runs out, half as many from there on.
        precision: bf16 computes in autocast; h is float32 either way.
        out: where to put the `.npy`; the array returned is then its memory map.

    Returns:
        (n, d) float32, in the order of `indices`.

    Raises:
        TrainingStopped: `should_stop` said so.
    """
    rig = rig or Rig()
    encoder.eval()
    size = batch_size or _pass_size(rig.device, images.image_size)
    done = 0
    with deterministic(rig.device, precision):
        result = _make((len(indices), _width(encoder, images, rig.device)), out)
        while done < len(indices):
            try:
                for h in _passes(encoder, images, indices[done:], rig, size, precision):
                    if should_stop is not None and should_stop():
                        raise TrainingStopped(out or Path())
                    result[done : done + len(h)] = h
                    done += len(h)
                    if on_progress is not None:
                        on_progress(done, len(indices))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or size <= SMALLEST_PASS:
                    raise
                size = max(size // 2, SMALLEST_PASS)
                rig.note(f"out of memory: features are made of {size} images at a time")
            else:
                break
            torch.cuda.empty_cache()  # out here the error no longer holds what was made
    return result


def _pass_size(device: str, image_size: int) -> int:
    if device == "cpu":
        return 256
    return min(1024, max(SMALLEST_PASS, PIXELS // image_size**2))


def _passes(
    encoder: nn.Module, images: Images, indices: NDArray[np.int64], rig: Rig, size: int, precision: str
) -> Iterator[NDArray[np.float32]]:
    """(size, d) features at a time, in order."""
    parts = [indices[first : first + size] for first in range(0, len(indices), size)]
    fed = rig.feed(images, indices, once=True).batches(parts)
    return one_behind(_sent(_features(encoder, x, precision)) for x, _ in fed)  # a GPU goes on meanwhile


@torch.inference_mode()
def _features(encoder: nn.Module, x: Tensor, precision: str) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return encoder(normalise(x).contiguous(memory_format=torch.channels_last)).float()


def _sent(h: Tensor) -> Callable[[], NDArray[np.float32]]:
    """Have h copied to the host; what waits for it and gives it."""
    if not h.is_cuda:
        return h.numpy
    arriving, copied = h.to("cpu", non_blocking=True), torch.cuda.Event()
    copied.record(torch.cuda.current_stream(h.device))

    def arrived() -> NDArray[np.float32]:
        copied.synchronize()
        return arriving.numpy()

    return arrived


def one_behind(started: Iterable[Callable[[], T]]) -> Iterator[T]:
    """What each of these gives, asked for when the next one has been started."""
    before: Callable[[], T] | None = None
    for one in started:
        if before is not None:
            yield before()
        before = one
    if before is not None:
        yield before()


def _width(encoder: nn.Module, images: Images, device: str) -> int:
    blank = torch.zeros(1, images.image_size, images.image_size, 3, dtype=torch.uint8, device=device)
    return _features(encoder, blank, "fp32").shape[1]


def _make(shape: tuple[int, int], out: Path | None) -> NDArray[np.float32]:
    if out is None:
        return np.empty(shape, np.float32)
    return np.lib.format.open_memmap(out, mode="w+", dtype=np.float32, shape=shape)
