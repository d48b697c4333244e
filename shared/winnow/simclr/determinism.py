"""The same numbers twice on a GPU. On one CPU machine they are the same without help.

What Winnow trains with has a deterministic CUDA kernel: convolutions (cuDNN's own choice of algorithms), linear layers
and z·zᵀ (cuBLAS, with a fixed workspace), BatchNorm, ReLU, max pooling, average pooling to 1x1 (a mean), cross-entropy
of (n, c) logits, Adam. The kernels without one that views use, grid_sample and reflection padding, lack it backwards
only, and views carry no gradient. An operation added later that has none raises RuntimeError and names itself.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.backends import cudnn

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def configure() -> None:
    """Fix cuBLAS's workspace, unless somebody has. torch reads the environment once, at its first product on a GPU, of
    whatever precision: every Rig on a GPU does this when it is made.
    """
    os.environ.setdefault(WORKSPACE, ":4096:8")


@contextmanager
def deterministic(device: str, precision: str) -> Iterator[None]:
    """Within, training and embedding in fp32 on a GPU repeat bit for bit on the same card and the same versions.

    bf16 is chosen for speed, and is left to what torch does by itself. A CPU needs nothing.
    """
    if torch.device(device).type != "cuda" or precision != "fp32":
        yield
        return
    memory: Any = torch.utils.deterministic
    mode, fill = torch.get_deterministic_debug_mode(), memory.fill_uninitialized_memory
    kernels = cudnn.deterministic, cudnn.benchmark
    try:
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic, cudnn.benchmark = True, False
        memory.fill_uninitialized_memory = False  # nothing here reads memory that it did not write
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        cudnn.deterministic, cudnn.benchmark = kernels
        memory.fill_uninitialized_memory = fill
