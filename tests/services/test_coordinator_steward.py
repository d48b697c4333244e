"""The steward: picks, leases, bells, pauses; rounds are driven with the store as a trainer would."""

import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
from conftest import wait_until
from processes import free_port
from services.conftest import Driver, add_dataset, experiment_body, serving
from sqlalchemy import select, update

from winnow.domain import Arm, ExperimentSpec
from winnow.settings import Settings
from winnow.store import artefacts, claims, datasets, experiments, picks, rounds, workers
from winnow.store.tables import Dataset, Round
from winnow_coordinator.context import Coordinator
from winnow_coordinator.picking import Picker
from winnow_coordinator.steward import Steward
from winnow_coordinator.tidying import Tidier
from winnow_sampler.app import make_app as make_sampler


@pytest.fixture
def sampler_port() -> int:
    return free_port()


@pytest.fixture
def settings(settings: Settings, sampler_port: int) -> Settings:
    return Settings(**{**settings.model_dump(), "sampler_url": f"http://127.0.0.1:{sampler_port}"})


@pytest.fixture
def sampler(settings: Settings, sampler_port: int) -> Iterator[str]:
    with serving(make_sampler(settings), port=sampler_port) as url:
        yield url


def begin(api: httpx.Client, **changes: Any) -> str:
    response = api.post("/experiments", json=experiment_body(**changes))
    assert response.status_code == 201, response.text
    return response.json()["id"]


def selection(api: httpx.Client, id: str, number: int) -> list[int]:
    return [item["idx"] for item in api.get(f"/experiments/{id}/rounds/{number}/selection").json()["items"]]


def array(api: httpx.Client, id: str, number: int, kind: str) -> np.ndarray[Any, Any]:
    response = api.get(f"/experiments/{id}/rounds/{number}/artefacts/candidates/{kind}")
    assert response.status_code == 200, response.text
    return np.load(io.BytesIO(response.content))


@pytest.mark.usefixtures("sampler")
def test_entropy_runs_from_first_to_last_round(
    api: httpx.Client, coordinator: Coordinator, driver: Driver, picker: Picker
) -> None:
    add_dataset(coordinator)
    id = begin(api)
    for number in range(3):
        assert not picker.pick_next()
        driver.train()
        assert picker.pick_next()
        assert api.get(f"/experiments/{id}/rounds/{number}").json()["status"] == "done"
    body = api.get(f"/experiments/{id}").json()
    assert (body["status"], body["rounds_done"], body["current_round"]) == ("completed", 3, None)
    batches = [selection(api, id, number) for number in range(3)]
    assert len({idx for batch in batches for idx in batch}) == 15
    for number in (1, 2):
        p = array(api, id, number - 1, "probabilities").astype(np.float64)
        entropy = -(p * np.log(p)).sum(axis=1)
        highest = array(api, id, number - 1, "index")[np.argsort(-entropy, kind="stable")[:5]]
        assert batches[number] == highest.tolist()


@pytest.mark.usefixtures("sampler")
def test_what_a_round_shows_after_its_pick(
    api: httpx.Client, coordinator: Coordinator, driver: Driver, picker: Picker
) -> None:
    add_dataset(coordinator)
    id = begin(api)
    driver.train()
    picker.pick_next()
    first = api.get(f"/experiments/{id}/rounds/0").json()
    assert set(first["seconds"]) == {"train", "embed", "pick", "wait"} and first["seconds"]["wait"] >= 0
    assert first["report"]["pick"]["picked"] == 5 and first["report"]["pick"]["notes"] == []
    assert {item["kind"] for item in first["artefacts"]} >= {"candidates/index", "selected/embeddings"}
    rows = api.get(f"/experiments/{id}/metrics").json()
    assert rows["floors"] == {"colour_histogram": {"f1": 0.25}, "untrained_encoder": {"f1": 0.4}}
    assert rows["items"] == [
        {"round": 0, "samples": 5, "visits": 100, "seconds": sum(first["seconds"].values()), "f1": 0.5}
    ]
    assert api.get(f"/experiments/{id}/rounds/1").json()["samples"] == 10
    page = api.get(f"/experiments/{id}/rounds", params={"limit": 1}).json()
    rest = api.get(f"/experiments/{id}/rounds", params={"cursor": page["next"]}).json()
    assert [item["number"] for item in page["items"] + rest["items"]] == [0, 1]


