"""What takes the artefact store's room, and what may go."""

import errno
import os

import httpx
import pytest
from services.conftest import Driver, Winnow, add_dataset, experiment_body, move, problem
from structlog.testing import capture_logs

from winnow.domain import ExperimentStatus
from winnow.settings import Settings
from winnow.store import artefacts
from winnow_coordinator.context import Coordinator


def fill(coordinator: Coordinator, id: str, *sizes: int) -> None:
    for number, size in enumerate(sizes):
        coordinator.artefacts.put(f"datasets/{id}/a1/parts/{number}.npy", bytes(size))


def test_the_largest_come_first(api: httpx.Client, coordinator: Coordinator, driver: Driver) -> None:
    used, unused, empty = (add_dataset(coordinator, name).id for name in ("tissue", "unused", "empty"))
    fill(coordinator, used, 1000, 24)
    fill(coordinator, unused, 3000)
    large, small = (api.post("/experiments", json=experiment_body(name=name)).json()["id"] for name in "ab")
    for _ in range(2):
        driver.train()
    with coordinator.database.read() as session:
        held = {id: sum(one.size for one in artefacts.of_round(session, id, 0).values()) for id in (large, small)}
    assert min(held.values()) > 0
    move(coordinator, small, ExperimentStatus.CANCELLING, ExperimentStatus.CANCELLED)
    found = api.get("/storage").raise_for_status().json()
    shown = {one["id"]: one for one in found["items"]}
    assert [one["bytes"] for one in found["items"]] == sorted((one["bytes"] for one in found["items"]), reverse=True)
    assert {id: one["bytes"] for id, one in shown.items()} == {used: 1024, unused: 3000, empty: 0} | held
    assert {one["id"] for one in found["items"] if one["may_go"]} == {unused, empty, small}
    assert (shown[used]["kind"], shown[small]["kind"]) == ("dataset", "experiment")
    assert found["free"] > 0
    first = api.get("/storage", params={"limit": 1}).json()["items"]
    assert first == found["items"][:1]


def test_a_folder_that_cannot_be_read_hides_no_other(
    api: httpx.Client, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn, whole = (add_dataset(coordinator, name).id for name in ("torn", "whole"))
    fill(coordinator, torn, 2000)
    fill(coordinator, whole, 1000)
    scandir = os.scandir

    def refuse(path: str) -> object:
        if torn in str(path):
            raise OSError(errno.EIO, "the disk is broken", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with capture_logs() as said:
        found = api.get("/storage").raise_for_status().json()
    assert {one["id"]: one["bytes"] for one in found["items"]} == {whole: 1000, torn: 0}
    assert [line["prefix"] for line in said if line["event"] == "place.unread"] == [f"datasets/{torn}"]


def test_a_store_that_is_not_there_is_said(api: httpx.Client, settings: Settings) -> None:
    settings.artefact_dir.rename(settings.artefact_dir.with_name("elsewhere"))
    assert str(settings.artefact_dir) in problem(api.get("/storage"), 503, "unavailable")["detail"]


def test_trimmed_states_count_no_more(api: httpx.Client, coordinator: Coordinator, driver: Driver) -> None:
    add_dataset(coordinator)
    id = api.post("/experiments", json=experiment_body()).json()["id"]
    driver.train()
    before = {one["id"]: one["bytes"] for one in api.get("/storage").json()["items"]}[id]
    with coordinator.database.begin() as session:
        weights = artefacts.of_round(session, id, 0)["state/weights"].size
        artefacts.drop(session, id, 0, stem="state")
    after = {one["id"]: one["bytes"] for one in api.get("/storage").json()["items"]}[id]
    assert before - after >= weights


def test_the_command_line_names_what_removes_it(
    url: str, api: httpx.Client, coordinator: Coordinator, driver: Driver, winnow: Winnow
) -> None:
    fill(coordinator, add_dataset(coordinator).id, 2_500_000)
    add_dataset(coordinator, "spare")
    id = api.post("/experiments", json=experiment_body()).json()["id"]
    driver.train()
    move(coordinator, id, ExperimentStatus.CANCELLING, ExperimentStatus.CANCELLED)
    lines = [line.rstrip() for line in winnow("storage").out.splitlines()]
    assert lines[1].split() == ["2.5", "MB", "dataset", "tissue", "ready", "-"]
    assert any(line.endswith(f"winnow remove {id}") for line in lines)
    assert any(line.endswith("winnow dataset remove spare") for line in lines)
    assert lines[-1].endswith("free where the coordinator keeps artefacts")
    assert winnow("storage", "--limit", "1", "--json").json["items"][0]["name"] == "tissue"
    assert winnow("storage", "--limit", "0").code == 2
