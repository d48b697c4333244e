"""A short chaos: real servers, several of each service, and something dies every other second."""

import subprocess
import sys
from pathlib import Path

import pytest
from cluster import AnyOf, Cluster, Kind
from conftest import wait_until
from e2e.conftest import add_experiment, add_tissue, wait_for
from e2e.invariants import Api, check

CHAOS = Path(__file__).parents[2] / "benchmarks" / "chaos.py"
LONG = {"epochs": 20, "batch_size": 16, "optimizer": "sgd", "momentum": 0.0, "checkpoint_every": 5}


def test_experiments_that_are_killed_all_the_time_end_as_those_that_are_not(tmp_path: Path) -> None:
    few = ["--kills", "15", "--seconds", "60", "--trainers", "2", "--arms", "entropy", "k_center"]
    small = ["--rounds", "2", "--epochs", "4", "--seed", "5", "--keep-logs", str(tmp_path / "logs")]
    command = [sys.executable, str(CHAOS), *few, *small]
    run = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    told = dict(line.split(": ", 1) for line in run.stdout.splitlines() if ": " in line)
    assert int(told["kills"]) >= 5, run.stdout
    assert (told["lost"], told["doubled"], told["different from the undisturbed run"]) == ("0", "0", "0")


@pytest.mark.parametrize("kind", ["embedded", "scaled"])
def test_any_service_may_be_restarted_in_mid_experiment(kind: Kind, tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster", kind=kind) as cluster:
        api = Api("http://any", transport=AnyOf(cluster.urls))
        add_tissue(api)
        id = add_experiment(api, "entropy", simclr=LONG, floors=False)
        for name, member in cluster.members.items():
            wait_until(lambda: is_training(api, id), 120, f"a round to train, before {name} is restarted")
            member.stop()
            member.start()
            member.wait_ready(90)
        assert wait_for(api, id)["status"] == "completed"
        check(api, id)
        rounds = list(api.every(f"/experiments/{id}/rounds"))
        assert [row["visits"] for row in rounds] == [20 * 16, 20 * 16 + 20 * 32]
        assert [row["failures"] for row in rounds] == [0, 0]
        api.http.close()


def is_training(api: Api, id: str) -> bool:
    """Whether a round is in mid-training; the last one may have ended meanwhile."""
    rounds = list(api.every(f"/experiments/{id}/rounds"))
    ended = rounds[-1]["status"] == "done" and len(rounds) == 2
    return ended or (rounds[-1]["status"] == "training" and rounds[-1]["progress"].get("phase") == "train")