@pytest.mark.usefixtures("sampler")
@pytest.mark.parametrize(
    "changes",
    [
        {"arm": "k_center", "centers": "none"},
        *({"arm": arm.value} for arm in Arm if arm is not Arm.FULL),
    ],
)
def test_other_arms_pick_candidates(
    api: httpx.Client, coordinator: Coordinator, driver: Driver, picker: Picker, changes: dict[str, Any]
) -> None:
    add_dataset(coordinator)
    id = begin(api, **changes)
    driver.train()
    assert picker.pick_next()
    batch = selection(api, id, 1)
    assert len(set(batch)) == 5
    assert set(batch) <= set(array(api, id, 0, "index").tolist()) - set(selection(api, id, 0))


@pytest.mark.usefixtures("sampler")
def test_random_from_the_pool_leaves_the_candidates(
    api: httpx.Client, coordinator: Coordinator, driver: Driver, picker: Picker
) -> None:
    add_dataset(coordinator)
    id = begin(api, arm="random", random_from="pool", budget=10, candidates=10, rounds=4)
    driver.train()
    assert picker.pick_next()
    first, second = set(selection(api, id, 0)), set(selection(api, id, 1))
    assert len(second) == 10 and not first & second and second <= set(range(40))
    assert second != set(array(api, id, 0, "index").tolist())


@pytest.mark.usefixtures("sampler")
def test_a_short_last_batch_is_picked_and_said(
    api: httpx.Client, coordinator: Coordinator, driver: Driver, picker: Picker
) -> None:
    dataset = add_dataset(coordinator, pool="ababababab", labelled="ab", test="ab")
    spec = ExperimentSpec.model_validate(experiment_body(budget=6, rounds=3))  # the API refuses 3 x 6 of 10
    with coordinator.database.begin() as session:
        experiment = experiments.insert(session, spec, dataset.id)
        pool = datasets.indices(session, dataset.id, "pool")
        picks.insert(session, experiment.id, 0, pool[:6], [0.0] * 6)
        rounds.insert(session, experiment.id, 0, samples=6)
    driver.train()
    assert picker.pick_next()
    assert sorted(selection(api, experiment.id, 1)) == pool[6:].tolist()
    report = api.get(f"/experiments/{experiment.id}/rounds/0").json()["report"]["pick"]
    assert (report["picked"], report["budget"]) == (4, 6) and "picked 4 of the budget 6" in report["notes"][0]
    driver.train()
    assert picker.pick_next()  # nothing is left: the experiment ends, and says why
    body = api.get(f"/experiments/{experiment.id}").json()
    assert (body["status"], body["rounds_done"]) == ("completed", 2)
    assert "picked 0 of the budget 6" in body["latest"]["report"]["pick"]["notes"][0]


def test_full_and_visits_end_without_the_sampler(
    api: httpx.Client, coordinator: Coordinator, driver: Driver, picker: Picker
) -> None:
    add_dataset(coordinator)
    full = begin(api, arm="full", full_evaluate_every=1, simclr={"epochs": 2})
    for _ in range(2):
        driver.train()
        assert picker.pick_next()
    assert api.get(f"/experiments/{full}").json()["status"] == "completed"
    limited = begin(api, visits=51)
    driver.train(visits=50)  # the one that is left has no other to be contrasted with
    assert picker.pick_next()
    body = api.get(f"/experiments/{limited}").json()
    assert (body["status"], body["rounds_done"]) == ("completed", 1)


