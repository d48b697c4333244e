"""What reads cost the database: as many statements for many rows as for one, and one look for all event streams."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from conftest import wait_until
from services.conftest import Driver, add_dataset, experiment_body
from services.test_coordinator_events import Listener, end
from sqlalchemy import event

from winnow.store import keys, workers
from winnow_coordinator.context import Coordinator
from winnow_coordinator.known_keys import KnownKeys

LISTS = ("/experiments", "/experiments?status=running", "/datasets", "/datasets/tissue/samples", "/workers", "/keys")
DETAILS = ("", "/metrics", "/rounds", "/rounds/0", "/rounds/0/selection")


@contextmanager
def statements(coordinator: Coordinator) -> Iterator[list[str]]:
    """The statements sent meanwhile, without what begins and ends transactions."""
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith("BEGIN"):
            sent.append(statement)

    event.listen(coordinator.database.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(coordinator.database.engine, "before_cursor_execute", note)


def begin(api: httpx.Client, driver: Driver, times: int) -> str:
    """Experiments with a trained round; the id of the last one."""
    for _ in range(times):
        id = api.post("/experiments", json=experiment_body()).raise_for_status().json()["id"]
        driver.train()
    return id


def report_worker(coordinator: Coordinator, name: str) -> None:
    with coordinator.database.begin() as session:
        workers.report(session, name, host="h", pid=1, devices=[], version="0", busy_with=None)


def grow(coordinator: Coordinator, api: httpx.Client, driver: Driver, times: int) -> str:
    """More of everything that is listed."""
    for n in range(times):
        add_dataset(coordinator, f"more-{times}-{n}")
        report_worker(coordinator, f"worker-{times}-{n}")
        api.post("/keys", json={"name": "k", "scopes": ["read"]}).raise_for_status()
    return begin(api, driver, times)


def test_more_rows_are_not_more_statements(api: httpx.Client, coordinator: Coordinator, driver: Driver) -> None:
    add_dataset(coordinator, pool="ab" * 20, labelled="aabb", test="abab")
    id = grow(coordinator, api, driver, 1)
    few = {path: _cost(coordinator, api, path) for path in (*LISTS, *_paths(id))}
    id = grow(coordinator, api, driver, 8)
    many = {path: _cost(coordinator, api, path) for path in (*LISTS, *_paths(id))}
    assert [cost for cost, _ in many.values()] == [cost for cost, _ in few.values()], (few, many)
    for path in LISTS:
        assert path.endswith("samples") or many[path][1] > few[path][1], f"{path} shows no more rows than before"
    assert max(cost for cost, _ in many.values()) <= 3


def _paths(id: str) -> list[str]:
    return [f"/experiments/{id}{detail}" for detail in DETAILS]


def _cost(coordinator: Coordinator, api: httpx.Client, path: str) -> tuple[int, int]:
    """Statements that a read sends, and the rows that it shows."""
    with statements(coordinator) as sent:
        answer = api.get(path).raise_for_status().json()
    assert sent
    return len(sent), len(answer.get("items", []))


def test_streams_share_one_look(api: httpx.Client, coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    ids = [api.post("/experiments", json=experiment_body()).json()["id"] for _ in range(3)]
    listeners = [Listener(api, id) for id in ids for _ in range(4)]
    wait_until(lambda: all(len(listener.heard) == 2 for listener in listeners), 60, "what happened before")
    with statements(coordinator) as sent:
        looks = wait_until(lambda: len(sent) >= 3 and len(sent), 60, "three looks")
        assert looks < len(listeners), sent
        for id in ids:
            assert all(id not in statement for statement in sent)
    for id in ids:
        end(coordinator, id)
    assert {listener.wait()[-1].type for listener in listeners} == {"experiment.cancelled"}
    with statements(coordinator) as sent:
        report_worker(coordinator, "later")  # nobody listens: what is sent now is this alone
        assert all("worker" in statement for statement in sent)


def test_a_key_is_looked_up_once_for_a_page_and_each_time_for_a_write(
    api: httpx.Client, coordinator: Coordinator
) -> None:
    with coordinator.database.begin() as session:
        row, text = keys.create(session, "page", ["run"])
    headers = {"Authorization": f"Bearer {text}"}
    with statements(coordinator) as sent:
        for _ in range(2):
            api.get("/workers", headers=headers).raise_for_status()
    looked = [statement for statement in sent if "api_key" in statement]
    assert len(looked) == 1
    with statements(coordinator) as sent:
        assert api.post("/experiments", json={}, headers=headers).status_code == 422
    assert [statement for statement in sent if "api_key" in statement]
    api.get("/workers", headers=headers).raise_for_status()
    assert api.delete(f"/keys/{row.id}").status_code == 204
    assert api.get("/workers", headers=headers).status_code == 401


@pytest.fixture
def key(coordinator: Coordinator) -> tuple[keys.ApiKey, str]:
    with coordinator.database.begin() as session:
        return keys.create(session, "known", ["read"])


def test_known_keys_are_forgotten(key: tuple[keys.ApiKey, str]) -> None:
    row, text = key
    known, expired = KnownKeys(seconds=1e9), KnownKeys(seconds=0.0)
    for some in (known, expired):
        some.put(text, row, looked=1e12)
    assert known.get(text) is row and expired.get(text) is not None  # a look from the future is never too old
    expired.put(text, row, looked=1.0)
    assert expired.get(text) is None and known.get("wnw_other") is None
    known.forget()
    assert known.get(text) is None
    known.put(text, row, looked=0.0)  # asked before the revocation, answered after it
    assert known.get(text) is None
