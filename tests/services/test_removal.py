"""Experiments and datasets that people remove: over REST, on the command line, and what the steward does after it."""

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import wait_until
from services.conftest import Driver, Winnow, add_dataset, experiment_body, move, problem
from sqlalchemy import update

from winnow.artefacts import put_json
from winnow.client import ApiProblem, Client
from winnow.domain import ExperimentStatus
from winnow.settings import Settings
from winnow.store import experiments, removals, rounds
from winnow.store.tables import Removal
from winnow_cli.commands.experiments import watch_until_the_end
from winnow_cli.hearing import hear
from winnow_coordinator.context import Coordinator
from winnow_coordinator.housekeeping import REST_SECONDS, Housekeeper
from winnow_coordinator.steward import Steward

OVER = (ExperimentStatus.CANCELLING, ExperimentStatus.CANCELLED)


def noted(coordinator: Coordinator) -> list[str]:
    with coordinator.database.read() as session:
        return list(removals.places(session, seconds=0))


def show_final(api: httpx.Client, coordinator: Coordinator, id: str) -> bytes:
    """A cancelled experiment with its round, as the coordinator then remembers it."""
    with coordinator.database.begin() as session:
        rounds.cancel(session, id)
    assert api.get(f"/experiments/{id}").is_success
    view = coordinator.final_views.get(id)
    assert view is not None
    return view


@pytest.fixture
def begin(api: httpx.Client, coordinator: Coordinator) -> Callable[..., str]:
    add_dataset(coordinator)
    return lambda **changes: api.post("/experiments", json=experiment_body(**changes)).json()["id"]


def test_only_one_that_has_ended_is_removed(
    api: httpx.Client, coordinator: Coordinator, begin: Callable[..., str]
) -> None:
    id, other = begin(), begin(name="other")
    refused = problem(api.delete(f"/experiments/{id}"), 409, "wrong-state")
    assert refused["detail"] == f"e ({id}) is created and cannot be removed; cancel it first"
    move(coordinator, id, OVER[0])
    assert "wait until it is cancelled" in problem(api.delete(f"/experiments/{id}"), 409, "wrong-state")["detail"]
    move(coordinator, id, OVER[1])
    show_final(api, coordinator, id)
    assert api.delete(f"/experiments/{id}").status_code == 204
    for answer in (
        api.get(f"/experiments/{id}"),
        api.get(f"/experiments/{id}/rounds/0"),
        api.delete(f"/experiments/{id}"),
    ):
        problem(answer, 404, "not-found")
    assert [view["id"] for view in api.get("/experiments").json()["items"]] == [other]


def test_another_coordinator_forgets_it_with_its_stewards_next_step(
    api: httpx.Client, coordinator: Coordinator, begin: Callable[..., str]
) -> None:
    id = begin()
    move(coordinator, id, *OVER)
    show_final(api, coordinator, id)
    with coordinator.database.begin() as session:  # as another coordinator does
        experiments.remove(session, id)
    assert id not in api.get("/experiments").text, "a list is at once without it"
    Housekeeper(coordinator).step()
    problem(api.get(f"/experiments/{id}"), 404, "not-found")


def test_a_view_that_was_read_before_the_removal_is_not_remembered_after_it(
    api: httpx.Client, coordinator: Coordinator, begin: Callable[..., str]
) -> None:
    id = begin()
    move(coordinator, id, *OVER)
    late = show_final(api, coordinator, id)
    assert api.delete(f"/experiments/{id}").status_code == 204
    coordinator.final_views.put(id, late)
    problem(api.get(f"/experiments/{id}"), 404, "not-found")


def test_a_dataset_goes_when_no_experiment_is_on_it(
    api: httpx.Client, coordinator: Coordinator, begin: Callable[..., str]
) -> None:
    ids = [begin() for _ in range(7)]
    refused = problem(api.delete("/datasets/tissue"), 409, "in-use")
    assert ids[0] in refused["detail"] and "2 more" in refused["detail"] and "winnow remove" in refused["detail"]
    for id in ids:
        move(coordinator, id, *OVER)
        assert api.delete(f"/experiments/{id}").status_code == 204
    assert api.delete("/datasets/tissue").status_code == 204
    problem(api.get("/datasets/tissue"), 404, "not-found")
    problem(api.get("/datasets/tissue/samples"), 404, "not-found")
    problem(api.post("/experiments", json=experiment_body()), 404, "not-found")
    add_dataset(coordinator)