def test_a_sampler_that_is_down_is_waited_for(
    api: httpx.Client,
    coordinator: Coordinator,
    driver: Driver,
    picker: Picker,
    settings: Settings,
    sampler_port: int,
) -> None:
    add_dataset(coordinator)
    id = begin(api)
    driver.train()
    for _ in range(2):
        wait_until(picker.pick_next, 60, "the round to be claimable again")
        shown = api.get(f"/experiments/{id}").json()["current_round"]
        assert (shown["status"], shown["failures"], shown["losses"]) == ("trained", 0, 0)
        assert "does not answer" in shown["error"]
        with coordinator.database.read() as session:
            row = rounds.get(session, id, 0)
            assert row.not_before > row.waiting_since, "not at once"
    with serving(make_sampler(settings), port=sampler_port):
        wait_until(picker.pick_next, 60, "the round to be claimable again")
    assert api.get(f"/experiments/{id}/rounds/0").json()["status"] == "done"


@pytest.mark.usefixtures("sampler")
def test_a_stopping_coordinator_gives_its_round_back(
    api: httpx.Client, coordinator: Coordinator, driver: Driver
) -> None:
    add_dataset(coordinator)
    id = begin(api, arm="k_center")
    driver.train()
    picker = Picker(coordinator, "steward")
    coordinator.stopping.set()
    assert picker.pick_next()
    picker.close()
    shown = api.get(f"/experiments/{id}/rounds/0").json()
    assert shown["status"] in ("done", "trained")  # done where the sampler answered at once
    assert (shown["failures"], shown["losses"], shown["error"]) == (0, 0, None)


@pytest.mark.usefixtures("sampler")
def test_a_round_without_its_arrays_fails_with_a_reason(
    api: httpx.Client, coordinator: Coordinator, driver: Driver, picker: Picker
) -> None:
    add_dataset(coordinator)
    id = begin(api)
    row = driver.claim()
    result = {"visits": 1, "seconds": {}, "metrics": {}, "report": {}}
    with coordinator.database.begin() as session:
        rounds.complete_training(session, row.id, row.attempt, result=result, rows=[])
    for _ in range(coordinator.settings.max_failures):
        wait_until(picker.pick_next, 60, "the round to be claimable again")
    body = api.get(f"/experiments/{id}").json()
    assert body["status"] == "failed" and "candidates/index" in body["error"]


@pytest.mark.usefixtures("sampler")
def test_a_round_whose_arrays_have_changed_fails_with_a_reason(
    api: httpx.Client, coordinator: Coordinator, driver: Driver, picker: Picker
) -> None:
    add_dataset(coordinator)
    id = begin(api)
    driver.train()
    with coordinator.database.read() as session:
        stored = artefacts.of_round(session, id, 0)["candidates/probabilities"]
    path = coordinator.artefacts.local(stored.key)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\xff")
    for _ in range(coordinator.settings.max_failures):
        wait_until(picker.pick_next, 60, "the round to be claimable again")
    body = api.get(f"/experiments/{id}").json()
    assert body["status"] == "failed" and "sha256" in body["error"]
    path.write_bytes(whole)
    assert api.post(f"/experiments/{id}/resume").json()["current_round"]["status"] == "trained", "not trained again"
    assert picker.pick_next()
    assert api.get(f"/experiments/{id}").json()["rounds_done"] == 1


def test_pause_and_cancel_settle_once_nobody_works(api: httpx.Client, coordinator: Coordinator, driver: Driver) -> None:
    add_dataset(coordinator)
    tidier = Tidier(coordinator)
    id = begin(api)
    row = driver.claim()
    api.post(f"/experiments/{id}/pause")
    tidier.tidy()
    assert api.get(f"/experiments/{id}").json()["status"] == "pausing"
    with coordinator.database.begin() as session:
        rounds.give_back(session, claims.TRAIN, row.id, row.attempt, "stopped", None, coordinator.patience)
    tidier.tidy()
    assert api.get(f"/experiments/{id}").json()["status"] == "paused"
    api.post(f"/experiments/{id}/resume")
    api.post(f"/experiments/{id}/cancel")
    tidier.tidy()
    body = api.get(f"/experiments/{id}").json()
    assert body["status"] == "cancelled" and body["ended_at"] is not None
    assert api.get(f"/experiments/{id}/rounds/0").json()["status"] == "cancelled"


