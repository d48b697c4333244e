"""Services over real HTTP: uvicorn in a thread, SQLite and artefacts in a temporary directory."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from conftest import wait_until
from fastapi import FastAPI

from winnow.domain import DatasetSpec
from winnow.settings import Settings
from winnow.store import claims, datasets
from winnow.store.tables import Dataset
from winnow_coordinator.app import make_app
from winnow_coordinator.context import Coordinator

Serve = Callable[[FastAPI], str]


@contextmanager
def serving(app: FastAPI, *, port: int = 0) -> Iterator[str]:
    """The address of `app` while a real server answers for it."""
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), 20, "the server to start")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Impatient settings: nothing waits longer than a test can."""
    (tmp_path / "data").mkdir()
    return Settings(
        state_dir=tmp_path / "state",
        data_roots=(tmp_path / "data",),
        lease_seconds=10,
        renew_seconds=0.2,
        steward_seconds=0.05,
        retry_seconds=0.1,
    )


@pytest.fixture
def coordinator(settings: Settings) -> Iterator[Coordinator]:
    opened = Coordinator.open(settings)
    opened.database.migrate()
    yield opened
    opened.close()


@pytest.fixture
def api(coordinator: Coordinator) -> Iterator[httpx.Client]:
    """The coordinator's API, without a steward."""
    app = make_app(coordinator, steward=False)
    with serving(app) as url, httpx.Client(base_url=f"{url}/api/v1", timeout=20) as client:
        yield client


def add_dataset(coordinator: Coordinator, name: str = "tissue", *, image_size: int = 32, **roles: Any) -> Dataset:
    """A ready dataset. `roles` gives each role's labels, one a sample: pool="ab" * 20, test=["a", None]."""
    given = roles or {"pool": "ab" * 20, "labelled": "aabb", "test": "abab"}
    spec = DatasetSpec.model_validate(
        {"name": name, "image_size": image_size, "sources": [{"kind": "folder", "path": "/patches"}]}
    )
    pairs = [(role, label) for role, labels in given.items() for label in labels]
    samples = [
        {"idx": i, "key": f"{role}/{i:03d}.png", "role": role, "label": label, "group": None}
        for i, (role, label) in enumerate(pairs)
    ]
    with coordinator.database.begin() as session:
        datasets.insert(session, spec)
    with coordinator.database.begin() as session:
        row = claims.claim(session, claims.INGEST, "tester", 30)
        assert isinstance(row, Dataset)
        result = {"classes": sorted({label for _, label in pairs if label}), "counts": count(pairs), "report": {}}
        datasets.complete(session, row.id, row.attempt, samples=samples, location="datasets/x/a1", **result)
    with coordinator.database.read() as session:
        return datasets.get(session, name)


def count(pairs: list[tuple[str, Any]]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for role, label in pairs:
        by_label = counts.setdefault(role, {})
        by_label[label or "(no label)"] = by_label.get(label or "(no label)", 0) + 1
    return counts


def experiment_body(**changes: Any) -> dict[str, Any]:
    """A small experiment on the dataset `tissue`."""
    small = {"name": "e", "dataset": "tissue", "positive_class": "a", "budget": 5, "rounds": 3, "candidates": 12}
    return {**small, **changes}
