"""The embedded stack as a user starts it: `winnow up` in a temporary directory."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import QUICK
from conftest import wait_until
from e2e.invariants import Api


@dataclass
class Stack:
    """A running `winnow up`."""

    state_dir: Path
    environment: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    process: "subprocess.Popen[bytes] | None" = None
    api: Api = field(init=False)

    def start(self) -> None:
        command = [sys.executable, "-m", "winnow_cli.main", "up", "--state-dir", str(self.state_dir)]
        command += self.arguments
        with (self.state_dir.parent / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **QUICK, **self.environment}, start_new_session=True
            )
        self.api = Api(wait_until(self._ready, 90, f"the stack to be ready; see {log.name}"))

    def stop(self) -> int:
        assert self.process is not None
        self.api.http.close()
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def kill(self) -> None:
        """End it at once, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)

    def pid_of(self, service: str) -> int:
        """Process id of one of the stack's services."""
        return json.loads((self.state_dir / "stack.json").read_text())["services"][service]["pid"]

    def _ready(self) -> str:
        assert self.process is not None and self.process.poll() is None, "winnow up ended early"
        try:
            url = json.loads((self.state_dir / "stack.json").read_text())["coordinator_url"]
            return url if httpx.get(f"{url}/readyz").status_code == 200 else ""
        except (OSError, ValueError, KeyError, httpx.TransportError):
            return ""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    running = Stack(tmp_path / "state")
    running.state_dir.mkdir()
    running.start()
    yield running
    if running.process is not None and running.process.poll() is None:
        running.stop()


def winnow(*arguments: str, cwd: Path, timeout: float = 240) -> "subprocess.CompletedProcess[str]":
    """A command as a shell runs it, in an environment without a WINNOW_ variable of the tester's own."""
    command = [sys.executable, "-m", "winnow_cli.main", *arguments]
    mine = {name: value for name, value in os.environ.items() if not name.startswith("WINNOW_")}
    return subprocess.run(
        command, cwd=cwd, env={**mine, **QUICK}, capture_output=True, text=True, timeout=timeout, check=False
    )


def add_tissue(api: Api, **changes: Any) -> None:
    """A small synthetic dataset, ready to train on."""
    body = {
        "name": "tissue",
        "image_size": 32,
        "sources": [{"kind": "synthetic", "synthetic": {"patches": 240, "slides": 6, "test_slides": 2}}],
        "draws": [{"count": 40, "by": "stratum"}],
        **changes,
    }
    answer = api.http.post("/datasets", json=body)
    assert answer.status_code == 202, answer.text
    path = f"/datasets/{body['name']}"
    ready = wait_until(lambda: _ended(api, path, ("ready", "failed")), 120, "the dataset to be ingested")
    assert ready["status"] == "ready", ready


def add_experiment(api: Api, arm: str, **changes: Any) -> str:
    """A tiny experiment of two rounds; its id."""
    body = {
        "name": f"tiny-{arm}",
        "dataset": "tissue",
        "arm": arm,
        "positive_class": "TUM",
        "budget": 16,
        "rounds": 2,
        "candidates": 60,
        "full_evaluate_every": 1,
        "simclr": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "checkpoint_every": 1},
        "proxy": {"epochs": 5, "full_epochs": 10, "full_evaluate_every": 5},
        **changes,
    }
    answer = api.http.post("/experiments", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def wait_for(api: Api, id: str, *states: str, timeout: float = 240) -> dict[str, Any]:
    """The experiment once it is in one of `states` (or has ended)."""
    wanted = states or ("completed", "failed", "cancelled")
    return wait_until(lambda: _ended(api, f"/experiments/{id}", wanted), timeout, f"experiment {id} to be {wanted}")


def _ended(api: Api, path: str, states: tuple[str, ...]) -> dict[str, Any]:
    row = api.get(path)
    return row if row["status"] in states else {}
