"""The Python client against a real coordinator."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import wait_until
from gateway import Gateway
from processes import free_port
from services.conftest import Driver, add_dataset, experiment_body, move, serving

from winnow import calls
from winnow.client import ApiProblem, Client, Event
from winnow.domain import ExperimentSpec, ExperimentStatus
from winnow.errors import ArtefactCorrupt, Unavailable
from winnow_coordinator.app import make_app
from winnow_coordinator.context import Coordinator


@pytest.fixture
def client(coordinator: Coordinator) -> Iterator[Client]:
    with serving(make_app(coordinator, steward=False)) as url, Client(url) as opened:
        yield opened


def test_everything_that_rest_shows(coordinator: Coordinator, client: Client) -> None:
    assert client.is_ready()
    add_dataset(coordinator)
    made = client.create_experiment(ExperimentSpec.model_validate(experiment_body()))
    id = made["id"]
    Driver(coordinator).train()
    assert [found["name"] for found in client.datasets()] == ["tissue"]
    assert client.dataset("tissue")["samples"] == 48
    assert {sample["role"] for sample in client.samples("tissue", role="test")} == {"test"}
    assert len(list(client.samples("tissue"))) == 48
    assert [found["id"] for found in client.experiments(status="running")] == [id] == [client.experiment(id)["id"]]
    assert list(client.experiments(status="failed")) == []
    assert [found["number"] for found in client.rounds(id)] == [0]
    picks = client.selection(id, 0)
    assert [pick["rank"] for pick in picks] == list(range(5))
    assert client.metrics(id)["items"][0]["samples"] == 5
    index = client.array(id, 0, "candidates/index")
    assert index.dtype == np.int64 and len(index) == 12
    assert not set(index.tolist()) & {pick["idx"] for pick in picks}
    assert list(client.workers()) == []


def test_a_creating_call_is_repeated_under_its_key(coordinator: Coordinator, client: Client) -> None:
    add_dataset(coordinator)
    first, second = (client.create_experiment(experiment_body(), idempotency_key="once") for _ in range(2))
    assert first["id"] == second["id"] != client.create_experiment(experiment_body(name="other"))["id"]


def test_orders(coordinator: Coordinator, client: Client) -> None:
    add_dataset(coordinator)
    id = client.create_experiment(experiment_body())["id"]
    assert client.pause(id)["status"] == "pausing"
    assert client.resume(id)["status"] == "running"
    assert client.cancel(id)["status"] == "cancelling"
    with pytest.raises(ApiProblem) as refused:
        client.resume(id)
    assert (refused.value.status, refused.value.code) == (409, "wrong-state")
    assert refused.value.problem["current"] == "cancelling"


def test_problems_name_the_field(coordinator: Coordinator, client: Client) -> None:
    add_dataset(coordinator)
    with pytest.raises(ApiProblem, match=r"budget: .*greater than or equal to 1") as refused:
        client.create_experiment(experiment_body(budget=0))
    assert refused.value.problem["field"] == "budget"
    with pytest.raises(ApiProblem, match="no experiment 'nope'"):
        client.experiment("nope")


@pytest.mark.parametrize("name", ["", ".", "..", "../experiments", "tissue/skipped", "a?b", "a#b", "%2e%2e", "\udcff"])
def test_a_name_reaches_nothing_but_what_is_called_that(coordinator: Coordinator, client: Client, name: str) -> None:
    add_dataset(coordinator)
    asked: list[Callable[[str], object]] = [
        *(client.dataset, client.remove_dataset, client.skipped, lambda name: list(client.samples(name))),
        *(client.experiment, client.remove_experiment, client.pause, client.revoke_key),
        lambda name: client.artefact("0" * 24, 0, f"candidates/{name}"),
    ]
    for ask in asked:
        with pytest.raises(ApiProblem, match=r"^no (dataset|experiment|key|artefact) '") as refused:
            ask(name)
        assert refused.value.is_not_found
    assert [found["name"] for found in client.datasets()] == ["tissue"]


def test_keys_are_made_listed_and_revoked(client: Client) -> None:
    made = client.create_key("notebook", ["run"])
    assert made["key"]
    assert [key["id"] for key in client.api_keys()] == [made["id"]]
    client.revoke_key(made["id"])
    assert next(client.api_keys())["revoked_at"]


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_a_key_is_made_and_revoked_though_the_answer_is_lost(client: Client, method: str) -> None:
    lost: list[str] = []

    class Cut(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answer = super().handle_request(request)
            if request.method == method and not lost:
                lost.append(answer.headers["X-Request-Id"])
                answer.close()
                raise httpx.ReadError("cut off", request=request)
            return answer

    client._calls.http._transport = Cut()  # pyright: ignore[reportPrivateUsage] - where the network would be
    made = client.create_key("notebook", ["run"])
    assert made["key"]
    valid = [key["id"] for key in client.api_keys() if key["revoked_at"] is None]
    assert valid == [made["id"]], "nobody knows the text of another"
    client.revoke_key(made["id"])
    assert lost and all(key["revoked_at"] for key in client.api_keys())


def test_events_are_taken_up_where_a_coordinator_left(coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    port = free_port()
    heard: list[Event] = []
    with serving(make_app(coordinator, steward=False), port=port) as url:
        client = Client(url)
        id = client.create_experiment(experiment_body())["id"]
        listener = threading.Thread(target=lambda: heard.extend(client.events(id)))
        listener.start()
        coordinator.stopping.set()
    coordinator.stopping.clear()
    Driver(coordinator).train()
    with serving(make_app(coordinator, steward=False), port=port):
        move(coordinator, id, ExperimentStatus.CANCELLING, ExperimentStatus.CANCELLED)
        listener.join(30)
        assert not listener.is_alive()
    client.close()
    numbered = [event.id for event in heard if event.id is not None]
    assert numbered == sorted(set(numbered)), "each event once, in order"
    assert {"round.trained", "experiment.cancelled"} <= {event.type for event in heard}


def test_events_end_at_a_pause_where_that_is_wanted(coordinator: Coordinator, client: Client) -> None:
    add_dataset(coordinator)
    id = client.create_experiment(experiment_body())["id"]
    pause = (ExperimentStatus.PAUSING, ExperimentStatus.PAUSED)
    move(coordinator, id, *pause, ExperimentStatus.RUNNING, *pause)
    heard = [event.type for event in client.events(id, until_paused=True)]
    assert heard.count("experiment.paused") == 2, "a pause of the past ends nothing"
    assert heard[-1] == "experiment.paused"
    assert not list(client.events(id, after=len(heard), until_paused=True)), "nor is one waited for that was told"


def test_a_stream_that_breaks_after_its_experiment_was_resumed_goes_on(coordinator: Coordinator) -> None:
    class Unlucky(Client):
        """Whenever it sees that an experiment has failed, somebody resumes it at once."""

        looks = 0

        def experiment(self, id: str) -> dict[str, Any]:
            view = super().experiment(id)
            self.looks += 1
            if view["status"] == "failed":
                move(coordinator, id, ExperimentStatus.RUNNING)
            return view

    add_dataset(coordinator)
    port = free_port()
    heard: list[Event] = []
    with Unlucky(f"http://127.0.0.1:{port}") as client, ThreadPoolExecutor(1) as pool:
        with serving(make_app(coordinator, steward=False), port=port):
            id = client.create_experiment(experiment_body())["id"]
            move(coordinator, id, ExperimentStatus.FAILED)
            followed = pool.submit(lambda: heard.extend(client.events(id)))
            wait_until(lambda: heard and heard[-1].type == "experiment.running", 60, "it to be followed again")
        coordinator.stopping.set()  # the one before went without a word; streams of this one end at once, and silently
        with serving(make_app(coordinator, steward=False), port=port):
            wait_until(lambda: client.looks >= 2 or followed.done(), 60, "a stream without news to end")
        coordinator.stopping.clear()
        with serving(make_app(coordinator, steward=False), port=port):
            move(coordinator, id, ExperimentStatus.CANCELLING, ExperimentStatus.CANCELLED)
            followed.result(60)
    assert heard[-1].type == "experiment.cancelled"
    assert [event.id for event in heard] == list(range(1, len(heard) + 1)), "each event once, in order"


def test_a_download_that_does_not_fit_its_sha256_leaves_no_file(
    coordinator: Coordinator, client: Client, tmp_path: Path
) -> None:
    add_dataset(coordinator)
    id = client.create_experiment(experiment_body())["id"]
    Driver(coordinator).train()
    target = tmp_path / "index.npy"
    client.download(id, 0, "candidates/index", target)
    assert np.array_equal(np.load(target), client.array(id, 0, "candidates/index"))
    target.unlink()
    (row,) = [a for a in client.round(id, 0)["artefacts"] if a["kind"] == "candidates/index"]
    stored = coordinator.artefacts.local(row["key"])
    stored.write_bytes(stored.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ArtefactCorrupt):
        client.download(id, 0, "candidates/index", target)
    with pytest.raises(ArtefactCorrupt):
        client.artefact(id, 0, "candidates/index")
    assert not list(tmp_path.glob("index*"))


def test_nobody_there_is_said_with_what_to_do() -> None:
    with Client(f"http://127.0.0.1:{free_port()}") as client:
        assert not client.is_ready()
        with pytest.raises(Unavailable, match="winnow up"):
            client.dataset("tissue")


def test_a_coordinator_that_comes_back_is_waited_for(coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    port = free_port()
    found: list[str] = []
    with Client(f"http://127.0.0.1:{port}") as client:
        asking = threading.Thread(target=lambda: found.append(client.dataset("tissue")["name"]))
        asking.start()
        with serving(make_app(coordinator, steward=False), port=port):
            wait_until(lambda: found, 20, "the answer")
        asking.join()


def test_one_that_went_is_told_once_until_it_is_back(coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    port, told, pause = free_port(), list[str](), threading.Event()

    def tell(words: str) -> None:
        pause.wait(0.2)  # the other thread finds no answer meanwhile
        told.append(words)

    with Client(f"http://127.0.0.1:{port}", on_silence=tell) as client, ThreadPoolExecutor(2) as pool:
        with pytest.raises(Unavailable):
            client.dataset("tissue")
        assert not told, "one that never answered is soon given up, and that is said"
        for times in (1, 2):
            with serving(make_app(coordinator, steward=False), port=port):
                assert client.dataset("tissue")
            asked = [pool.submit(client.dataset, "tissue") for _ in range(2)]
            wait_until(lambda times=times: len(told) == times, 20, "the silence to be told")
            with serving(make_app(coordinator, steward=False), port=port):
                assert all(one.result(30) for one in asked)
    assert len(told) == 2 and "asked again" in told[0]


def test_a_call_that_took_longer_than_patience_is_repeated_too(
    coordinator: Coordinator, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "RESTART_SECONDS", 0.2)
    add_dataset(coordinator)
    with Client(f"http://127.0.0.1:{gateway.port}") as client, ThreadPoolExecutor(1) as pool:
        assert client.dataset("tissue")
        gateway.close_half()
        began, asked = time.monotonic(), pool.submit(client.dataset, "tissue")
        wait_until(lambda: time.monotonic() > began + 1, 20, "the call to last")
        gateway.heal(cut=True)
        assert asked.result(30)["name"] == "tissue"
