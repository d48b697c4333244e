"""A team of which one process runs out of memory in mid-step, for real: it is held to little more than it has."""

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from services.trainer_parts import add_dataset, add_round, members, read_round, worker_at

from winnow.artefacts import DirectoryStore
from winnow.domain import RoundStatus
from winnow.store.claims import TRAIN
from winnow.store.tables import Round
from winnow_trainer.training import KINDS, WORK, _workspace
from winnow_trainer.worker import Worker

BATCH = 34


@pytest.fixture
def worker(tmp_path: Path, ingested: Path) -> Iterator[Worker]:
    """A worker whose rounds a team of two trains, and a dataset of patches whose maps are large."""
    shutil.copytree(ingested, tmp_path / "state")
    with worker_at(tmp_path / "state", devices=2) as made:
        add_dataset(made, name="large", image_size=192)
        yield made


def train_on(worker: Worker, images: int, **simclr: int) -> Round:
    terms = {"dataset": "large", "budget": images, "candidates": BATCH, "rounds": 1}
    round = add_round(worker, **terms, simclr={"batch_size": BATCH, "epochs": 1, **simclr})
    assert worker.attend(TRAIN, round.id)
    return read_round(worker, round)


def hold(rank: int) -> None:
    """Allow a member what it has and 32 MiB: its network is there, and the first map of a full batch has 76."""
    (pid,) = [pid for pid, its in members().items() if its == rank]
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + (32 << 20)
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))


@pytest.mark.parametrize("rank", [0, 1])
def test_it_begins_anew_in_smaller_chunks_within_the_attempt(worker: Worker, rank: int) -> None:
    train_on(worker, 2)
    before = members()
    hold(rank)
    done = train_on(worker, BATCH)
    assert (done.status, done.attempt, done.visits) == (RoundStatus.TRAINED, 1, BATCH)
    assert f"out of memory: batches of {BATCH} now pass in chunks of 16" in done.report["notes"]
    assert len(members()) == 2 and not set(members()) & set(before)


def test_a_follower_with_nothing_left_to_give_up_says_the_sizes(worker: Worker) -> None:
    train_on(worker, 2, chunk=16)
    hold(1)
    failed = train_on(worker, BATCH, chunk=16)
    assert failed.status == RoundStatus.FAILED and failed.error is not None
    assert f"out of memory with batches of {BATCH} at 192 pixels, 16 images a pass" in failed.error


def test_a_team_that_begins_anew_goes_on_from_what_the_one_before_left(tmp_path: Path) -> None:
    """Not from the stored checkpoint that the attempt began with, which is older."""
    store = DirectoryStore(tmp_path / "artefacts")
    keys = {name: store.put(f"a1/{file}", b"{}").key for name, file in KINDS.items()}
    round: Any = SimpleNamespace(scratch=tmp_path, store=store, job={"checkpoint": keys})
    assert [path.name for path in _workspace(round).iterdir()] == ["checkpoint-restored"]
    (tmp_path / WORK / "checkpoint-restored").rename(tmp_path / WORK / "checkpoint-000003-00000000")
    assert [path.name for path in _workspace(round).iterdir()] == ["checkpoint-000003-00000000"]
