"""What the C library does with memory that a training step frees.

By default it gives each large block back to the kernel at once, and gets it anew, zeroed page by page, in the next
step: on a processor that is a tenth of the time. A training process keeps it instead, in large pages, and gives it
back when it waits for work. Other C libraries than glibc pay no attention.
"""

import ctypes
import os

TUNABLES = {
    "glibc.malloc.mmap_max": 0,
    "glibc.malloc.trim_threshold": 1 << 40,
    "glibc.malloc.top_pad": 64 << 20,
    "glibc.malloc.hugetlb": 1,
}


def environment() -> dict[str, str]:
    """Variables for a training process; what somebody has set already goes before."""
    ours = [f"{name}={value}" for name, value in TUNABLES.items()]
    theirs = os.environ.get("GLIBC_TUNABLES", "")
    return {"GLIBC_TUNABLES": ":".join([*ours, *([theirs] if theirs else [])])}


def give_back() -> None:
    """Return what is free to the kernel."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
