"""A dataset in removal: who goes on with it, and what it looks like meanwhile."""

import threading

import httpx
import pytest
from services.conftest import add_dataset, experiment_body, problem
from sqlalchemy import update

from winnow.client import Client
from winnow.domain import DatasetSpec
from winnow.errors import TrainingFailed
from winnow.store import datasets
from winnow.store.tables import Dataset
from winnow_cli.commands.datasets import ingest
from winnow_cli.resuming import find_or_add_dataset
from winnow_coordinator.context import Coordinator
from winnow_coordinator.housekeeping import Housekeeper


def cut_short(coordinator: Coordinator, lease: float = 30) -> None:
    with coordinator.database.begin() as session:
        datasets.begin_removal(session, datasets.lock(session, "tissue"), lease)


def test_a_dataset_whose_removal_was_cut_short_goes_by_itself(api: httpx.Client, coordinator: Coordinator) -> None:
    dataset = add_dataset(coordinator)
    cut_short(coordinator)
    assert api.get("/datasets/tissue").json()["status"] == "removing"
    refused = problem(api.post("/experiments", json=experiment_body()), 409, "wrong-state")
    assert "add it again once it is gone" in refused["detail"]
    Housekeeper(coordinator).step()
    assert api.get("/datasets/tissue").json()["status"] == "removing", "somebody is at it"
    with coordinator.database.begin() as session:
        session.execute(update(Dataset).values(lease_until=0.0))
    Housekeeper(coordinator).step()
    problem(api.get("/datasets/tissue"), 404, "not-found")
    assert add_dataset(coordinator).id != dataset.id


def test_asking_again_ends_a_removal_that_was_cut_short(api: httpx.Client, coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    cut_short(coordinator)
    assert api.delete("/datasets/tissue").status_code == 204
    problem(api.get("/datasets/tissue"), 404, "not-found")


def test_a_coordinator_that_stops_leaves_the_rest_of_a_removal(api: httpx.Client, coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    coordinator.stopping.set()
    said = problem(api.delete("/datasets/tissue"), 503, "unavailable")
    assert "another one goes on" in said["detail"]
    assert api.get("/datasets/tissue").json()["status"] == "removing"


def test_samples_that_are_being_removed_are_not_taken_for_all(api: httpx.Client, coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    first = api.get("/datasets/tissue/samples", params={"limit": 10}).json()
    assert len(first["items"]) == 10
    cut_short(coordinator)
    for more in ({}, {"cursor": first["next"]}):
        said = problem(api.get("/datasets/tissue/samples", params=more), 409, "wrong-state")
        assert said["current"] == "removing" and "its samples show when it is ready" in said["detail"]


def test_one_that_is_being_removed_is_neither_waited_for_nor_taken_up(coordinator: Coordinator, url: str) -> None:
    tissue = {"kind": "synthetic", "synthetic": {"patches": 30, "slides": 5, "test_slides": 2}}
    spec = DatasetSpec.model_validate({"name": "tissue", "image_size": 32, "sources": [tissue]})
    with Client(url) as client:
        first = find_or_add_dataset(client, spec)
        assert find_or_add_dataset(client, spec)["id"] == first["id"]
        cut_short(coordinator)
        with pytest.raises(TrainingFailed, match="tissue could not be ingested: somebody removes it"):
            ingest(client, "tissue", quiet=True)
        assert find_or_add_dataset(client, spec)["name"] == "tissue-2"


def test_a_removal_that_a_coordinator_left_to_another_is_no_failure(coordinator: Coordinator, url: str) -> None:
    """The first call is answered 503, and its repeat comes when all is gone."""
    dataset = add_dataset(coordinator)
    coordinator.stopping.set()
    answers: list[int] = []

    class Watched(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answer = super().handle_request(request)
            if request.method == "DELETE":
                answers.append(answer.status_code)
                datasets.remove(coordinator.database, dataset.id, 30, threading.Event())
            return answer

    with Client(url) as client:
        client._calls.http._transport = Watched()  # pyright: ignore[reportPrivateUsage] - where the network would be
        client.remove_dataset("tissue")
    assert answers == [503, 404]
