"""What makes a GPU repeat itself is set for fp32 alone, and put back."""

import os
from typing import Any

import pytest
import torch
from torch.backends import cudnn

from winnow.simclr.determinism import WORKSPACE, deterministic


def state() -> tuple[Any, ...]:
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark


def test_fp32_on_a_gpu_asks_for_kernels_that_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, "")
    monkeypatch.delenv(WORKSPACE)
    before = state()
    with deterministic("cuda:0", "fp32"):
        assert state() == (True, True, False)
        assert os.environ[WORKSPACE] == ":4096:8"
    assert state() == before
    with pytest.raises(KeyError), deterministic("cuda", "fp32"):
        raise KeyError
    assert state() == before


@pytest.mark.parametrize(("device", "precision"), [("cpu", "fp32"), ("cuda", "bf16")])
def test_elsewhere_torch_is_left_alone(device: str, precision: str) -> None:
    before = state()
    with deterministic(device, precision):
        assert state() == before
