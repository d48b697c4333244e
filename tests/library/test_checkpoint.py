"""A state is whole or absent, at whatever moment the process that writes or removes it is killed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from winnow.simclr import checkpoint
from winnow.simclr.checkpoint import Counters

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from winnow.simclr import checkpoint
directory, moment = Path(sys.argv[1]), sys.argv[2]
layer = torch.nn.Linear(2, 2)
optimizer = torch.optim.Adam(layer.parameters())
save = lambda epoch: checkpoint.save(directory, layer, optimizer, checkpoint.Counters(round=0, epoch=epoch))
save(1)
def watch(event, arguments):
    if event == "os.rename" and Path(arguments[1]) == directory and moment == "save":
        os.kill(os.getpid(), signal.SIGKILL)
    if event == "os.remove" and moment != "save":
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
save(2) if moment != "remove" else checkpoint.remove(directory)
"""


def kill_at(moment: str, directory: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(directory), moment], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL


def save(directory: Path, epoch: int, round: int = 0) -> Path:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    return checkpoint.save(directory, layer, optimizer, Counters(round=round, epoch=epoch))


def epochs_in(workspace: Path) -> list[int]:
    """Of every whole state there, under whatever name."""
    whole = [path for path in workspace.iterdir() if all((path / name).is_file() for name in checkpoint.FILES)]
    return sorted(checkpoint.load_counters(path).epoch for path in whole)


def test_a_kill_while_a_state_is_replaced_loses_neither(tmp_path: Path) -> None:
    kill_at("save", tmp_path / "state")
    assert epochs_in(tmp_path) == [1, 2]


def test_a_kill_once_it_is_replaced_leaves_the_new_one(tmp_path: Path) -> None:
    kill_at("tidy", tmp_path / "state")
    assert checkpoint.load_counters(tmp_path / "state").epoch == 2


def test_a_kill_while_a_state_is_removed_leaves_nothing_that_looks_like_one(tmp_path: Path) -> None:
    kill_at("remove", tmp_path / "checkpoint-000001-00000000")
    assert checkpoint.newest(tmp_path, 0) is None


def test_a_state_is_replaced_and_removed_without_a_trace(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save(tmp_path / "state", epoch)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert checkpoint.load_counters(tmp_path / "state").epoch == 2
    checkpoint.remove(tmp_path / "state")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("gone", checkpoint.FILES)
def test_the_newest_is_the_newest_whole_one_of_its_round(tmp_path: Path, gone: str) -> None:
    for epoch in (1, 2, 3):
        save(tmp_path / f"checkpoint-{epoch:06d}-00000000", epoch)
    save(tmp_path / "checkpoint-000004-00000000", 4, round=1)
    (tmp_path / "checkpoint-000003-00000000" / gone).unlink()
    found = checkpoint.newest(tmp_path, 0)
    assert found is not None and json.loads((found / checkpoint.COUNTERS).read_text())["epoch"] == 2


def test_a_state_from_before_checkpoints_were_timed_is_gone_on_from(tmp_path: Path) -> None:
    (tmp_path / checkpoint.COUNTERS).write_text(json.dumps({"round": 3, "seconds": {"load": 1.0, "train": 2.0}}))
    assert checkpoint.load_counters(tmp_path).seconds == {"load": 1.0, "train": 2.0, "checkpoint": 0.0}
