"""The REST surface over real HTTP: shapes, errors, pages, keys, idempotency."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from services.conftest import Driver, add_dataset, experiment_body, problem
from sqlalchemy import update

from winnow.domain import DatasetSpec, ExperimentStatus
from winnow.settings import Settings
from winnow.store import claims, datasets, experiments, rounds
from winnow.store.tables import IdempotencyKey
from winnow_coordinator.context import Coordinator
from winnow_coordinator.tidying import Tidier

# --- datasets -----------------------------------------------------------------------------------


def test_a_dataset_is_accepted_and_waits(api: httpx.Client, settings: Settings) -> None:
    folder = settings.data_roots[0] / "patches" / "tumour"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(b"looked at when it is ingested")
    source = {"kind": "folder", "path": str(folder.parent)}
    response = api.post("/datasets", json={"name": "d", "sources": [source]})
    assert response.status_code == 202, response.text
    found = api.get(response.headers["location"].removeprefix("/api/v1")).json()
    assert (found["name"], found["status"], found["image_size"], found["samples"]) == ("d", "queued", 224, 0)
    assert found == api.get("/datasets/d").json()
    problem(api.post("/datasets", json={"name": "d", "sources": [source]}), 409, "already-exists")


def test_a_failed_dataset_is_tried_again_under_its_name(api: httpx.Client, coordinator: Coordinator) -> None:
    def post(size: int, key: str) -> httpx.Response:
        body = {"name": "d", "image_size": size, "sources": [{"kind": "synthetic"}]}
        return api.post("/datasets", json=body, headers={"Idempotency-Key": key})

    first = post(64, "k1")
    with coordinator.database.begin() as session:
        row = claims.claim(session, claims.INGEST, "trainer", 30)
        assert row is not None
        rounds.give_back(session, claims.INGEST, row.id, 1, "rejected", "ten files", coordinator.patience)
    assert api.get("/datasets/d").json()["error"] == "ten files"
    assert post(64, "k1").json() == first.json(), "a replay changes nothing"
    again = post(32, "k2")
    assert again.status_code == 202, again.text
    shown = api.get("/datasets/d").json()
    assert (shown["id"], shown["image_size"]) == (first.json()["id"], 32)
    assert (shown["status"], shown["error"]) == ("queued", None)
    problem(post(32, "k3"), 409, "already-exists")


def test_paths_outside_the_roots_are_forbidden(api: httpx.Client, settings: Settings, tmp_path: Path) -> None:
    root = settings.data_roots[0]
    (tmp_path / "secret").mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    for path in (tmp_path / "secret", root / "link", root / ".." / "secret", Path("/etc")):
        response = api.post("/datasets", json={"name": "d", "sources": [{"kind": "folder", "path": str(path)}]})
        problem(response, 403, "path-forbidden")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "d"}, "sources"),
        ({"name": "d", "sources": []}, "sources"),
        ({"name": "../d", "sources": [{"kind": "synthetic"}]}, "name"),
        ({"name": "d", "sources": [{"kind": "folder"}]}, "sources.0"),
        ({"name": "d", "sources": [{"kind": "synthetic"}], "typo": 1}, "typo"),
    ],
)
def test_a_bad_dataset_names_its_field(api: httpx.Client, body: dict[str, Any], field: str) -> None:
    assert problem(api.post("/datasets", json=body), 422, "invalid")["field"] == field


def test_a_missing_folder_is_refused(api: httpx.Client, settings: Settings) -> None:
    source = {"kind": "folder", "path": str(settings.data_roots[0] / "nowhere")}
    body = problem(api.post("/datasets", json={"name": "d", "sources": [source]}), 422, "invalid")
    assert body["field"].startswith("sources.0")


def test_samples_page_by_role(api: httpx.Client, coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    seen: list[int] = []
    cursor = None
    while True:
        given = {"cursor": cursor} if cursor else {}
        page = api.get("/datasets/tissue/samples", params={"role": "pool", "limit": 15, **given}).json()
        seen += [item["idx"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == list(range(40))
    problem(api.get("/datasets/tissue/samples", params={"cursor": "!"}), 422, "invalid")
    problem(api.get("/datasets/none/samples"), 404, "not-found")


# --- experiments --------------------------------------------------------------------------------


def test_an_experiment_begins_with_its_first_batch(api: httpx.Client, coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    response = api.post("/experiments", json=experiment_body())
    assert response.status_code == 201, response.text
    body = api.get(response.headers["location"].removeprefix("/api/v1")).json()
    assert (body["status"], body["rounds_total"], body["rounds_done"]) == ("created", 3, 0)
    assert (body["current_round"]["number"], body["current_round"]["samples"]) == (0, 5)
    assert body["created_at"].endswith("Z") and body["latest"] is None
    picked = [item["idx"] for item in api.get(f"/experiments/{body['id']}/rounds/0/selection").json()["items"]]
    assert len(set(picked)) == 5 and set(picked) <= set(range(40))
    again = api.post("/experiments", json=experiment_body(arm="k_center")).json()
    same = api.get(f"/experiments/{again['id']}/rounds/0/selection").json()["items"]
    assert [item["idx"] for item in same] == picked  # one seed, one S^0


def test_a_preset_gives_the_defaults(api: httpx.Client, coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    changes = {"preset": "authors-code", "simclr": {"batch_size": 4}}
    spec = api.post("/experiments", json=experiment_body(**changes)).json()["spec"]
    assert (spec["initial"], spec["simclr"]["drop_last"], spec["simclr"]["batch_size"]) == ("stratum", True, 4)


def test_the_full_arm_holds_the_pool(api: httpx.Client, coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    changes = {"arm": "full", "budget": 1000, "full_evaluate_every": 2, "simclr": {"epochs": 5}}
    body = api.post("/experiments", json=experiment_body(**changes)).json()
    assert (body["rounds_total"], body["current_round"]["samples"]) == (3, 40)
    items = api.get(f"/experiments/{body['id']}/rounds/0/selection").json()["items"]
    assert [item["idx"] for item in items] == list(range(40))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"budget": 0}, "budget"),
        ({"budget": 41, "candidates": "all"}, "budget"),
        ({"budget": 1}, "budget"),
        ({"rounds": 9}, "rounds"),
        ({"candidates": 3}, "candidates"),
        ({"positive_class": "zebra"}, "positive_class"),
        ({"positive_class": None}, "positive_class"),
        ({"evaluate_on": "validation"}, "evaluate_on"),
        ({"arm": "best"}, "arm"),
        ({"budgett": 5}, "budgett"),
        ({"preset": "mine"}, "preset"),
        ({"preset": ["paper"]}, "preset"),
        ({"preset": "authors-code", "simclr": None}, "simclr"),
        ({"name": None}, "name"),
        ({"fit_evaluator_on": "validation"}, "fit_evaluator_on"),
        ({"fit_evaluator_on": "validation", "evaluate_on": "validation"}, "evaluate_on"),
        ({"preset": []}, "preset"),
        ({"preset": "authors-code", "simclr": 5}, "simclr"),
        ({"views": {"blur_sigma": [0.1, 10**400]}}, "views.blur_sigma.1"),
        ({"arms": ["random"]}, "arms"),
        ({"simclr": {"drop_last": True}}, "simclr.batch_size"),
        ({"views": {"crop_scale": [0.5, 0.1]}}, "views.crop_scale"),
    ],
)
def test_a_spec_that_does_not_fit_names_its_field(
    api: httpx.Client, coordinator: Coordinator, changes: dict[str, Any], field: str
) -> None:
    add_dataset(coordinator)
    body = problem(api.post("/experiments", json=experiment_body(**changes)), 422, "invalid")
    assert body["field"] == field
    assert api.get("/experiments").json()["items"] == []


ROLES = {"pool": "ab" * 20, "labelled": "ab", "test": "ab"}


@pytest.mark.parametrize(
    ("dataset", "changes", "field"),
    [
        ({"pool": "", "labelled": "ab", "test": "ab"}, {}, "dataset"),
        ({"pool": "ab" * 20, "labelled": "aaaa", "test": "ab"}, {}, "dataset"),
        ({"pool": "ab" * 20, "labelled": "", "test": "ab"}, {}, "dataset"),
        ({"pool": "abc" * 20, "labelled": "abab", "test": "ab"}, {"positive_class": "c"}, "positive_class"),
        ({"pool": "ab" * 20, "labelled": ["a", "b", None], "test": "ab"}, {}, "dataset"),
        ({"pool": ["a", None] * 20, "labelled": "ab", "test": "ab"}, {"initial": "stratum"}, "initial"),
        ({"pool": "ab" * 20, "labelled": "ab", "test": ["a", None]}, {}, "evaluate_on"),
        ({"pool": "ab" * 20, "labelled": "ab", "test": "bb"}, {}, "evaluate_on"),
        ({"pool": "abc" * 20, "labelled": "bc", "test": "abc"}, {"proxy": {"task": "classes"}}, "positive_class"),
        ({**ROLES, "validation": "bb"}, {"fit_evaluator_on": "validation"}, "fit_evaluator_on"),
        ({**ROLES, "validation": "aa"}, {"fit_evaluator_on": "validation"}, "fit_evaluator_on"),
        ({**ROLES, "validation": ["a", "b", None]}, {"fit_evaluator_on": "validation"}, "fit_evaluator_on"),
        ({"pool": "ab" * 20, "labelled": "ab", "test": "ab", "image_size": 31}, {}, "dataset"),
    ],
)
def test_a_dataset_that_cannot_serve_is_refused(
    api: httpx.Client, coordinator: Coordinator, dataset: dict[str, Any], changes: dict[str, Any], field: str
) -> None:
    add_dataset(coordinator, **dataset)
    body = problem(api.post("/experiments", json=experiment_body(**changes)), 422, "invalid")
    assert body["field"] == field


@pytest.mark.parametrize("body", [None, [1]])
def test_a_body_that_is_none_is_told_of_once(api: httpx.Client, body: object) -> None:
    sent = {} if body is None else {"json": body}
    assert len(problem(api.post("/experiments", **sent), 422, "invalid")["errors"]) == 1


def test_the_dataset_must_exist_and_be_ready(api: httpx.Client, coordinator: Coordinator) -> None:
    problem(api.post("/experiments", json=experiment_body()), 404, "not-found")
    with coordinator.database.begin() as session:
        spec = {"name": "tissue", "sources": [{"kind": "folder", "path": "/patches"}]}
        datasets.insert(session, DatasetSpec.model_validate(spec))
    body = problem(api.post("/experiments", json=experiment_body()), 409, "wrong-state")
    assert (body["current"], body["allowed"]) == ("queued", ["ingesting", "removing"])
    assert "needs it ready" in body["detail"]


def test_pause_resume_and_cancel_follow_the_table(api: httpx.Client, coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    id = api.post("/experiments", json=experiment_body()).json()["id"]
    for order, status in (("pause", "pausing"), ("resume", "running"), ("cancel", "cancelling")):
        response = api.post(f"/experiments/{id}/{order}")
        assert (response.status_code, response.json()["status"]) == (202, status)
        assert api.get(response.headers["location"].removeprefix("/api/v1")).json()["id"] == id
    body = problem(api.post(f"/experiments/{id}/pause"), 409, "wrong-state")
    assert (body["current"], body["allowed"]) == ("cancelling", ["cancelled"])
    with coordinator.database.begin() as session:
        experiments.transition(session, id, ExperimentStatus.CANCELLED)
    body = problem(api.post(f"/experiments/{id}/pause"), 409, "wrong-state")
    assert (body["current"], body["allowed"]) == ("cancelled", [])


def test_an_experiment_that_failed_may_be_cancelled(
    api: httpx.Client, coordinator: Coordinator, driver: Driver
) -> None:
    add_dataset(coordinator)
    id = api.post("/experiments", json=experiment_body()).json()["id"]
    row = driver.claim()
    with coordinator.database.begin() as session:
        rounds.give_back(session, claims.TRAIN, row.id, row.attempt, "rejected", "no", coordinator.patience)
    failed = api.get(f"/experiments/{id}/rounds/0").json()
    assert api.post(f"/experiments/{id}/cancel").json()["status"] == "cancelling"
    Tidier(coordinator).tidy()
    assert api.get(f"/experiments/{id}").json()["status"] == "cancelled"
    ended = api.get(f"/experiments/{id}/rounds/0").json()
    assert (ended["status"], ended["error"], ended["ended_at"]) == ("cancelled", "no", failed["ended_at"])
    assert api.get(f"/experiments/{id}").json()["error"] == "round 0: no"


def test_experiments_page_and_filter(api: httpx.Client, coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    ids = [api.post("/experiments", json=experiment_body(name=f"e{n}")).json()["id"] for n in range(5)]
    api.post(f"/experiments/{ids[0]}/cancel")
    first = api.get("/experiments", params={"limit": 3}).json()
    rest = api.get("/experiments", params={"limit": 3, "cursor": first["next"]}).json()
    assert [item["id"] for item in first["items"] + rest["items"]] == ids[::-1]
    assert rest["next"] is None
    filtered = api.get("/experiments", params={"status": "cancelling"}).json()["items"]
    assert [item["id"] for item in filtered] == ids[:1]
    problem(api.get("/experiments", params={"status": "odd"}), 422, "invalid")
    problem(api.get("/experiments", params={"limit": 0}), 422, "invalid")


def test_selection_by_accept(api: httpx.Client, coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    id = api.post("/experiments", json=experiment_body()).json()["id"]
    url = f"/experiments/{id}/rounds/0/selection"
    expected = [item["idx"] for item in api.get(url).json()["items"]]
    npy = api.get(url, headers={"Accept": "application/x-npy"})
    assert np.load(io.BytesIO(npy.content)).tolist() == expected
    text = api.get(url, headers={"Accept": "text/csv, application/json;q=0.5"}).text.splitlines()
    assert text[0] == "rank,idx,key,score"
    assert [int(line.split(",")[1]) for line in text[1:]] == expected
    assert len(api.get(url, headers={"Accept": "application/x-ndjson"}).text.splitlines()) == 5
    problem(api.get(url, headers={"Accept": "image/png"}), 406, "not-acceptable")


def test_unknown_things_are_not_found(api: httpx.Client, coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    id = api.post("/experiments", json=experiment_body()).json()["id"]
    for path in (
        "/datasets/none",
        "/experiments/none",
        "/experiments/none/rounds",
        "/experiments/none/events",
        "/experiments/none/metrics",
        f"/experiments/{id}/rounds/7",
        f"/experiments/{id}/rounds/0/artefacts/candidates/index",
        f"/experiments/{id}/rounds/0/artefacts/..%2f..%2fsecret",
        "/nothing",
    ):
        problem(api.get(path), 404, "not-found")
    problem(api.post("/experiments/none/pause"), 404, "not-found")
    problem(api.delete("/experiments"), 405, "method-not-allowed")
    body = problem(api.post("/experiments", content=b"{", headers={"Content-Type": "application/json"}), 422, "invalid")
    assert body["errors"]


# --- Idempotency-Key ----------------------------------------------------------------------------


def test_a_query_that_is_misspelt_is_refused(api: httpx.Client, coordinator: Coordinator) -> None:
    refused = problem(api.get("/experiments", params={"state": "failed"}), 422, "invalid")
    assert refused["field"] == "state" and "status, name, cursor, limit" in refused["detail"]
    add_dataset(coordinator)
    assert "these are: none" in problem(api.post("/experiments?a=1", json=experiment_body()), 422, "invalid")["detail"]
    assert api.get("/experiments").json()["items"] == []
    assert api.get("/experiments", params={"status": "failed", "limit": 3}).is_success


def test_a_body_without_its_type_is_told_so(api: httpx.Client, coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    body = json.dumps(experiment_body())
    for headers, got in (({}, "none"), ({"Content-Type": "text/plain"}, "text/plain")):
        refused = problem(api.post("/experiments", content=body, headers=headers), 422, "invalid")
        assert refused["detail"] == f"body: needs the header Content-Type: application/json, got {got}"
    assert api.post("/experiments", content=body, headers={"Content-Type": "application/json"}).status_code == 201


def test_a_repeat_replays_the_first_answer(api: httpx.Client, coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    key = {"Idempotency-Key": "k1"}
    first = api.post("/experiments", json=experiment_body(), headers=key)
    second = api.post("/experiments", json=experiment_body(), headers=key)
    assert second.headers["idempotency-replayed"] == "true"
    assert (second.status_code, second.json(), second.headers["location"]) == (
        first.status_code,
        first.json(),
        first.headers["location"],
    )
    assert len(api.get("/experiments").json()["items"]) == 1
    body = problem(api.post("/experiments", json=experiment_body(seed=2), headers=key), 422, "idempotency-conflict")
    assert body["field"] == "Idempotency-Key"


def test_repeats_at_once_create_one(api: httpx.Client, coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    key = {"Idempotency-Key": "k1"}
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: api.post("/experiments", json=experiment_body(), headers=key), range(4)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 3


def test_an_answer_that_is_no_longer_kept_excuses_from_no_check(
    api: httpx.Client, coordinator: Coordinator, settings: Settings
) -> None:
    folder = settings.data_roots[0] / "p" / "a"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(b"x")
    body = {"name": "d", "sources": [{"kind": "folder", "path": str(folder.parent)}]}
    assert api.post("/datasets", json=body, headers={"Idempotency-Key": "d1"}).status_code == 202
    with coordinator.database.begin() as session:
        session.execute(update(IdempotencyKey).values(created_at=IdempotencyKey.created_at - 90_000))
    body = {"name": "e", "sources": [{"kind": "folder", "path": "/etc"}]}
    problem(api.post("/datasets", json=body, headers={"Idempotency-Key": "d1"}), 403, "path-forbidden")


def test_a_refused_request_keeps_no_answer(api: httpx.Client, coordinator: Coordinator) -> None:
    key = {"Idempotency-Key": "k1"}
    problem(api.post("/experiments", json=experiment_body(), headers=key), 404, "not-found")
    add_dataset(coordinator)
    assert api.post("/experiments", json=experiment_body(), headers=key).status_code == 201


def test_a_dataset_is_replayed_even_when_its_folder_is_gone(api: httpx.Client, settings: Settings) -> None:
    folder = settings.data_roots[0] / "p" / "a"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(b"x")
    body = {"name": "d", "sources": [{"kind": "folder", "path": str(folder.parent)}]}
    first = api.post("/datasets", json=body, headers={"Idempotency-Key": "d1"})
    (folder / "1.png").unlink()
    second = api.post("/datasets", json=body, headers={"Idempotency-Key": "d1"})
    assert (second.status_code, second.json()) == (202, first.json())
