"""A training process keeps what a step frees, and what people set themselves stands."""

import os
import subprocess
import sys

import pytest

from winnow_trainer import memory

FAULTS = """
import resource
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    block = bytearray(48 << 20)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
from winnow_trainer.memory import give_back
give_back()
"""


def faults(environment: dict[str, str]) -> int:
    """Page faults of taking and freeing one large block fifty times."""
    made = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    return int(made.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_is_freed_is_taken_again_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert faults(os.environ | memory.environment()) * 10 < faults(dict(os.environ))


def test_what_somebody_has_set_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_max=7")
    assert memory.environment()["GLIBC_TUNABLES"].endswith(":glibc.malloc.mmap_max=7"), "the last one counts"