def test_files_go_after_their_rows_whoever_removed_them(
    api: httpx.Client, coordinator: Coordinator, begin: Callable[..., str], driver: Driver
) -> None:
    id, other = begin(), begin(name="other")
    driver.train(), driver.train()
    move(coordinator, id, *OVER)
    kept = coordinator.artefacts.list(f"experiments/{other}")
    assert api.delete(f"/experiments/{id}").status_code == 204
    assert coordinator.artefacts.list(f"experiments/{id}"), "the request removes rows alone; it may die here"
    clock = [0.0]
    keeper = Housekeeper(coordinator, lambda: clock[0])
    keeper.step()
    assert coordinator.artefacts.list("experiments") == kept
    assert not (coordinator.settings.artefact_dir / "experiments" / id).exists()
    put_json(coordinator.artefacts, f"experiments/{id}/rounds/0000/a1/late.json", "of a worker that lost its claim")
    keeper.walk()
    keeper.step()
    assert coordinator.artefacts.list("experiments") == kept and noted(coordinator) == [f"experiments/{id}"]
    with coordinator.database.begin() as session:
        session.execute(update(Removal).values(at=Removal.at - coordinator.settings.sweep_seconds - 1))
    keeper.walk()
    keeper.step()
    assert noted(coordinator) == []


@pytest.mark.parametrize("refused", ["unlink", "scandir"])
def test_a_place_that_cannot_be_emptied_stays_noted_until_a_later_walk(
    api: httpx.Client,
    coordinator: Coordinator,
    begin: Callable[..., str],
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
    refused: str,
) -> None:
    id, other = begin(), begin(name="other")
    driver.train(), driver.train()
    for one in (id, other):
        move(coordinator, one, *OVER)
        api.delete(f"/experiments/{one}")
    with coordinator.database.begin() as session:
        session.execute(update(Removal).values(at=0.0))
    clock = [0.0]
    keeper, where = Housekeeper(coordinator, lambda: clock[0]), os.unlink if refused == "unlink" else os.scandir

    def refuse(path: str, *_: object, **__: object) -> object:
        if id in str(path):
            raise PermissionError(13, "the store is mounted read-only", str(path))
        return where(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, refused, refuse)
        keeper.walk()
        keeper.step()
    assert noted(coordinator) == [f"experiments/{id}"], "it holds up no other"
    assert coordinator.artefacts.list("experiments")
    clock[0] += REST_SECONDS
    keeper.walk()
    keeper.step()
    assert noted(coordinator) == [] and not list(coordinator.settings.artefact_dir.glob("experiments/*"))


def test_folders_without_files_go_too(
    api: httpx.Client, coordinator: Coordinator, begin: Callable[..., str], driver: Driver, winnow: Winnow
) -> None:
    id = begin()
    driver.train()
    move(coordinator, id, *OVER)
    api.delete(f"/experiments/{id}")
    assert winnow("sweep", "--state-dir", str(coordinator.settings.state_dir)).code == 0
    Housekeeper(coordinator).step()
    assert not (coordinator.settings.artefact_dir / "experiments" / id).exists()


