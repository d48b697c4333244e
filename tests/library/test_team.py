"""Two processes of half a minibatch each train as one process does with the whole of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
