"""Server-sent events: numbered, resumed where a client left off, ended with the experiment."""

import json
import threading
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from conftest import wait_until
from services.conftest import Driver, add_dataset, experiment_body, serving

from winnow.domain import ExperimentStatus
from winnow.store import claims, events, experiments
from winnow_coordinator.app import make_app
from winnow_coordinator.context import Coordinator


@dataclass
class Heard:
    """One event as a client sees it."""

    type: str
    data: dict[str, Any]
    id: int | None = None


def parse(text: str) -> list[Heard]:
    frames: list[Heard] = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            id = int(fields["id"]) if "id" in fields else None
            frames.append(Heard(fields["event"], json.loads(fields["data"]), id))
    return frames


class Listener:
    """A client that follows an experiment in a thread of its own."""

    def __init__(self, api: httpx.Client, id: str, **headers: str) -> None:
        self.text = ""
        self._url = f"{api.base_url}experiments/{id}/events"
        self._headers = headers
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        with httpx.stream("GET", self._url, headers=self._headers, timeout=20) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            for chunk in response.iter_text():
                self.text += chunk

    @property
    def heard(self) -> list[Heard]:
        return parse(self.text)

    def wait(self) -> list[Heard]:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.heard


@pytest.fixture
def experiment(api: httpx.Client, coordinator: Coordinator) -> str:
    add_dataset(coordinator)
    return api.post("/experiments", json=experiment_body()).json()["id"]


def end(coordinator: Coordinator, id: str) -> None:
    with coordinator.database.begin() as session:
        experiments.transition(session, id, ExperimentStatus.CANCELLING)
        experiments.transition(session, id, ExperimentStatus.CANCELLED)


def test_events_arrive_as_they_happen_and_end(
    api: httpx.Client, coordinator: Coordinator, driver: Driver, experiment: str
) -> None:
    listener = Listener(api, experiment)
    wait_until(lambda: len(listener.heard) == 2, 60, "what happened before")
    row = driver.claim()
    with coordinator.database.begin() as session:
        claims.renew(session, claims.TRAIN, row.id, row.attempt, 30, {"phase": "train", "epoch": 1})
    progress = wait_until(lambda: [e for e in listener.heard if e.type == "progress"], 60, "progress")
    assert (progress[0].id, progress[0].data) == (None, {"round": 0, "phase": "train", "epoch": 1})
    end(coordinator, experiment)
    numbered = [event for event in listener.wait() if event.id is not None]
    assert [event.id for event in numbered] == [1, 2, 3, 4, 5, 6]
    assert [event.type for event in numbered[:4]] == [
        "experiment.created",
        "round.queued",
        "experiment.running",
        "round.training",
    ]
    assert numbered[-1].type == "experiment.cancelled"


def test_a_client_resumes_behind_its_last_event(api: httpx.Client, coordinator: Coordinator, experiment: str) -> None:
    with coordinator.database.begin() as session:
        for n in range(700):  # more than one look takes
            events.append(session, experiment, "note", n=n)
    end(coordinator, experiment)
    everything = Listener(api, experiment).wait()
    assert [event.id for event in everything] == list(range(1, 705))
    resumed = Listener(api, experiment, **{"Last-Event-ID": "700"}).wait()
    assert resumed == everything[700:]
    after = parse(api.get(f"/experiments/{experiment}/events", params={"after": 702}).text)
    assert after == everything[702:]
    for id in ("soon", "-1", str(2**63)):
        refused = api.get(f"/experiments/{experiment}/events", headers={"Last-Event-ID": id})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid")
        assert api.get(f"/experiments/{experiment}/events", params={"after": id}).status_code == 422


def test_a_stopping_coordinator_ends_its_streams(coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    with serving(make_app(coordinator, steward=False)) as url, httpx.Client(base_url=f"{url}/api/v1") as api:
        id = api.post("/experiments", json=experiment_body()).json()["id"]
        listener = Listener(api, id)
        wait_until(lambda: listener.heard, 60, "the stream to begin")
        coordinator.stopping.set()
        assert [event.type for event in listener.wait()] == ["experiment.created", "round.queued"]
