"""What is kept, what goes, and in which order; no clock of another machine has a say."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import wait_until
from services.conftest import Driver, Winnow, add_dataset, experiment_body
from sqlalchemy import select, update

from winnow.artefacts import put_json
from winnow.domain import DatasetStatus, ExperimentStatus
from winnow.settings import Settings
from winnow.store import artefacts, claims, experiments, rounds
from winnow.store.keys import KEPT_SECONDS
from winnow.store.tables import Artefact, Dataset, IdempotencyKey, Round
from winnow_coordinator.context import Coordinator
from winnow_coordinator.housekeeping import REST_SECONDS, Housekeeper
from winnow_coordinator.picking import Picker
from winnow_coordinator.steward import Steward

STATE = ("state/counters", "state/optimizer", "state/weights")


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keeper(coordinator: Coordinator, clock: Clock) -> Housekeeper:
    return Housekeeper(coordinator, clock)


@pytest.fixture
def begin(api: httpx.Client, coordinator: Coordinator) -> Callable[..., str]:
    add_dataset(coordinator)

    def post(**changes: object) -> str:
        return api.post("/experiments", json=experiment_body(**changes)).json()["id"]

    return post


def run_full(begin: Callable[..., str], driver: Driver, picker: Picker, count: int) -> str:
    """An experiment of `count` rounds that needs no sampler, run to its end."""
    id = begin(arm="full", full_evaluate_every=1, simclr={"epochs": count})
    for _ in range(count):
        driver.train()
        assert picker.pick_next()
    return id


def named(coordinator: Coordinator, id: str) -> dict[tuple[int, str], str]:
    """Keys by round and kind, of what the store may be losing at this moment."""
    with coordinator.database.read() as session:
        rows = session.scalars(select(Artefact).where(Artefact.experiment_id == id))
        return {(row.round, row.kind): row.key for row in rows}


def manifests(coordinator: Coordinator, id: str) -> dict[tuple[int, str], str]:
    """Keys by round and kind; every one of them has its file."""
    found = named(coordinator, id)
    for key in found.values():
        assert coordinator.artefacts.local(key).is_file()
    return found


def below(coordinator: Coordinator, folder: str) -> list[str]:
    return [file.name for file in coordinator.artefacts.lying(folder)]


def leave(coordinator: Coordinator, row: Round, attempt: int, name: str = "candidates-index.npy") -> str:
    """A file that an attempt stored and did not live to name."""
    key = f"experiments/{row.experiment_id}/rounds/{row.number:04d}/a{attempt}/{name}"
    put_json(coordinator.artefacts, key, [attempt])
    return key


def test_the_newest_states_stay_and_all_that_explains_picks(
    coordinator: Coordinator, keeper: Housekeeper, begin: Callable[..., str], driver: Driver, picker: Picker
) -> None:
    id = run_full(begin, driver, picker, 4)
    before = manifests(coordinator, id)
    keeper.walk()
    after = manifests(coordinator, id)
    gone = {(number, kind) for number in (0, 1) for kind in STATE}
    assert set(before) - set(after) == gone and set(after) < set(before)
    assert sorted(below(coordinator, "experiments")) == sorted(after.values())
    keeper.walk()
    assert manifests(coordinator, id) == after


def test_zero_keeps_every_state(
    coordinator: Coordinator, begin: Callable[..., str], driver: Driver, picker: Picker, settings: Settings
) -> None:
    id = run_full(begin, driver, picker, 3)
    keeps_all = Coordinator.open(Settings(**{**settings.model_dump(), "keep_states": 0}))
    Housekeeper(keeps_all).walk()
    assert {(number, kind) for number in range(3) for kind in STATE} <= set(manifests(coordinator, id))
    keeps_all.close()


def test_what_a_running_round_starts_from_is_never_touched(
    coordinator: Coordinator, begin: Callable[..., str], driver: Driver, picker: Picker, settings: Settings
) -> None:
    id = begin(arm="full", full_evaluate_every=1, simclr={"epochs": 3})
    miserly = Coordinator.open(Settings(**{**settings.model_dump(), "keep_states": 1}))
    keeper = Housekeeper(miserly)
    for number in range(3):
        driver.train()
        keeper.walk()
        assert {(number, kind) for kind in STATE} <= set(manifests(coordinator, id))
        assert picker.pick_next()
        keeper.walk()
        assert {(number, kind) for kind in STATE} <= set(manifests(coordinator, id)), "the next round starts from it"
    assert len([kind for _, kind in manifests(coordinator, id) if kind in STATE]) == len(STATE)
    miserly.close()


def test_dying_between_manifest_and_file_leaves_a_file_that_the_next_walk_finds(
    coordinator: Coordinator, keeper: Housekeeper, begin: Callable[..., str], driver: Driver, picker: Picker
) -> None:
    id = run_full(begin, driver, picker, 3)
    with coordinator.database.begin() as session:
        keys = artefacts.trim(session, id, keep=1)  # and here the coordinator is killed
    assert len(keys) == 2 * len(STATE)
    assert set(keys) <= set(below(coordinator, "experiments"))
    manifests(coordinator, id)
    keeper.walk()
    keeper.walk()
    assert sorted(below(coordinator, "experiments")) == sorted(manifests(coordinator, id).values())


def test_fenced_attempts_are_swept_and_the_one_at_work_is_not(
    coordinator: Coordinator, keeper: Housekeeper, begin: Callable[..., str], driver: Driver
) -> None:
    begin()
    first = driver.claim()
    orphan, half = leave(coordinator, first, 1), leave(coordinator, first, 1, "x.npy")
    hidden = coordinator.artefacts.local(half).with_name(".x.npy.0123456789ab")
    coordinator.artefacts.local(half).rename(hidden)  # a put that was killed
    keeper.walk()
    keeper.walk()
    assert len(below(coordinator, "experiments")) == 2, "the claim is alive, so they may yet be named"
    with coordinator.database.begin() as session:
        rounds.give_back(session, claims.TRAIN, first.id, 1, "lost", None, coordinator.patience)
    second = driver.claim()
    live, unknown = leave(coordinator, second, 2), leave(coordinator, second, 3)
    keeper.walk()
    assert orphan in below(coordinator, "experiments"), "found once; the next walk takes it"
    keeper.walk()
    assert sorted(below(coordinator, "experiments")) == [live, unknown]
    assert not hidden.parent.exists()
    with coordinator.database.begin() as session:
        result = {"visits": 1, "seconds": {}, "metrics": {}, "report": {}}
        at = {"experiment_id": second.experiment_id, "round": 0, "attempt": 2}
        stored = coordinator.artefacts.stat(live)
        assert stored is not None
        row = artefacts.row(stored, kind="candidates/index", manifest={}, **at)
        rounds.complete_training(session, second.id, 2, result=result, rows=[row])
    keeper.walk()
    keeper.walk()
    assert sorted(below(coordinator, "experiments")) == [live, unknown]


def checkpoint(coordinator: Coordinator, row: Round) -> str:
    key = leave(coordinator, row, row.attempt, "checkpoint-1-weights.npy")
    stored = coordinator.artefacts.stat(key)
    assert stored is not None
    at = {"experiment_id": row.experiment_id, "round": row.number, "attempt": row.attempt}
    with coordinator.database.begin() as session:
        made = artefacts.row(stored, kind="checkpoint/weights", manifest={}, **at)
        rounds.record(session, row.id, row.attempt, 30, [made])
        rounds.give_back(session, claims.TRAIN, row.id, row.attempt, "stopped", None, coordinator.patience)
    return key


def fail(coordinator: Coordinator, row: Round) -> None:
    with coordinator.database.begin() as session:
        rounds.give_back(session, claims.TRAIN, row.id, row.attempt, "rejected", "no", coordinator.patience)


def test_a_checkpoint_lasts_as_long_as_its_round_may_go_on(
    coordinator: Coordinator, keeper: Housekeeper, begin: Callable[..., str], driver: Driver
) -> None:
    id = begin()
    key = checkpoint(coordinator, driver.claim())
    with coordinator.database.begin() as session:
        experiments.transition(session, id, ExperimentStatus.PAUSING)
        experiments.transition(session, id, ExperimentStatus.PAUSED)
    for _ in range(2):
        keeper.walk()
    assert (0, "checkpoint/weights") in manifests(coordinator, id), "a resume goes on from it"
    with coordinator.database.begin() as session:
        experiments.transition(session, id, ExperimentStatus.RUNNING)
    fail(coordinator, driver.claim())
    for _ in range(2):
        keeper.walk()
    assert (0, "checkpoint/weights") in manifests(coordinator, id), "so it does after a failure"
    with coordinator.database.begin() as session:
        experiments.transition(session, id, ExperimentStatus.CANCELLING)
        rounds.cancel(session, id)
        experiments.transition(session, id, ExperimentStatus.CANCELLED)
    keeper.walk()
    assert not manifests(coordinator, id) and key not in below(coordinator, "experiments")


@pytest.mark.parametrize("year", [0, 4e9], ids=["stamped in 1970", "stamped in 2096"])
def test_answers_go_by_how_long_they_were_seen_whatever_their_stamps_say(
    coordinator: Coordinator, keeper: Housekeeper, clock: Clock, year: float
) -> None:
    store, patience = coordinator.artefacts, coordinator.settings.sweep_seconds
    keys = ["selections/a.json", "comparisons/b.json", "cancelled/selections/c.json"]
    for key in keys:
        put_json(store, key, {})
        os.utime(store.local(key), (year, year))
    keeper.walk()
    clock.now += patience - 1
    put_json(store, keys[0], {"changed": True})
    keeper.walk()
    assert sorted(below(coordinator, "selections") + below(coordinator, "comparisons")) == [keys[1], keys[0]]
    clock.now += 1
    keeper.walk()
    assert [file for folder in ("selections", "comparisons", "cancelled") for file in below(coordinator, folder)] == [
        keys[0]
    ]
    clock.now += patience
    keeper.walk()
    assert not below(coordinator, "selections")


def test_outdated_answers_go_with_a_walk_and_not_with_somebody_elses_request(
    api: httpx.Client, coordinator: Coordinator, keeper: Housekeeper
) -> None:
    """Who deleted them all would wait for everybody that does, or works on one."""
    add_dataset(coordinator)

    def post(key: str) -> str:
        return api.post("/experiments", json=experiment_body(), headers={"Idempotency-Key": key}).json()["id"]

    def kept() -> set[str]:
        with coordinator.database.read() as session:
            return set(session.scalars(select(IdempotencyKey.key)))

    first = {key: post(key) for key in ("old", "older")}
    with coordinator.database.begin() as session:
        session.execute(update(IdempotencyKey).values(created_at=IdempotencyKey.created_at - KEPT_SECONDS - 1))
    assert post("new") != first["old"] and kept() == {"old", "older", "new"}
    assert post("old") != first["old"], "its answer is kept no more"
    keeper.walk()
    assert kept() == {"old", "new"}


def test_uploads_are_the_samplers_own(coordinator: Coordinator, keeper: Housekeeper, clock: Clock) -> None:
    put_json(coordinator.artefacts, "embeddings/x/about.json", {})
    for _ in range(3):
        keeper.walk()
        clock.now += 2 * coordinator.settings.sweep_seconds
    assert below(coordinator, "embeddings") == ["embeddings/x/about.json"]


def test_shards_of_lost_ingests_go(coordinator: Coordinator, keeper: Housekeeper) -> None:
    row = add_dataset(coordinator)
    with coordinator.database.begin() as session:
        session.execute(update(Dataset).values(attempt=3, location=f"datasets/{row.id}/a2"))
    for attempt in (1, 2, 4):
        put_json(coordinator.artefacts, f"datasets/{row.id}/a{attempt}/shard-0.npy", attempt)
    put_json(coordinator.artefacts, f"datasets/{row.id}/a2/parts/shard-0.npy.json", "of no use now")
    put_json(coordinator.artefacts, f"datasets/{'0' * 24}/a1/shard-0.npy", "of another database")
    for _ in range(2):
        keeper.walk()
    left = [f"datasets/{row.id}/a2/shard-0.npy", f"datasets/{row.id}/a4/shard-0.npy"]
    assert sorted(below(coordinator, "datasets")) == sorted([*left, f"datasets/{'0' * 24}/a1/shard-0.npy"])


@pytest.mark.parametrize("status", [status for status in DatasetStatus if status != DatasetStatus.REMOVING])
def test_shards_that_the_next_attempt_goes_on_from_stay(
    coordinator: Coordinator, keeper: Housekeeper, status: DatasetStatus
) -> None:
    row = add_dataset(coordinator)
    with coordinator.database.begin() as session:
        location = f"datasets/{row.id}/a3" if status == DatasetStatus.READY else None
        session.execute(update(Dataset).values(attempt=3, status=status, location=location))
    names = ("a1/shard-0.npy", "a1/parts/shard-0.npy.json", "a3/.shard-1.npy.0a0b", "a3/shard-0.npy")
    for name in names:
        path = coordinator.settings.artefact_dir / "datasets" / row.id / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    for _ in range(2):
        keeper.walk()
    kept = ("a3/shard-0.npy",) if status == DatasetStatus.READY else names
    assert sorted(below(coordinator, "datasets")) == sorted(f"datasets/{row.id}/{name}" for name in kept)


def test_several_coordinators_may_sweep_at_once(
    coordinator: Coordinator, begin: Callable[..., str], driver: Driver, picker: Picker
) -> None:
    ids = [run_full(begin, driver, picker, 3) for _ in range(3)]
    keepers = [Housekeeper(coordinator) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            list(pool.map(Housekeeper.walk, keepers))
    kept = [key for id in ids for key in manifests(coordinator, id).values()]
    assert sorted(below(coordinator, "experiments")) == sorted(kept)
    assert len([key for key in kept if "state" in key]) == len(ids) * 2 * len(STATE)


def test_a_step_is_a_few_experiments_and_a_walk_is_followed_by_a_rest(
    coordinator: Coordinator, keeper: Housekeeper, clock: Clock, begin: Callable[..., str], driver: Driver
) -> None:
    for _ in range(12):
        begin()
    last = driver.claim()  # the oldest waits longest, and the walk begins with the newest
    orphan = leave(coordinator, last, 1)
    with coordinator.database.begin() as session:
        rounds.give_back(session, claims.TRAIN, last.id, 1, "lost", None, coordinator.patience)
    for _ in range(3):
        keeper.step()
    assert orphan in below(coordinator, "experiments"), "two steps made the first walk, and then it rested"
    clock.now += REST_SECONDS
    keeper.step()
    assert orphan in below(coordinator, "experiments")
    keeper.step()
    assert orphan not in below(coordinator, "experiments")


def test_the_steward_sweeps(
    coordinator: Coordinator, begin: Callable[..., str], driver: Driver, picker: Picker
) -> None:
    id = run_full(begin, driver, picker, 4)
    steward = Steward(coordinator)
    steward.start()
    try:
        wait_until(lambda: (0, "state/weights") not in named(coordinator, id), 20, "round 0's state to go")
    finally:
        steward.stop()
    assert (3, "state/weights") in manifests(coordinator, id)


def test_the_command_counts_and_removes_what_nothing_names(
    coordinator: Coordinator, begin: Callable[..., str], driver: Driver, winnow: Winnow, settings: Settings
) -> None:
    begin()
    row = driver.claim()
    orphan = leave(coordinator, row, 1)
    with coordinator.database.begin() as session:
        rounds.give_back(session, claims.TRAIN, row.id, 1, "lost", None, coordinator.patience)
    live, unknown = leave(coordinator, driver.claim(), 2), leave(coordinator, row, 3)
    put_json(coordinator.artefacts, "selections/a.json", {})
    put_json(coordinator.artefacts, f"experiments/{'0' * 24}/rounds/0000/a1/x.npy", "of another database")
    place = ["--state-dir", str(settings.state_dir), "--json"]
    heaps = winnow("sweep", "--dry-run", *place).json
    assert [heap["files"] for heap in heaps] == [1, 1, 2]
    assert heaps[0]["bytes"] == coordinator.artefacts.local(orphan).stat().st_size
    assert orphan in below(coordinator, "experiments")
    assert winnow("sweep", *place).code == 0
    assert {live, unknown} <= set(below(coordinator, "experiments")) and orphan not in below(coordinator, "experiments")
    assert winnow("sweep", *place).json[0]["files"] == 0
    nowhere = winnow("sweep", "--state-dir", "elsewhere")
    assert nowhere.code == 1 and "no artefact store at" in nowhere.err and not Path("elsewhere").exists()
