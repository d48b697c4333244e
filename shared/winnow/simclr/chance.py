"""Counter-based random numbers: a hash of what a number is for, so there is no generator state to save.

A number depends on (seed, sample, epoch, view, which) alone: not on the batch it is drawn in, the device, or the
number of workers. The hash is SplitMix64's finaliser (Steele et al. 2014) in wrapping int64 arithmetic.
"""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_WORD = 1 << 64
_UNGOLDEN = pow(_GOLDEN, -1, _WORD)  # its inverse


def key_of(seed: int, epoch: int, view: int) -> int:
    """What the numbers of one view of one epoch are drawn from, as a signed 64-bit integer."""
    return _signed(_mix_number(_mix_number(seed) + epoch * 2 + view))


def uniforms(samples: Tensor, count: int, key: Tensor) -> Tensor:
    """(n, count) float32 numbers, uniform in [0, 1), for n samples (int64, (n,)).

    `key` (int64, no dimensions, on the device of `samples`) is one of `key_of`: as a tensor, a new one has nothing
    compiled anew.
    """
    which = torch.arange(1, count + 1, device=samples.device, dtype=torch.int64)  # (count,)
    of_sample = _mix(samples * _signed(_GOLDEN) + key)  # (n,)
    # of_sample + which * golden; torch.compile takes `which * golden` for an index of 32 bits on a GPU, and gives up.
    words = _mix((of_sample[:, None] * _signed(_UNGOLDEN) + which) * _signed(_GOLDEN))  # (n, count)
    return _shift(words, 40).to(torch.float32) / (1 << 24)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift(x, 27)) * _signed(_MIX_2)
    return x ^ _shift(x, 31)


def _mix_number(x: int) -> int:
    x = (x + _GOLDEN) % _WORD
    x = ((x ^ (x >> 30)) * _MIX_1) % _WORD
    x = ((x ^ (x >> 27)) * _MIX_2) % _WORD
    return x ^ (x >> 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - _WORD if x >= _WORD // 2 else x
