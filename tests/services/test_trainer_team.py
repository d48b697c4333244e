"""Two processes that share a round inside a real worker: the result of one, and nothing left when one of them dies."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import psutil
import pytest
from conftest import wait_until
from services.trainer_parts import add_round, members, read_round, wait_for_epoch, worker_at, working

from winnow.domain import RoundStatus
from winnow.store.claims import TRAIN
from winnow_trainer.standby import Standby
from winnow_trainer.worker import Worker


@pytest.fixture
def worker(tmp_path: Path, ingested: Path, standby: Standby) -> Iterator[Worker]:
    """A worker whose rounds a team of two trains."""
    shutil.copytree(ingested, tmp_path / "state")
    with worker_at(tmp_path / "state", standby=standby, devices=2) as made:
        yield made


def test_a_team_trains_round_after_round(worker: Worker) -> None:
    first, second = (add_round(worker, encoder={"head_batch_norm": True}) for _ in range(2))
    assert worker.attend(TRAIN, first.id)
    done = read_round(worker, first)
    assert (done.status, done.visits, done.error) == (RoundStatus.TRAINED, 2 * 16, None)
    team = members()
    assert sorted(team.values()) == [0, 1], "it waits for the next round"
    assert worker.attend(TRAIN, second.id)
    assert members() == team
    again = read_round(worker, second)
    assert again.metrics == done.metrics and again.report["losses"] == done.report["losses"]


def test_a_member_that_dies_costs_an_attempt_and_leaves_no_orphan(worker: Worker) -> None:
    round = add_round(worker, simclr={"epochs": 20})
    with working(worker.attend, TRAIN, round.id):
        wait_for_epoch(worker, round, 1)
        (follower,) = [pid for pid, rank in members().items() if rank == 1]
        os.kill(follower, signal.SIGKILL)
    row = read_round(worker, round)
    assert (row.status, row.failures) == (RoundStatus.QUEUED, 1)
    wait_until(lambda: not members(), 20, "the other member to end")
    assert worker.attend(TRAIN, round.id)
    done = read_round(worker, round)
    assert (done.status, done.visits, len(done.report["losses"])) == (RoundStatus.TRAINED, 20 * 16, 20)


def test_what_members_print_is_not_taken_for_messages(
    tmp_path: Path, ingested: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL prints on standard output where it was asked to: here each member does when it joins."""
    loud = at_each_join(LOUD, tmp_path, monkeypatch)
    shutil.copytree(ingested, tmp_path / "state")
    with worker_at(tmp_path / "state", devices=2) as worker:
        round = add_round(worker)
        assert worker.attend(TRAIN, round.id)
        done = read_round(worker, round)
    assert (done.status, done.attempt, done.error) == (RoundStatus.TRAINED, 1, None)
    assert sorted(path.name for path in loud.glob("rank-*")) == ["rank-0", "rank-1"]


LOUD = """
os.write(1, b"NCCL INFO: what nobody asked\\n")
pathlib.Path(__file__).with_name("rank-" + os.environ["RANK"]).touch()
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_gpu_that_is_found_sick_by_the_process_that_joins_with_it_is_nobodys_failure(
    rank: int, tmp_path: Path, ingested: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "CUDA error: uncorrectable ECC error encountered"
    at_each_join(f'if os.environ["RANK"] == "{rank}": raise RuntimeError("{said}")', tmp_path, monkeypatch)
    shutil.copytree(ingested, tmp_path / "state")
    with worker_at(tmp_path / "state", devices=2) as worker:
        round, others = add_round(worker), set(members())
        assert worker.attend(TRAIN, round.id)
        row = read_round(worker, round)
        assert (row.status, row.losses, row.failures) == (RoundStatus.QUEUED, 1, 0)
        assert row.error is not None and f"the GPU does not compute ({said})" in row.error
        wait_until(lambda: set(members()) == others, 20, "the team to end")


def at_each_join(code: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have each member of a team run this before it joins; the folder of the file that says so."""
    folder = directory / "at-each-join"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(AT_EACH_JOIN.replace("CODE", indent(code, " " * 8)))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return folder


AT_EACH_JOIN = """
import os, pathlib
if "RANK" in os.environ:
    import torch.distributed as dist
    join = dist.init_process_group
    def ready(*arguments, **options):
CODE
        return join(*arguments, **options)
    dist.init_process_group = ready
"""


def test_a_team_that_is_killed_while_it_starts_leaves_nobody(tmp_path: Path, ingested: Path) -> None:
    """Its members are in sessions of their own, which a kill of the launcher's does not reach."""
    shutil.copytree(ingested, tmp_path / "state")
    with worker_at(tmp_path / "state", devices=2) as worker:
        round, others = add_round(worker), set(members())
        with working(worker.attend, TRAIN, round.id):
            wait_until(lambda: len(members()) == len(others) + 2, 60, "the team to start")
            team = [psutil.Process(pid) for pid in set(members()) - others]
            os.killpg(team[0].ppid(), signal.SIGKILL)
            wait_until(lambda: not any(map(lives, team)), 20, "its members to end")
        assert read_round(worker, round).failures == 1


def test_a_member_that_is_killed_is_told_as_a_process_alone_is(tmp_path: Path, ingested: Path) -> None:
    shutil.copytree(ingested, tmp_path / "state")
    with worker_at(tmp_path / "state", devices=2) as worker:
        round, others = add_round(worker), set(members())
        with working(worker.attend, TRAIN, round.id):
            wait_until(lambda: 1 in starting(others).values(), 60, "the follower to start")
            (follower,) = [pid for pid, rank in starting(others).items() if rank == 1]
            os.kill(follower, signal.SIGKILL)
        error = read_round(worker, round).error
    assert error is not None and error.endswith(
        "process 1 of 2 ended first, with SIGKILL; if nobody did that, the machine ran out of memory"
    )


def starting(others: set[int]) -> dict[int, int]:
    return {pid: rank for pid, rank in members().items() if pid not in others}


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
