"""Processes that read strangers' files or compute: what they are held to, what they are not given, how they ended."""

import ctypes
import os
import resource
import signal
import sys

from winnow.settings import SECRETS

PR_SET_PDEATHSIG = 1


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


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when the one that started it dies, so that no orphan goes on."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(3)


def describe_end(code: int) -> str:
    """How a process ended, by its exit code, as subprocess has it."""
    if code == -signal.SIGKILL:
        return "SIGKILL; if nobody did that, the machine ran out of memory"
    if code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
