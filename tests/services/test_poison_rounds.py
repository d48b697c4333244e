"""A round that fails at every attempt is given up, and people hear why: of all attempts."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import is_blocked, wait_until
from rich.console import Console
from services.conftest import Driver, Winnow, add_dataset, experiment_body
from sqlalchemy import update
from sqlalchemy.orm import Session

from winnow.client import Client
from winnow.domain import ExperimentSpec
from winnow.errors import Fenced
from winnow.settings import Settings
from winnow.store import claims, rounds
from winnow.store.tables import Experiment, Round
from winnow_cli.live import follow
from winnow_coordinator import experiments
from winnow_coordinator.context import Coordinator
from winnow_coordinator.picking import Picker
from winnow_coordinator.schemas import ExperimentView
from winnow_coordinator.tidying import Tidier


def test_a_poison_round_stops_after_the_cap_with_the_reasons_of_all_attempts(
    coordinator: Coordinator, driver: Driver, winnow: Winnow, url: str
) -> None:
    add_dataset(coordinator)
    api = Client(url)
    id = api.create_experiment(experiment_body())["id"]
    tidier, cap = Tidier(coordinator), coordinator.settings.max_failures
    row = driver.claim()
    with coordinator.database.begin() as session:
        session.execute(update(Round).values(lease_until=0.0))
    tidier.tidy()
    for attempt in range(2, cap + 2):
        row = driver.claim()
        with coordinator.database.begin() as session:
            boom = f"CUDA error {attempt}"
            rounds.give_back(session, claims.TRAIN, row.id, row.attempt, "failed", boom, coordinator.patience)
            session.execute(update(Round).values(not_before=0.0))
    body = api.experiment(id)
    assert (body["status"], body["error"]) == ("failed", f"round 0: CUDA error {cap + 1}")
    attempts = api.round(id, 0)["attempts"]
    assert [one["attempt"] for one in attempts] == list(range(1, cap + 2))
    assert [one["cause"] for one in attempts] == ["lost"] + ["failed"] * cap
    said = winnow("watch", id)
    assert said.code == 1
    reasons = [
        "attempt 1 lost: trainer stopped renewing",
        *(f"attempt {n} failed: CUDA error {n}" for n in (2, cap + 1)),
    ]
    assert all(reason in said.err for reason in reasons), said.err
    assert f"winnow resume {id}" in said.err
    with coordinator.database.begin() as session:
        assert claims.claim(session, claims.TRAIN, "w", 30) is None, "it is not tried again by itself"
    api.close()


def test_a_spec_that_is_valid_no_more_holds_up_no_other_round(
    coordinator: Coordinator, driver: Driver, picker: Picker, url: str
) -> None:
    """A rule may be tightened by an upgrade."""
    add_dataset(coordinator)
    full = experiment_body(arm="full", full_evaluate_every=1, simclr={"epochs": 2})
    with Client(url) as api:
        bad, good = (api.create_experiment(full | {"name": name})["id"] for name in ("bad", "good"))
        for _ in range(2):
            driver.train()
        with coordinator.database.begin() as session:
            row = session.get_one(Experiment, bad)
            row.spec = row.spec | {"positive_class": "a\x00"}
        for _ in range(coordinator.settings.max_failures + 1):
            wait_until(picker.pick_next, 60, "a round to be claimable")
        assert api.round(good, 0)["status"] == "done"
        failed = api.experiment(bad)
        assert failed["status"] == "failed" and "positive_class" in failed["error"]
        assert len(api.round(bad, 0)["attempts"]) == coordinator.settings.max_failures


def test_an_experiment_that_failed_is_resumed_where_it_failed(
    coordinator: Coordinator, driver: Driver, winnow: Winnow, url: str
) -> None:
    add_dataset(coordinator)
    cap = coordinator.settings.max_failures
    with Client(url) as api:
        id = api.create_experiment(experiment_body())["id"]
        for turn in range(2):
            for _ in range(cap):
                fail(coordinator, driver.claim())
            failed = api.experiment(id)
            assert (failed["status"], failed["current_round"], failed["ended_at"] is None) == ("failed", None, False)
            heard = [event.type for event in api.events(id)]
            assert (heard[-1], heard.count("round.resumed")) == ("experiment.failed", turn)
            with coordinator.database.begin() as session:
                session.execute(update(Round).values(rung_at=1.0))
            assert winnow("resume", id).out == "e: running\n"
            going = api.experiment(id)
            assert (going["status"], going["error"], going["ended_at"]) == ("running", None, None)
            assert going["current_round"]["status"] == "queued" and going["current_round"]["error"] is None
            with coordinator.database.read() as session:
                assert rounds.get(session, id, 0).rung_at > 1.0, "trainers hear of it"
        driver.train()
        assert api.experiment(id)["latest"]["number"] == 0
        attempts = [one["attempt"] for one in api.round(id, 0)["attempts"]]
        assert attempts == list(range(1, 2 * cap + 1)), "what was tried before is still told"
    refused = winnow("resume", id)
    assert (
        refused.code != 0 and f"e ({id}) is running and cannot be resumed; it can be paused or cancelled" in refused.err
    )


def test_one_that_is_resumed_is_followed_again(coordinator: Coordinator, driver: Driver, url: str) -> None:
    add_dataset(coordinator)
    lines, told = io.StringIO(), threading.Event()
    with Client(url) as api, ThreadPoolExecutor(1) as pool:
        ids = [api.create_experiment(experiment_body(name=name))["id"] for name in ("first", "second")]
        with coordinator.database.begin() as session:
            give_up(coordinator, driver.claim(), session)
        followed = pool.submit(follow, api, ids, ended=told.is_set, screen=Console(file=lines, width=200))
        wait_until(lambda: "first: failed" in lines.getvalue(), 60, "the failure to be seen")
        api.resume(ids[0])
        wait_until(lambda: "first: running" in lines.getvalue() or followed.done(), 60, "it to be looked at again")
        told.set()
        assert [view["status"] for view in followed.result(60)] == ["running", "created"]


def test_a_failure_and_an_order_to_go_on_in_the_same_moment(postgres_url: str, settings: Settings) -> None:
    coordinator, id, row = one_that_trains(postgres_url, settings)
    with coordinator.database.begin() as session:
        experiments.pause(session, id)
    with ThreadPoolExecutor(1) as pool:
        with coordinator.database.begin() as session:
            give_up(coordinator, row, session)
            resumed = pool.submit(resume, coordinator, id)
            wait_until(lambda: is_blocked(coordinator.database), 60, "the order to wait for the round's end")
        resumed.result(60)
    view = shown(coordinator, id)
    assert view.status == "running" and view.current_round is not None
    assert view.current_round.status == "queued", "an experiment that goes on has no round that failed"
    coordinator.close()


def test_an_attempt_that_is_lost_and_an_order_to_go_on_do_not_wait_for_each_other(
    postgres_url: str, settings: Settings
) -> None:
    coordinator, id, row = one_that_trains(postgres_url, settings)
    with coordinator.database.begin() as session:
        give_up(coordinator, row, session)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(Fenced), coordinator.database.begin() as session:
            session.get_one(Round, row.id, with_for_update=True)
            resumed = pool.submit(resume, coordinator, id)
            wait_until(lambda: is_blocked(coordinator.database), 60, "the order to wait for the attempt")
            rounds.give_back(session, claims.TRAIN, row.id, row.attempt, "stopped", None, coordinator.patience)
        resumed.result(60)
    assert shown(coordinator, id).status == "running"
    coordinator.close()


def one_that_trains(database_url: str, settings: Settings) -> tuple[Coordinator, str, Round]:
    """A coordinator on that database, an experiment, and its round 0, claimed."""
    coordinator = Coordinator.open(Settings(**{**settings.model_dump(), "database_url": database_url}))
    coordinator.database.migrate()
    add_dataset(coordinator)
    planned = experiments.plan(coordinator, ExperimentSpec.model_validate(experiment_body()))
    with coordinator.database.begin() as session:
        id = experiments.begin(coordinator, session, planned).id
    return coordinator, id, Driver(coordinator).claim()


def resume(coordinator: Coordinator, id: str) -> None:
    with coordinator.database.begin() as session:
        experiments.resume(coordinator, session, id)


def shown(coordinator: Coordinator, id: str) -> ExperimentView:
    with coordinator.database.read() as session:
        return experiments.get(session, id)


def give_up(coordinator: Coordinator, row: Round, session: Session) -> None:
    rounds.give_back(session, claims.TRAIN, row.id, row.attempt, "rejected", "no", coordinator.patience)


def fail(coordinator: Coordinator, row: Round) -> None:
    with coordinator.database.begin() as session:
        rounds.give_back(session, claims.TRAIN, row.id, row.attempt, "failed", "boom", coordinator.patience)
        session.execute(update(Round).values(not_before=0.0))
