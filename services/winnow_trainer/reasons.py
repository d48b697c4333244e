"""Why work ended, in words that a person can act on. Knows no torch: the supervisor explains with it, too."""

import errno
import shutil
from pathlib import Path
from typing import Literal

from winnow.errors import InvalidInput, PathForbidden, TrainingFailed, WinnowError, is_out_of_memory

FULL = (errno.ENOSPC, errno.EDQUOT)
SICK = (
    "cuda driver initialization failed",
    "cuda driver version is insufficient",
    "cuda error: system not yet initialized",
    "cuda error: unknown error",
    "cuda unknown error",
    "device(s) is/are busy or unavailable",
    "no cuda gpus are available",
    "no cuda-capable device",
    "no kernel image is available",
    "nvidia driver",
    "uncorrectable ecc error",
    "unspecified launch failure",
)
"""What CUDA and torch say of a GPU that computes no more, or never did. An illegal access is the code's own fault."""


def explain(error: BaseException, scratch: Path) -> tuple[Literal["failed", "rejected", "sick", "full"], str]:
    """(cause, text) of whatever ended the work. `scratch` is where a failed write without a name was going.

    sick: the device, and neither the code nor the data. full: there is no room to write.
    """
    if isinstance(error, InvalidInput | PathForbidden | TrainingFailed):
        return "rejected", str(error)
    if isinstance(error, WinnowError):
        return "failed", str(error)
    if _is_full(error):
        where = Path(str(getattr(error, "filename", None) or scratch))
        return "full", f"no space left while writing {where} ({_free(where):.1f} GB free there); make room there"
    if is_out_of_memory(error):
        advice = "lower simclr.batch_size, use a smaller image_size, or give the trainer more memory"
        return "failed", f"out of memory ({_first_line(error)}); {advice}"
    if any(words in str(error).lower() for words in SICK):
        return "sick", f"the GPU does not compute ({_first_line(error)}); see nvidia-smi and the kernel's log"
    return "failed", f"{type(error).__name__}: {error}"


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"(os error {number})" in str(error) for number in FULL)  # safetensors' own type of exception


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _free(where: Path) -> float:
    """Gigabytes free on the file system that holds `where`, which need not exist."""
    there = next(path for path in (where.absolute(), *where.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free / 1e9
