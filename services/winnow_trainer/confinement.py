"""What a process that reads strangers' files is held to, and what it is not given."""

import os
import resource
import sys

from winnow.settings import SECRETS


def environment() -> dict[str, str]:
    """This process's variables without the secrets: a process that computes knows no database and no broker."""
    names = {f"WINNOW_{name.upper()}" for name in SECRETS}
    names |= {f"{name}_FILE" for name in names}
    return {name: value for name, value in os.environ.items() if name not in names}


def confine(memory: int) -> None:
    """Hold this process to `memory` bytes of address space (0: no limit), and let it leave no core behind.

    What goes beyond is a MemoryError where it is asked for, not a machine that looks for something to kill.
    """
    if sys.platform != "linux":  # other kernels count an address space that nobody uses
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
