"""Features h of many images, straight into an array or a memory-mapped `.npy`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from winnow.simclr.model import Images
from winnow.simclr.train import TrainingStopped
from winnow.simclr.views import normalise


def embed(
    encoder: nn.Module,
    images: Images,
    indices: NDArray[np.int64],
    *,
    device: str = "cpu",
    batch_size: int = 256,
    out: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> NDArray[np.float32]:
    """h of each image, without augmentation.

    Args:
        encoder: (n, 3, H, W) → (n, d), in evaluation mode, on `device`. indices: (n,) sample indices.
        out: where to put the `.npy`; the array returned is then its memory map.

    Returns:
        (n, d) float32, in the order of `indices`.

    Raises:
        TrainingStopped: `should_stop` said so.
    """
    encoder.eval()
    result: NDArray[np.float32] | None = None
    for first in range(0, max(len(indices), 1), batch_size):
        if should_stop is not None and should_stop():
            raise TrainingStopped(out or Path())
        h = _features(encoder, images, indices[first : first + batch_size], device)
        if result is None:
            result = _make((len(indices), h.shape[1]), out)
        result[first : first + len(h)] = h
        if on_progress is not None:
            on_progress(first + len(h), len(indices))
    assert result is not None
    return result


@torch.inference_mode()
def _features(encoder: nn.Module, images: Images, indices: NDArray[np.int64], device: str) -> NDArray[np.float32]:
    if len(indices) == 0:  # the width of h is still wanted
        size = images.image_size
        blank = torch.zeros(1, 3, size, size, device=device)
        return encoder(blank)[:0].float().cpu().numpy()
    x = normalise(torch.from_numpy(images.take(indices)).to(device))
    return encoder(x.contiguous(memory_format=torch.channels_last)).float().cpu().numpy()


def _make(shape: tuple[int, int], out: Path | None) -> NDArray[np.float32]:
    if out is None:
        return np.empty(shape, np.float32)
    return np.lib.format.open_memmap(out, mode="w+", dtype=np.float32, shape=shape)
