"""The trainer on real rows: a child trains, its results are stored once, and every way to end is told."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import wait_until
from services.trainer_parts import (
    add_dataset,
    add_round,
    children_of,
    read_round,
    standing_still,
    wait_for_epoch,
    worker_at,
    working,
)
from sqlalchemy import event, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from winnow.artefacts import digest_of, get_array
from winnow.domain import DatasetStatus, ExperimentStatus, RoundStatus
from winnow.store import artefacts, datasets, experiments, picks, rounds
from winnow.store.claims import TRAIN
from winnow.store.tables import Artefact, Dataset, Round, Sample
from winnow_trainer.standby import Standby
from winnow_trainer.worker import Worker


def artefacts_of(worker: Worker, round: Round) -> dict[str, Artefact]:
    with worker.database.read() as session:
        return artefacts.of_round(session, round.experiment_id, round.number)


def dataset_of(session: Session, round: Round) -> str:
    return experiments.get(session, round.experiment_id).dataset_id


def want(worker: Worker, round: Round, status: ExperimentStatus) -> None:
    with worker.database.begin() as session:
        experiments.transition(session, round.experiment_id, status)


def test_a_round_is_trained_and_everything_is_stored(worker: Worker) -> None:
    round = add_round(worker, arm="k_center")
    assert worker.attend(TRAIN, round.id)
    done = read_round(worker, round)
    assert (done.status, done.error) == (RoundStatus.TRAINED, None)
    assert done.visits == 2 * 16
    assert set(done.seconds) == {"load", "train", "checkpoint", "embed", "proxy", "evaluate"}
    assert done.metrics["n"] > 0 and len(done.report["losses"]) == 2
    assert set(done.report["floors"]) == {"colour_histogram", "untrained_encoder"}
    stored = artefacts_of(worker, round)
    assert {"state/weights", "state/optimizer", "state/counters", "proxy", "selected/embeddings"} <= set(stored)
    assert not [kind for kind in stored if kind.startswith("checkpoint")]
    for row in stored.values():
        path = worker.store.local(row.key)
        assert digest_of(path) == row.sha256 and path.stat().st_size == row.size
        assert "/a1/" in row.key
    candidates = get_array(worker.store, stored["candidates/index"].key)
    with worker.database.read() as session:
        selected = picks.selected(session, round.experiment_id, up_to=0)
    assert np.array_equal(get_array(worker.store, stored["selected/index"].key), selected)
    assert not np.isin(candidates, selected).any()
    assert get_array(worker.store, stored["candidates/embeddings"].key).shape == (len(candidates), 512)
    probabilities = get_array(worker.store, stored["candidates/probabilities"].key)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    left = [path.name for path in worker.settings.scratch_dir.iterdir()]
    assert left == ["cache"], "scratch is left clean, but for what this machine keeps of the patches"
    assert len([key for key in worker.store.list("experiments") if "weights" in key]) == 1, "the state is stored once"


def test_a_worker_that_is_asked_for_traces_leaves_one_a_round(tmp_path: Path, ingested: Path) -> None:
    shutil.copytree(ingested, tmp_path / "state")
    with worker_at(tmp_path / "state", profile_dir=tmp_path / "traces") as worker:
        long, short = add_round(worker, simclr={"batch_size": 2}), add_round(worker, simclr={"epochs": 1})
        assert worker.attend(TRAIN, long.id) and worker.attend(TRAIN, short.id)
        (trace,) = (tmp_path / "traces").iterdir()
        assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
        assert (
            long.experiment_id in trace.name and f"profiler trace: {trace}" in read_round(worker, long).report["notes"]
        )
        assert any("takes 10 steps" in note for note in read_round(worker, short).report["notes"])


def test_traces_that_cannot_be_left_end_no_round(tmp_path: Path, ingested: Path) -> None:
    shutil.copytree(ingested, tmp_path / "state")
    (tmp_path / "file").touch()
    with worker_at(tmp_path / "state", profile_dir=tmp_path / "file" / "traces") as worker:
        round = add_round(worker)
        assert worker.attend(TRAIN, round.id)
        done = read_round(worker, round)
        assert done.status == RoundStatus.TRAINED
        assert any("no profiler trace: [Errno 20] Not a directory" in note for note in done.report["notes"])


def test_a_bell_heard_twice_changes_nothing(worker: Worker) -> None:
    round = add_round(worker)
    assert worker.attend(TRAIN, round.id)
    assert not worker.attend(TRAIN, round.id)
    assert read_round(worker, round).attempt == 1


def test_the_full_arm_trains_on_the_pool_and_reports_the_proxys_curve(worker: Worker) -> None:
    proxy = {"full_epochs": 4, "full_evaluate_every": 2}
    round = add_round(worker, arm="full", full_evaluate_every=1, proxy=proxy)
    assert worker.attend(TRAIN, round.id)
    done = read_round(worker, round)
    assert done.visits == done.samples
    assert [point["epoch"] for point in done.report["proxy_curve"]] == [2, 4]


def test_the_evaluator_may_have_labels_of_its_own(tmp_path: Path, standby: Standby) -> None:
    with worker_at(tmp_path / "state", standby=standby) as worker:
        add_dataset(worker, draws=[{"count": 15, "role": "validation"}, {"count": 20, "by": "stratum"}])
        both, apart = (add_round(worker, fit_evaluator_on=role) for role in ("labelled", "validation"))
        assert worker.attend(TRAIN, both.id) and worker.attend(TRAIN, apart.id)
        kept = [artefacts_of(worker, round) for round in (both, apart)]
        proxies = {rows["proxy"].sha256 for rows in kept} | {kept[1]["evaluator"].sha256}
        assert len(proxies) == 2, "the picking proxy is the same, the evaluator another"
        assert "evaluator" not in kept[0] and "fitted/index" not in kept[0]
        fitted = get_array(worker.store, kept[1]["fitted/index"].key)
        with worker.database.read() as session:
            assert np.array_equal(fitted, datasets.indices(session, dataset_of(session, apart), "validation"))
        for row, said in ((both, "the same labels"), (apart, "on the validation labels")):
            assert said in read_round(worker, row).report["notes"][0]
        assert read_round(worker, both).report["floors"] != read_round(worker, apart).report["floors"]


def test_damaged_shards_are_not_trained_on(worker: Worker, tmp_path: Path, ingested: Path, standby: Standby) -> None:
    shutil.copytree(ingested, tmp_path / "well")
    with worker_at(tmp_path / "well", standby=standby) as other:
        well = add_round(other)
        assert other.attend(TRAIN, well.id)
        assert read_round(other, well).status == RoundStatus.TRAINED, "the process has read them, where they are whole"
    round = add_round(worker)
    with worker.database.read() as session:
        location = str(session.get_one(Dataset, dataset_of(session, round)).location)
    (shard,) = (worker.settings.artefact_dir / location).glob("*.npy")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert worker.attend(TRAIN, round.id)
    assert "does not match its sha256" in str(read_round(worker, round).error)
    assert [path.name for path in worker.settings.scratch_dir.iterdir()] == ["cache"], "each worker has its own"


def test_a_limit_of_visits_is_kept(worker: Worker) -> None:
    round = add_round(worker, visits=20)
    assert worker.attend(TRAIN, round.id)
    assert read_round(worker, round).visits == 20


def test_pause_keeps_a_checkpoint_and_resuming_gives_the_same_weights(worker: Worker) -> None:
    whole, paused = (add_round(worker, simclr={"epochs": 20}) for _ in range(2))
    assert worker.attend(TRAIN, whole.id)
    with working(worker.attend, TRAIN, paused.id):
        wait_for_epoch(worker, paused, 1)
        want(worker, paused, ExperimentStatus.PAUSING)
    row = read_round(worker, paused)
    assert row.status == RoundStatus.QUEUED and (row.losses, row.failures) == (0, 0)
    assert {"checkpoint/weights", "checkpoint/optimizer", "checkpoint/counters"} <= set(artefacts_of(worker, paused))
    assert not worker.attend(TRAIN, paused.id), "a pausing experiment is not claimed"
    want(worker, paused, ExperimentStatus.PAUSED)
    want(worker, paused, ExperimentStatus.RUNNING)
    assert worker.attend(TRAIN, paused.id)
    assert read_round(worker, paused).visits == 20 * 16
    weights = [artefacts_of(worker, round)["state/weights"].sha256 for round in (whole, paused)]
    assert weights[0] == weights[1]


def test_cancel_ends_the_round(worker: Worker) -> None:
    round = add_round(worker, simclr={"epochs": 500})
    with working(worker.attend, TRAIN, round.id):
        wait_for_epoch(worker, round, 1)
        want(worker, round, ExperimentStatus.CANCELLING)
    assert read_round(worker, round).status == RoundStatus.CANCELLED


def test_leaving_gives_the_claim_back_with_a_checkpoint(worker: Worker) -> None:
    round = add_round(worker, simclr={"epochs": 500})
    with working(worker.attend, TRAIN, round.id):
        wait_for_epoch(worker, round, 1)
        worker.leave()
    assert read_round(worker, round).status == RoundStatus.QUEUED
    assert "checkpoint/weights" in artefacts_of(worker, round)


def test_a_fenced_attempt_kills_its_child_and_stores_nothing(worker: Worker) -> None:
    round = add_round(worker, simclr={"epochs": 500})
    with working(worker.attend, TRAIN, round.id):
        wait_for_epoch(worker, round, 1)
        with worker.database.begin() as session:
            session.execute(update(Round).where(Round.id == round.id).values(attempt=7, owner="another"))
    row = read_round(worker, round)
    assert (row.status, row.owner, row.metrics) == (RoundStatus.TRAINING, "another", {})
    assert "state/weights" not in artefacts_of(worker, round)
    assert not children_of()


def test_a_killed_child_fails_the_attempt_and_the_next_one_goes_on(worker: Worker) -> None:
    round = add_round(worker, simclr={"epochs": 20})
    with working(worker.attend, TRAIN, round.id):
        wait_for_epoch(worker, round, 2)
        (pid,) = children_of()
        os.kill(pid, signal.SIGKILL)
    row = read_round(worker, round)
    assert (row.status, row.failures) == (RoundStatus.QUEUED, 1)
    assert "SIGKILL" in str(row.error) and "memory" in str(row.error)
    assert worker.attend(TRAIN, round.id)
    done = read_round(worker, round)
    assert (done.status, done.visits, len(done.report["losses"])) == (RoundStatus.TRAINED, 20 * 16, 20)


def checkpoint_of(worker: Worker, round: Round) -> list[Artefact]:
    """The checkpoint that a round would go on from."""
    return [row for kind, row in artefacts_of(worker, round).items() if kind.startswith("checkpoint/")]


def test_a_round_that_failed_goes_on_from_its_checkpoint(tmp_path: Path, ingested: Path, standby: Standby) -> None:
    shutil.copytree(ingested, tmp_path / "state")
    with worker_at(tmp_path / "state", standby=standby, max_failures=1) as worker:
        whole, failed = (add_round(worker, simclr={"epochs": 20}) for _ in range(2))
        assert worker.attend(TRAIN, whole.id)
        with working(worker.attend, TRAIN, failed.id):
            wait_for_epoch(worker, failed, 2)
            (pid,) = children_of()
            os.kill(pid, signal.SIGKILL)
        assert read_round(worker, failed).status == RoundStatus.FAILED
        left = checkpoint_of(worker, failed)
        assert {row.attempt for row in left} == {1}
        with worker.database.begin() as session:
            experiments.transition(session, failed.experiment_id, ExperimentStatus.RUNNING)
            rounds.resume(session, rounds.get(session, failed.experiment_id, 0))
        with working(worker.attend, TRAIN, failed.id):
            wait_until(lambda: {row.attempt for row in checkpoint_of(worker, failed)} == {2}, 90, "another checkpoint")
            with standing_still():
                wait_until(
                    lambda: not {row.key for row in left} & set(worker.store.list("experiments")),
                    60,
                    "the first attempt's checkpoint to go",
                )
                assert read_round(worker, failed).status == RoundStatus.TRAINING
        done = read_round(worker, failed)
        assert (done.status, done.visits) == (RoundStatus.TRAINED, 20 * 16)
        stored = [artefacts_of(worker, round) for round in (whole, failed)]
        assert stored[0]["state/weights"].sha256 == stored[1]["state/weights"].sha256
        assert not checkpoint_of(worker, failed)


def test_an_exploding_loss_fails_the_experiment_with_a_reason(worker: Worker) -> None:
    round = add_round(worker, simclr={"learning_rate": 1e30})
    assert worker.attend(TRAIN, round.id)
    with worker.database.read() as session:
        experiment = experiments.get(session, round.experiment_id)
        assert rounds.get(session, round.experiment_id, 0).status == RoundStatus.FAILED
    assert experiment.status == ExperimentStatus.FAILED
    assert "simclr.learning_rate" in str(experiment.error)


def test_a_missing_state_is_told_and_tried_again(worker: Worker) -> None:
    round = add_round(worker)
    with worker.database.begin() as session:
        second = rounds.insert(session, round.experiment_id, 1, samples=16)
    assert worker.attend(TRAIN, second.id)
    row = read_round(worker, second)
    assert (row.status, row.failures) == (RoundStatus.QUEUED, 1), "random weights would pass for trained ones"
    assert "round 0 has no whole state" in str(row.error)


ORPHAN = """
import sys, threading
from pathlib import Path
from winnow.settings import Settings
from winnow.store.claims import TRAIN
from winnow_trainer.worker import Worker
worker = Worker(Settings(state_dir=Path(sys.argv[1]), device="cpu", threads=1))
worker.attend(TRAIN, sys.argv[2])
"""


def test_a_dead_supervisor_leaves_no_child(worker: Worker) -> None:
    round = add_round(worker, simclr={"epochs": 500})
    supervisor = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(worker.settings.state_dir), round.id], stderr=subprocess.DEVNULL
    )
    wait_for_epoch(worker, round, 1)
    assert children_of(supervisor.pid)
    supervisor.kill()
    supervisor.wait(60)
    wait_until(lambda: not children_of(supervisor.pid), 60, "the child to die with its supervisor")


def test_samples_are_stored_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "SLICE", 7)
    seen: list[dict[str, Any]] = []

    def hear(session: Session, *_: object) -> None:
        seen.extend(session.scalars(select(Dataset.progress)))

    with worker_at(tmp_path / "state") as worker:
        event.listen(Session, "before_commit", hear)
        try:
            row = add_dataset(worker)
        finally:
            event.remove(Session, "before_commit", hear)
        total = sum(found for by_label in row.counts.values() for found in by_label.values())
        with worker.database.read() as session:
            assert session.scalars(select(Sample.idx).order_by(Sample.idx)).all() == list(range(total))
    stored = [one["step"] for one in seen if one.get("phase") == "store"]
    assert row.status == DatasetStatus.READY and row.progress == {}
    assert sorted(set(stored)) == [*range(7, total, 7), total]


def test_storing_may_take_longer_than_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slice renews it, here and in the row, so that a database which is away in the last one is waited for."""
    monkeypatch.setattr(datasets, "SLICE", 20)
    lease, stored, times = 3.0, list[int](), list[float]()

    def hinder(session: Session, *_: object) -> None:
        (progress,) = session.scalars(select(Dataset.progress))
        if progress.get("phase") != "store":
            return
        stored.append(progress["step"])
        times.append(time.monotonic())
        is_last = progress["step"] == progress["steps"]
        if len(stored) == 2:
            wait_until(lambda: time.monotonic() > times[0] + 0.6 * lease, 20, "more than half of the lease to be over")
        elif is_last and stored.count(stored[-1]) == 1:
            wait_until(lambda: time.monotonic() > times[0] + 1.1 * lease, 20, "the lease of before the storing to end")
            raise OperationalError("", {}, Exception("the database is away"))

    with worker_at(tmp_path / "state", lease_seconds=lease) as worker:
        event.listen(Session, "before_commit", hinder)
        try:
            row = add_dataset(worker)
        finally:
            event.remove(Session, "before_commit", hinder)
    assert len(stored) > 4 and stored[-2:] == [max(stored)] * 2
    assert (row.status, row.attempt, row.losses) == (DatasetStatus.READY, 1, 0)


def test_a_broken_file_fails_the_dataset_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "TUM"
    folder.mkdir(parents=True)
    (folder / "bad.png").write_bytes(b"not a picture")
    with worker_at(tmp_path / "state", data_roots=(tmp_path / "data",)) as worker:
        row = add_dataset(worker, sources=[{"kind": "folder", "path": str(folder.parent)}], draws=[])
    assert row.status == DatasetStatus.FAILED
    assert "bad.png" in str(row.error) and "on_unreadable" in str(row.error)


def test_a_path_outside_the_roots_is_refused_by_the_worker_too(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "secret")
    with worker_at(tmp_path / "state", data_roots=(tmp_path / "data",)) as worker:
        row = add_dataset(worker, sources=[{"kind": "folder", "path": str(tmp_path / "data" / "link")}], draws=[])
    assert row.status == DatasetStatus.FAILED
    assert "outside the allowed data roots" in str(row.error)