def test_two_that_empty_one_place_are_not_in_each_others_way(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them finds each folder gone between its look and its removing."""
    store = coordinator.artefacts
    put_json(store, "experiments/x/a/b.json", {})
    rmdir = os.rmdir

    def twice(path: str, **given: Any) -> None:
        rmdir(path, **given)
        rmdir(path, **given)

    monkeypatch.setattr(os, "rmdir", twice)
    store.delete("experiments/x")
    assert not (coordinator.settings.artefact_dir / "experiments" / "x").exists()


def test_the_steward_empties_at_once(
    api: httpx.Client, coordinator: Coordinator, begin: Callable[..., str], driver: Driver
) -> None:
    id = begin()
    driver.train()
    move(coordinator, id, *OVER)
    api.delete(f"/experiments/{id}")
    steward = Steward(coordinator)
    steward.start()
    try:
        place = coordinator.settings.artefact_dir / "experiments" / id
        wait_until(lambda: not place.exists(), 20, "the files to go")
    finally:
        steward.stop()


def test_the_sweep_takes_what_was_removed(
    api: httpx.Client,
    coordinator: Coordinator,
    begin: Callable[..., str],
    driver: Driver,
    winnow: Winnow,
    settings: Settings,
) -> None:
    id = begin()
    driver.train()
    move(coordinator, id, *OVER)
    api.delete(f"/experiments/{id}")
    place = ["--state-dir", str(settings.state_dir), "--json"]
    files = len(coordinator.artefacts.list(f"experiments/{id}"))
    assert files and [heap["files"] for heap in winnow("sweep", *place).json] == [files, 0, 0]
    assert not coordinator.artefacts.list("experiments")


def test_the_command_removes_by_name_what_it_is_told_to(
    coordinator: Coordinator, url: str, winnow: Winnow, run_through: Callable[..., str]
) -> None:
    add_dataset(coordinator)
    first, second = run_through(name="first"), run_through(name="second")
    asked = winnow("remove", "first")
    assert asked.code == 1 and "--yes" in asked.err, "nobody is here to be asked"
    unknown = winnow("remove", "first", "nobody", "--yes")
    assert unknown.code == 1 and "nobody" in unknown.err and winnow("list", "--json").json[1]["id"] == first
    said = winnow("remove", "first", "--yes")
    assert (said.code, said.out) == (0, "first: removed\n")
    in_use = winnow("dataset", "remove", "tissue", "--yes", "--json")
    assert (in_use.code, in_use.json["code"], in_use.json["dataset"]) == (1, "in-use", "tissue")
    assert in_use.json["users"] == [second]
    gone = winnow("remove", second, "--yes", "--json").json
    assert (gone["name"], gone["status"], gone["was"]) == ("second", "removed", "completed")
    assert winnow("list", "--json").json == []
    view = winnow("dataset", "show", "tissue", "--json").json
    twice = winnow("dataset", "remove", "tissue", view["id"], "--yes")
    assert (twice.code, twice.out) == (0, "tissue: removed\n")
    assert winnow("dataset", "list", "--json").json == []


def test_one_that_is_under_way_keeps_none_from_the_others(coordinator: Coordinator, url: str, winnow: Winnow) -> None:
    add_dataset(coordinator)
    Path("spec.json").write_text(json.dumps(experiment_body(seeds=[0, 1])))
    first, second = (view["id"] for view in winnow("run", "spec.json", "--detach", "--json").json)
    move(coordinator, second, *OVER)
    said = winnow("remove", first, second, "--yes")
    assert said.code == 1 and "cancel it first" in said.err and "removed" in said.out
    assert [view["id"] for view in winnow("list", "--json").json] == [first]


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 1, 1), ("y", 0, 0)])
def test_it_asks_first(
    coordinator: Coordinator,
    url: str,
    winnow: Winnow,
    run_through: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    answer: str,
    code: int,
    left: int,
) -> None:
    add_dataset(coordinator)
    id = run_through()
    (tmp_path / "answer").write_text(f"{answer}\n")
    with (tmp_path / "answer").open() as stdin:
        monkeypatch.setattr(stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys, "stdin", stdin)
        said = winnow("remove", id)
    assert said.code == code
    assert f"e ({id}): completed, 0 of 1 rounds done" in said.err and "Remove for good?" in said.err
    assert len(winnow("list", "--json").json) == left


def test_the_client_says_what_is_in_the_way(
    coordinator: Coordinator, url: str, run_through: Callable[..., str]
) -> None:
    add_dataset(coordinator)
    id = run_through()
    with Client(url) as client:
        with pytest.raises(ApiProblem, match=f"in use by experiments: {id};"):
            client.remove_dataset("tissue")
        client.remove_experiment(id)
        client.remove_dataset("tissue")
        with pytest.raises(ApiProblem, match="no dataset"):
            client.remove_dataset("tissue")


def test_a_removal_whose_answer_is_lost_is_no_failure(
    coordinator: Coordinator, url: str, run_through: Callable[..., str]
) -> None:
    add_dataset(coordinator)
    id = run_through()
    lost: list[str] = []
    unreachable: list[bool] = []

    class Lossy(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if request.method == "DELETE" and not lost:
                lost.append("")
                if unreachable:
                    raise httpx.ConnectError("nobody there", request=request)
                answer = super().handle_request(request)
                lost[:] = [str(answer.status_code)]
                answer.close()
                raise httpx.ReadError("the connection broke", request=request)
            return super().handle_request(request)

    with Client(url) as client:
        client._calls.http._transport = Lossy()  # pyright: ignore[reportPrivateUsage] - where the network would be
        client.remove_experiment(id)
        assert lost == ["204"]
        with pytest.raises(ApiProblem, match="no experiment"):
            client.remove_experiment(id)
        lost.clear()
        unreachable.append(True)
        with pytest.raises(ApiProblem, match="no experiment"):
            client.remove_experiment(id)  # by a call that never came to the coordinator, and one that did


@pytest.mark.parametrize("ended", [(ExperimentStatus.FAILED,), OVER])
def test_one_that_is_removed_ends_no_watching_of_the_others(
    coordinator: Coordinator,
    url: str,
    winnow: Winnow,
    capsys: pytest.CaptureFixture[str],
    ended: tuple[ExperimentStatus, ...],
) -> None:
    add_dataset(coordinator)
    Path("spec.json").write_text(json.dumps(experiment_body(seeds=[0, 1])))
    goes, stays = (view["id"] for view in winnow("run", "spec.json", "--detach", "--json").json)
    move(coordinator, goes, *ended)
    heard: list[str] = []
    shown: list[str] = []

    def listen(client: Client) -> None:
        heard.extend(id for id, _ in hear(client, [goes, stays]))

    def has_shown(words: str) -> bool:
        shown.append(capsys.readouterr().out)
        return words in "".join(shown)

    with Client(url) as client, ThreadPoolExecutor(2) as pool:
        watched = pool.submit(watch_until_the_end, client, [goes, stays])
        listened = pool.submit(listen, client)
        wait_until(lambda: {goes, stays} <= set(heard) and has_shown("created"), 30, "both to be seen and heard")
        client.remove_experiment(goes)
        move(coordinator, stays, *OVER)
        watched.result(30), listened.result(30)
    assert has_shown(f"winnow compare {stays}")
    assert heard[-1] == stays