def test_lost_leases_go_back_and_are_counted(api: httpx.Client, coordinator: Coordinator, driver: Driver) -> None:
    add_dataset(coordinator)
    id = begin(api)
    driver.claim()
    with coordinator.database.begin() as session:
        session.execute(update(Round).values(lease_until=0.0))
    tidier = Tidier(coordinator)
    tidier.tidy()
    tidier.tidy()
    shown = api.get(f"/experiments/{id}/rounds/0").json()
    assert (shown["status"], shown["losses"]) == ("queued", 1)
    assert "trainer stopped renewing" in shown["error"]


def test_a_lost_trainer_of_a_cancelled_experiment_is_not_tried_again(
    api: httpx.Client, coordinator: Coordinator, driver: Driver
) -> None:
    add_dataset(coordinator)
    id = begin(api)
    driver.claim()
    api.post(f"/experiments/{id}/cancel")
    with coordinator.database.begin() as session:
        session.execute(update(Round).values(lease_until=0.0))
    Tidier(coordinator).tidy()
    assert api.get(f"/experiments/{id}").json()["status"] == "cancelled"
    shown = api.get(f"/experiments/{id}/rounds/0").json()
    assert shown["status"] == "cancelled" and shown["ended_at"] is not None


@pytest.mark.parametrize(("busy_with", "again"), [(None, True), ("another round", False)])
def test_waiting_rows_are_rung_again_for_an_idle_trainer(
    api: httpx.Client, coordinator: Coordinator, busy_with: str | None, again: bool
) -> None:
    add_dataset(coordinator)
    id = begin(api)

    def ring_again() -> bool:
        with coordinator.database.begin() as session:
            session.execute(update(Round).values(rung_at=1.0))
        Tidier(coordinator).ring_again()
        with coordinator.database.read() as session:
            return rounds.get(session, id, 0).rung_at > 1.0

    assert not ring_again(), "nobody would take the bell off the broker"
    with coordinator.database.begin() as session:
        seen = {"host": "h", "pid": 1, "devices": [], "version": "0"}
        workers.report(session, "w", busy_with=busy_with, **seen)
    assert ring_again() is again


@pytest.mark.usefixtures("sampler")
def test_two_stewards_never_pick_twice(api: httpx.Client, coordinator: Coordinator, driver: Driver) -> None:
    add_dataset(coordinator)
    ids = [begin(api, name=f"e{n}", rounds=2) for n in range(3)]
    both = [Steward(coordinator), Steward(coordinator)]
    for steward in both:
        steward.start()
    try:
        for _ in range(6):
            wait_until(lambda: _waits(coordinator), 60, "a round to train")
            driver.train()
        wait_until(lambda: _statuses(api) == {"completed"}, 60, "every experiment to complete")
    finally:
        for steward in both:
            steward.stop()
    for id in ids:
        assert len({*selection(api, id, 0), *selection(api, id, 1)}) == 10


def test_a_dataset_whose_trainer_is_lost_is_queued_again(api: httpx.Client, coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    with coordinator.database.begin() as session:
        session.execute(update(Dataset).values(status="ingesting", lease_until=0.0))
    Tidier(coordinator).tidy()
    assert api.get("/datasets/tissue").json()["status"] == "queued"


def _statuses(api: httpx.Client) -> set[str]:
    return {item["status"] for item in api.get("/experiments").json()["items"]}


def _waits(coordinator: Coordinator) -> bool:
    with coordinator.database.read() as session:
        return session.scalar(select(Round.id).where(Round.status == "queued").limit(1)) is not None


def test_a_database_that_is_down_is_said_in_a_line_and_waited_for(settings: Settings) -> None:
    gone = {"database_url": f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none"}
    coordinator = Coordinator.open(Settings(**{**settings.model_dump(), **gone}))
    steward = Steward(coordinator)
    with structlog.testing.capture_logs() as said:
        steward.start()
        try:
            wait_until(
                lambda: sum("picker" in line.get("thread", "") for line in said) >= 4, 20, "the pickers to try again"
            )
        finally:
            steward.stop()
            coordinator.close()
    assert {line["event"] for line in said} == {"database.down"}
    assert not any(line.get("exc_info") for line in said), "a stack trace says nothing here, many times a second"
