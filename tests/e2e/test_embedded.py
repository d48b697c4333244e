"""The whole loop as a user meets it: `winnow up`, REST, two rounds; and what a killed trainer leaves behind."""

import os
import signal
import subprocess
import sys

from conftest import wait_until
from e2e.conftest import Stack, add_experiment, add_tissue, wait_for
from e2e.invariants import check


def test_every_arm_ends_and_its_picks_can_be_recomputed(stack: Stack) -> None:
    add_tissue(stack.api)
    ids = [add_experiment(stack.api, arm) for arm in ("entropy", "k_center", "random", "full")]
    for id in ids:
        ended = wait_for(stack.api, id)
        assert ended["status"] == "completed", ended
        check(stack.api, id)
    curves = [stack.api.get(f"/experiments/{id}/metrics") for id in ids]
    assert [[row["samples"] for row in curve["items"]] for curve in curves[:3]] == [[16, 32]] * 3
    starts = {stack.api.http.get(f"/experiments/{id}/rounds/0/selection").text for id in ids[:3]}
    assert len(starts) == 1, "arms with one seed must start from the same S^0"
    assert stack.stop() == 0


def test_a_trainer_killed_in_mid_round_still_ends_with_one_result(stack: Stack) -> None:
    add_tissue(stack.api)
    id = add_experiment(stack.api, "entropy", simclr={"epochs": 12, "batch_size": 16})
    path = f"/experiments/{id}/rounds/0"
    wait_until(lambda: stack.api.get(path)["progress"].get("epoch", 0) >= 3, 120, "round 0 to be in mid-training")
    os.kill(stack.pid_of("trainer"), signal.SIGKILL)
    assert wait_for(stack.api, id)["status"] == "completed"
    check(stack.api, id)
    first = stack.api.get(path)
    assert first["losses"] == 1
    kinds = [artefact["kind"] for artefact in first["artefacts"]]
    assert len(kinds) == len(set(kinds))
    assert first["visits"] == 12 * 16


def test_the_stack_goes_on_where_it_was_stopped(stack: Stack) -> None:
    add_tissue(stack.api)
    id = add_experiment(stack.api, "random", simclr={"epochs": 12, "batch_size": 16})
    path = f"/experiments/{id}/rounds/0"
    wait_until(lambda: stack.api.get(path)["progress"].get("epoch", 0) >= 2, 120, "round 0 to be in mid-training")
    assert stack.stop() == 0
    stack.start()
    assert wait_for(stack.api, id)["status"] == "completed"
    assert stack.api.get(path)["losses"] == 0, "an orderly stop is not a lost machine"
    check(stack.api, id)


def test_one_stack_a_state_directory_and_none_outlives_its_starter(stack: Stack) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "winnow_cli.main", "up", "--state-dir", str(stack.state_dir)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert "a stack is up on" in second.stderr and "stop it first" in second.stderr
    pids = [stack.pid_of(name) for name in ("coordinator", "sampler", "trainer")]
    assert all(is_alive(pid) for pid in pids)
    assert stack.process is not None
    stack.process.kill()
    stack.process.wait(60)
    wait_until(lambda: not any(is_alive(pid) for pid in pids), 30, "the services to end with their starter")
    stack.start()
    assert stack.stop() == 0


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(listed.stdout.strip()) and not listed.stdout.startswith("Z")


def test_pause_resume_and_cancel_take_effect(stack: Stack) -> None:
    add_tissue(stack.api)
    id = add_experiment(stack.api, "entropy", simclr={"epochs": 40, "batch_size": 16})
    wait_until(lambda: stack.api.get(f"/experiments/{id}/rounds/0")["status"] == "training", 60, "training")
    assert stack.api.http.post(f"/experiments/{id}/pause").status_code == 202
    wait_for(stack.api, id, "paused", timeout=30)
    assert stack.api.get(f"/experiments/{id}/rounds/0")["status"] == "queued"
    assert stack.api.http.post(f"/experiments/{id}/resume").status_code == 202
    wait_until(lambda: stack.api.get(f"/experiments/{id}/rounds/0")["status"] == "training", 60, "training again")
    assert stack.api.http.post(f"/experiments/{id}/cancel").status_code == 202
    assert wait_for(stack.api, id, timeout=30)["status"] == "cancelled"


def test_two_runs_of_one_spec_give_the_same_picks(stack: Stack) -> None:
    add_tissue(stack.api)
    pair = [add_experiment(stack.api, "k_center", seed=5) for _ in range(2)]
    for id in pair:
        assert wait_for(stack.api, id)["status"] == "completed"
    first, second = (stack.api.http.get(f"/experiments/{id}/rounds/1/selection").text for id in pair)
    assert first == second
