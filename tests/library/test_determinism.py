"""What makes a GPU repeat itself is set for fp32 alone, and put back."""

import os
from typing import Any

import pytest
import torch
from torch.backends import cudnn

from winnow.simclr import Rig
from winnow.simclr.determinism import WORKSPACE, deterministic


def state() -> tuple[Any, ...]:
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark


def test_fp32_on_a_gpu_asks_for_kernels_that_repeat() -> None:
    before = state()
    with deterministic("cuda:0", "fp32"):
        assert state() == (True, True, False)
    assert state() == before
    with pytest.raises(KeyError), deterministic("cuda", "fp32"):
        raise KeyError
    assert state() == before


def test_a_rig_fixes_cublas_before_anything_runs_whatever_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch looks once, at its first product: after a round in bf16 it would refuse fp32 for good."""
    monkeypatch.setenv(WORKSPACE, "")  # so that it is put back
    monkeypatch.delenv(WORKSPACE)
    Rig("cpu")
    assert WORKSPACE not in os.environ
    Rig("cuda:0")
    assert os.environ[WORKSPACE] == ":4096:8"
    monkeypatch.setenv(WORKSPACE, ":16:8")
    Rig("cuda:0")
    assert os.environ[WORKSPACE] == ":16:8"


@pytest.mark.parametrize(("device", "precision"), [("cpu", "fp32"), ("cuda", "bf16")])
def test_elsewhere_torch_is_left_alone(device: str, precision: str) -> None:
    before = state()
    with deterministic(device, precision):
        assert state() == before
