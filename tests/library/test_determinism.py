"""What makes a GPU repeat itself is set for fp32 alone, and put back."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from library.arrays import tissue
from safetensors.torch import load_file
from torch.backends import cudnn

from winnow.domain import ExperimentSpec
from winnow.simclr import checkpoint, embed, load_encoder, train_round
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: nothing to repeat on one")
def test_two_rounds_on_a_gpu_are_the_same_bits(tmp_path: Path) -> None:
    images, _ = tissue(64, 64)
    indices = np.arange(64, dtype=np.int64)
    spec = ExperimentSpec.model_validate(
        {"name": "t", "dataset": "t", "positive_class": "TUM", "budget": 5, "simclr": {"epochs": 3, "batch_size": 32}}
    )
    found = []
    for name in ("a", "b"):
        with deterministic("cuda", "fp32"):
            trained = train_round(
                images, indices, spec=spec, number=0, workspace=tmp_path / name, start=None, device="cuda"
            )
            h = embed(load_encoder(spec.encoder, trained.state, "cuda"), images, indices, device="cuda")
        found.append((load_file(trained.state / checkpoint.WEIGHTS), h))
    assert all(torch.equal(value, found[1][0][name]) for name, value in found[0][0].items())
    assert np.array_equal(found[0][1], found[1][1])
