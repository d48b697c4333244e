"""Machines whose clocks are days apart: the services of one stack, each with a wall clock of its own.

Python reads the clock through the patched functions; what the kernel stamps (files) and the database say stays true.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import wait_until
from e2e.conftest import Stack, add_experiment, add_tissue, wait_for, winnow
from e2e.invariants import check

DAY = 86_400
OFFSETS = {"winnow_coordinator": -3 * DAY, "winnow_sampler": 3600, "winnow_trainer": 2 * DAY}
PATCH = f"""
import os, sys, time
words = " ".join(sys.orig_argv)
for name, offset in {OFFSETS!r}.items():
    if name in words:
        true, true_ns = time.time, time.time_ns
        time.time = lambda: true() + offset
        time.time_ns = lambda: true_ns() + int(offset * 1e9)
        with open(os.path.join(os.path.dirname(__file__), f"{{name}}-{{os.getpid()}}"), "w") as said:
            said.write(str(time.time()))
        break
"""


@pytest.fixture
def skewed(tmp_path: Path) -> Iterator[Stack]:
    (tmp_path / "clocks").mkdir()
    (tmp_path / "clocks" / "sitecustomize.py").write_text(PATCH)
    inherited = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(part for part in (str(tmp_path / "clocks"), inherited) if part)
    running = Stack(tmp_path / "state", {"PYTHONPATH": path, "WINNOW_SWEEP_SECONDS": "86400"})
    running.state_dir.mkdir()
    running.start()
    yield running
    if running.process is not None and running.process.poll() is None:
        running.stop()


def test_days_between_the_clocks_change_nothing(skewed: Stack, tmp_path: Path) -> None:
    add_tissue(skewed.api)
    id = add_experiment(skewed.api, "k_center", simclr={"epochs": 8, "batch_size": 16})
    path = f"/experiments/{id}/rounds/0"
    wait_until(lambda: skewed.api.get(path)["progress"].get("epoch", 0) >= 1, 300, "round 0 to be in mid-training")
    assert skewed.api.get(path)["losses"] == 0, "a live lease was not taken for an old one"
    os.kill(skewed.pid_of("trainer"), signal.SIGKILL)
    assert wait_for(skewed.api, id, timeout=500)["status"] == "completed"
    assert skewed.api.get(path)["losses"] == 1, "a dead one was"
    check(skewed.api, id)
    said = winnow("verify", id, "--url", str(skewed.api.http.base_url).removesuffix("/api/v1/"), cwd=tmp_path)
    assert said.returncode == 0, said.stdout + said.stderr
    clocks = {file.name.partition("-")[0]: float(file.read_text()) for file in (tmp_path / "clocks").glob("winnow_*")}
    assert clocks["winnow_trainer"] - clocks["winnow_coordinator"] > 4 * DAY, "the clocks were apart indeed"
