"""Patches in memory: the second implementation of what training reads from."""

import numpy as np
from numpy.typing import NDArray


class ArrayImages:
    """(n, H, W, 3) uint8 patches held in an array."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self.array = array

    @property
    def image_size(self) -> int:
        return self.array.shape[1]

    def take(self, indices: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        return np.take(self.array, indices, axis=0, out=out)


def tissue(count: int, size: int = 32, *, balance: dict[str, float] | None = None) -> tuple[ArrayImages, list[str]]:
    """Synthetic patches with their labels."""
    from winnow.datasets import synthetic
    from winnow.domain import SyntheticTissue

    spec = SyntheticTissue(patches=count, slides=4, balance=balance or {})
    labels, _ = synthetic.layout(spec)
    return ArrayImages(np.stack([synthetic.draw(spec, i, size) for i in range(count)])), [
        str(label) for label in labels
    ]
