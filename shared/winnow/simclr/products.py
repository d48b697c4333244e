"""Matrix products on a processor, by the library that makes use of all of it.

torch's products are MKL's, which takes instructions of 512 bits on processors by Intel alone. AMD's from Zen 5 on have
them whole: there MKL makes half as many products a second as oneDNN, by which torch convolves and which goes by what a
processor can do. Zen 4 takes each of them in two halves, so that MKL lacks nothing, and does less around a product.
"""

import re
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

ZEN_5 = 26
"""AMD's number of that family; Zen 3 and Zen 4 are 25."""


@cache
def by_onednn() -> bool:
    """Whether MKL leaves half of this processor unused."""
    is_wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return is_wide and torch.backends.mkl.is_available() and has_onednn() and is_zen_5(_cpuinfo())


def has_onednn() -> bool:
    """Whether torch lets oneDNN be asked for a product. What it is asked by has no public name; torch.compile's own
    code calls it.
    """
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def is_zen_5(cpuinfo: str) -> bool:
    """Whether that is of AMD's Zen 5 or a later one, in the words of Linux's /proc/cpuinfo."""
    family = re.search(r"^cpu family\s*: (\d+)$", cpuinfo, re.M)
    return "AuthenticAMD" in cpuinfo and family is not None and int(family[1]) >= ZEN_5


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""  # this kernel does not say: products stay where torch leaves them


def multiply(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """a (r, k), b (k, s) → (r, s), or each of a (p, r, k), b (p, k, s) → (p, r, s). Has no gradient."""
    if a.dtype != torch.float32 or not by_onednn():
        return (torch.mm if a.ndim == 2 else torch.bmm)(a, b, out=out)
    if a.ndim == 2:
        made = torch.ops.mkldnn._linear_pointwise(_dense(a), _dense(b).t(), None, "none", [], "")
        return made if out is None else out.copy_(made)
    into = a.new_empty(*a.shape[:2], b.shape[2]) if out is None else out
    for one, other, made in zip(a, b, into, strict=True):
        multiply(one, other, out=made)
    return into


def _dense(matrix: Tensor) -> Tensor:
    """In rows or columns without gaps: others take oneDNN a thousand times as long."""
    if matrix.is_contiguous() or matrix.t().is_contiguous():
        return matrix
    return matrix.t().contiguous().t() if matrix.stride(0) == 1 else matrix.contiguous()
