"""Requests that take long leave the threads to those that do not."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from conftest import wait_until
from services.conftest import add_dataset, experiment_body

from winnow.artefacts import DirectoryStore
from winnow.store import datasets
from winnow_coordinator.app import THREADS
from winnow_coordinator.context import SLOW_AT_ONCE, Coordinator

MANY = THREADS + 2


@pytest.mark.parametrize(
    ("method", "path", "place", "name"),
    [("DELETE", "/datasets/spare-{n}", datasets, "_remove_slice"), ("GET", "/storage", DirectoryStore, "lying")],
)
def test_others_are_answered_meanwhile(
    api: httpx.Client,
    coordinator: Coordinator,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    place: Any,
    name: str,
) -> None:
    work, begun, may_go_on = getattr(place, name), set[int](), threading.Event()

    def hold(*arguments: Any) -> Any:
        begun.add(threading.get_ident())
        assert may_go_on.wait(60)
        return work(*arguments)

    def ask(n: int) -> int:
        return api.request(method, path.format(n=n), timeout=60).status_code

    add_dataset(coordinator)
    id = api.post("/experiments", json=experiment_body()).raise_for_status().json()["id"]
    for n in range(MANY):
        add_dataset(coordinator, f"spare-{n}", pool="ab")
    monkeypatch.setattr(place, name, hold)
    with ThreadPoolExecutor(MANY) as pool:
        answers = pool.map(ask, range(MANY))
        try:
            wait_until(lambda: len(begun) == SLOW_AT_ONCE, 20, "the first to be held")
            assert api.post(f"/experiments/{id}/pause").json()["status"] == "pausing"
            assert api.get(str(api.base_url.join("/metrics"))).status_code == 200
            assert len(begun) == SLOW_AT_ONCE
        finally:
            may_go_on.set()
        assert set(answers) == {204 if method == "DELETE" else 200}
