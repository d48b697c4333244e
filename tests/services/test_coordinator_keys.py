"""Who may call the coordinator, and what it says of itself: keys, workers, health."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from services.conftest import add_dataset, experiment_body, problem, serving

from winnow.settings import Settings
from winnow.store import keys, workers
from winnow_coordinator.app import make_app
from winnow_coordinator.context import Coordinator


@pytest.fixture
def guarded(settings: Settings, coordinator: Coordinator) -> Any:
    """A coordinator bound off loopback, with a bootstrap key."""
    changed = {"coordinator_host": "0.0.0.0", "bootstrap_key": "wnw_first"}
    outside = Coordinator.open(Settings(**{**settings.model_dump(), **changed}))
    app = make_app(outside, steward=False)
    with serving(app) as url, httpx.Client(base_url=f"{url}/api/v1") as client:
        yield client
    outside.close()


def test_keys_are_required_off_loopback(guarded: httpx.Client) -> None:
    refused = guarded.get("/experiments")
    problem(refused, 401, "not-authorised")
    assert refused.headers["www-authenticate"] == "Bearer"
    problem(guarded.get("/experiments", headers={"Authorization": "Bearer wnw_no"}), 401, "not-authorised")
    assert guarded.get("/experiments", headers={"Authorization": "Bearer wnw_first"}).status_code == 200


def test_scopes_ascend_and_keys_end(guarded: httpx.Client) -> None:
    admin = {"Authorization": "Bearer wnw_first"}
    made = guarded.post("/keys", json={"name": "look", "scopes": ["read"]}, headers=admin)
    assert made.status_code == 201
    reader = {"Authorization": f"Bearer {made.json()['key']}"}
    assert guarded.get("/workers", headers=reader).json() == {"items": [], "next": None}
    body = problem(guarded.post("/experiments", json=experiment_body(), headers=reader), 403, "not-authorised")
    assert body["missing_scope"] == "run"
    problem(guarded.get("/keys", headers=reader), 403, "not-authorised")
    listed = guarded.get("/keys", headers=admin).json()["items"]
    assert [item["name"] for item in listed] == ["look", "bootstrap"] and "key" not in listed[0]
    assert guarded.delete(f"/keys/{made.json()['id']}", headers=admin).status_code == 204
    problem(guarded.get("/workers", headers=reader), 401, "not-authorised")
    problem(guarded.delete(f"/keys/{made.json()['id']}", headers=admin), 404, "not-found")


def test_a_replayed_key_does_not_show_its_text(guarded: httpx.Client) -> None:
    headers = {"Authorization": "Bearer wnw_first", "Idempotency-Key": "k"}
    shown = [guarded.post("/keys", json={"name": "n", "scopes": ["run"]}, headers=headers).json() for _ in range(2)]
    assert shown[0]["key"].startswith("wnw_") and shown[1] == {**shown[0], "key": None}


def test_another_name_for_loopback_needs_a_key(api: httpx.Client) -> None:
    problem(api.get("/experiments", headers={"Host": "evil.example"}), 401, "not-authorised")


def test_health_metrics_and_description(api: httpx.Client, coordinator: Coordinator) -> None:
    root = str(api.base_url).removesuffix("/api/v1/")
    add_dataset(coordinator)
    assert httpx.get(f"{root}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{root}/readyz").status_code == 200
    api.get("/experiments/none")
    text = httpx.get(f"{root}/metrics").text
    assert 'winnow_rows{status="ready",table="dataset"} 1.0' in text
    assert 'status="404"' in text and "none" not in text
    described = httpx.get(f"{root}/openapi.json").json()
    post = described["paths"]["/api/v1/experiments"]["post"]
    assert post["requestBody"]["content"]["application/json"]["examples"]["paper"]["value"]["arm"] == "entropy"
    assert "preset" in described["components"]["schemas"]["ExperimentRequest"]["properties"]
    assert "application/problem+json" in post["responses"]["422"]["content"]


def test_what_postgres_cannot_hold_is_refused(settings: Settings, postgres_url: str) -> None:
    opened = Coordinator.open(Settings(**{**settings.model_dump(), "database_url": postgres_url}))
    opened.database.migrate()
    with serving(make_app(opened, steward=False)) as url:
        assert "NUL" in problem(httpx.get(f"{url}/api/v1/experiments/%00"), 422, "invalid")["detail"]
    opened.close()


def test_a_database_that_is_down_is_said(settings: Settings, tmp_path: Path) -> None:
    gone = Settings(**{**settings.model_dump(), "database_url": "postgresql://nobody@127.0.0.1:1/none"})
    opened = Coordinator.open(gone)
    with serving(make_app(opened, steward=False)) as url:
        problem(httpx.get(f"{url}/readyz"), 503, "unavailable")
        problem(httpx.get(f"{url}/api/v1/experiments"), 503, "unavailable")
        assert httpx.get(f"{url}/healthz").status_code == 200
    opened.close()


def test_workers_and_keys_page(api: httpx.Client, coordinator: Coordinator) -> None:
    names = [f"host:{n}" for n in range(5)]
    with coordinator.database.begin() as session:
        for name in names:
            workers.report(session, name, host="host", pid=1, devices=[], version="0", busy_with=None)
            keys.create(session, name, ["read"])

    def walk(path: str, field: str) -> list[str]:
        first = api.get(path, params={"limit": 3}).json()
        rest = api.get(path, params={"limit": 3, "cursor": first["next"]}).json()
        assert rest["next"] is None
        return [item[field] for item in first["items"] + rest["items"]]

    assert walk("/workers", "id") == names
    assert walk("/keys", "name") == names[::-1]
