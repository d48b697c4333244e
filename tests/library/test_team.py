"""Two processes of half a minibatch each train as one process does with the whole of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from winnow.simclr.team import SharedBatchNorm

MEMBER = Path(__file__).with_name("team_member.py")


def train(out: Path, *, processes: int) -> dict[str, Any]:
    out.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(MEMBER), str(out)]
    paths = os.pathsep.join([str(MEMBER.parents[1]), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads((out / "found.json").read_text())


def test_two_processes_equal_one(tmp_path: Path) -> None:
    one, two = train(tmp_path / "one", processes=1), train(tmp_path / "two", processes=2)
    assert (one["size"], two["size"]) == (1, 2)
    assert len(one["losses"]) == len(two["losses"]) == 20
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert two["visits"] == one["visits"]
    assert two["picks"] == one["picks"]


def test_statistics_of_bf16_are_taken_in_float32() -> None:
    """As torch's own BatchNorm takes them; in bf16 a count of 32,769 would be 32,768, and a sum off by a hundredth."""
    x = (torch.randn(9, 4, 60, 61, generator=torch.Generator().manual_seed(0)) + 3).to(torch.bfloat16)
    plain, shared = nn.BatchNorm2d(4).train(), SharedBatchNorm(4).train()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        made, expected = shared(x), plain(x)
    finally:
        dist.destroy_process_group()
    assert made.dtype == expected.dtype == torch.bfloat16
    assert torch.allclose(made, expected, atol=0.02)
    assert torch.allclose(shared.running_mean, plain.running_mean, rtol=1e-5)
    assert torch.allclose(shared.running_var, plain.running_var, rtol=1e-5)
