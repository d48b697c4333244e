"""The sampling service over real HTTP: the library's answers, computed once."""

from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import faiss
import httpx
import numpy as np
import pytest
from conftest import wait_until
from services.conftest import serving
from services.sampler.conftest import CENTERS, POOL, PROBABILITIES, SLOW, Json, inline, slow_request

from winnow.artefacts import DirectoryStore, put_array
from winnow.selection import select
from winnow.settings import Settings
from winnow_sampler import snapshots
from winnow_sampler.app import make_app

STRATEGIES: dict[str, dict[str, np.ndarray[Any, Any]]] = {
    "k_center": {"pool": POOL, "centers": CENTERS},
    "entropy": {"probabilities": PROBABILITIES},
    "margin": {"probabilities": PROBABILITIES},
    "least_confidence": {"probabilities": PROBABILITIES},
}


def ask(http: httpx.Client, **request: Any) -> Json:
    answer = http.post("/v1/selections", json=request)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("by_reference", [False, True])
def test_it_answers_what_the_library_answers(
    http: httpx.Client, store: DirectoryStore, strategy: str, by_reference: bool
) -> None:
    arrays = STRATEGIES[strategy]
    given = inline(arrays)
    if by_reference:
        kept = {name: put_array(store, f"arrays/{name}.npy", array) for name, array in arrays.items()}
        given = {name: {"key": stored.key, "sha256": stored.sha256} for name, stored in kept.items()}
    answer = ask(http, strategy=strategy, budget=9, **given)
    expected = select(strategy, budget=9, **arrays)
    assert answer["indices"] == expected.indices.tolist()
    assert np.allclose(answer["scores"], expected.scores)
    assert answer.get("radius") == expected.radius


def test_direction_and_random(http: httpx.Client) -> None:
    given = inline({"probabilities": PROBABILITIES})
    low = ask(http, strategy="entropy", budget=5, direction="low", **given)
    expected = select("entropy", budget=5, direction="low", probabilities=PROBABILITIES)
    assert low["indices"] == expected.indices.tolist()
    drawn = ask(http, strategy="random", budget=5, seed=7, size=100)
    assert drawn["indices"] == select("random", budget=5, seed=7, n=100).indices.tolist()


def test_the_same_request_is_computed_once(http: httpx.Client, store: DirectoryStore) -> None:
    request = slow_request(store) | {"budget": 200}
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: ask(http, **request), range(6)))
    assert all(answer == answers[0] for answer in answers), "one computation: one duration"
    assert len(store.list("selections")) == 1
    other = ask(http, **(request | {"budget": 201}))
    assert other["id"] != answers[0]["id"]


def test_a_restarted_sampler_answers_from_the_store(settings: Settings, store: DirectoryStore) -> None:
    request = {"strategy": "k_center", "budget": 9, **inline(STRATEGIES["k_center"])}
    answers: list[Json] = []
    for _ in range(2):
        with serving(make_app(settings)) as url, httpx.Client(base_url=url) as http:
            answers.append(ask(http, **request))
            assert http.get(f"/v1/selections/{answers[0]['id']}").json() == answers[0]
    assert answers[0] == answers[1], "seconds are those of the first"


@pytest.mark.parametrize(("module", "name"), [(snapshots, "PICKS"), (faiss, "__version__"), (np, "__version__")])
def test_an_answer_of_other_code_is_not_found_again(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str
) -> None:
    request = {"strategy": "random", "budget": 5, "size": 10}
    before = ask(http, **request)
    monkeypatch.setattr(module, name, "another")
    assert ask(http, **request)["id"] != before["id"]


def test_an_answer_that_cannot_be_read_again_is_computed_again(http: httpx.Client, store: DirectoryStore) -> None:
    request = {"strategy": "random", "budget": 5, "size": 10}
    answer = ask(http, **request)
    store.local(f"selections/{answer['id']}.json").write_text("{")
    again = ask(http, **request)
    assert again["indices"] == answer["indices"]


def test_exact_copies_are_near_duplicates_at_distance_0(http: httpx.Client) -> None:
    pool = {"inline": [[0, 0], [1, 1], [0, 0]]}
    answer = ask(http, strategy="random", budget=2, pool=pool, near_duplicates={"threshold": 0, "metric": "l2"})
    assert sorted(answer["indices"]) == [0, 1]


def test_a_long_selection_is_a_job_to_poll(hasty: httpx.Client, store: DirectoryStore) -> None:
    request = slow_request(store) | {"budget": 2000}
    begun = hasty.post("/v1/selections", json=request)
    assert begun.status_code == 202
    assert begun.json()["status"] in ("queued", "running") and "indices" not in begun.json()
    place = begun.headers["Location"]
    done = wait_until(lambda: _done(hasty, place), 120, "the selection")
    assert done["indices"] == select("k_center", budget=2000, pool=SLOW).indices.tolist()
    assert hasty.post("/v1/selections", json=request).status_code == 200


def test_a_cancelled_selection_stops_and_may_be_asked_again(hasty: httpx.Client, store: DirectoryStore) -> None:
    request = slow_request(store)
    place = hasty.post("/v1/selections", json=request).headers["Location"]
    wait_until(lambda: hasty.get(place).json().get("progress", {}).get("done"), 60, "some picks")
    assert hasty.delete(place).json()["status"] == "cancelled"
    assert not store.list("selections"), "a prefix is no answer"
    assert hasty.post("/v1/selections", json=request).status_code == 202
    hasty.delete(place)


def test_cancelling_what_is_done_changes_nothing(http: httpx.Client) -> None:
    answer = ask(http, strategy="random", budget=5, size=10)
    assert http.delete(f"/v1/selections/{answer['id']}").json() == answer


@pytest.mark.parametrize(
    ("request_", "status", "code", "reason"),
    [
        ({"strategy": "random", "budget": 11, "size": 10}, 422, "invalid", "budget"),
        ({"strategy": "random", "budget": 0, "size": 10}, 422, "invalid", "budget"),
        ({"strategy": "random", "budget": 1, "size": 10**12}, 422, "invalid", "size"),
        ({"strategy": "random", "budget": 1, "size": 3, "pool": {"inline": [[1]]}}, 422, "invalid", "pool's 1, got 3"),
        (
            {"strategy": "random", "budget": 1, "size": 3, "groups": {"inline": ["a"]}},
            422,
            "invalid",
            "groups: needs 3 labels",
        ),
        ({"strategy": "nearest", "budget": 1}, 422, "invalid", "strategy"),
        ({"strategy": "k_center", "budget": 1}, 422, "invalid", "pool"),
        ({"strategy": "entropy", "budget": 1, "probabilities": {"inline": [[0.7, 0.7]]}}, 422, "invalid", "sum"),
        ({"strategy": "k_center", "budget": 1, "pool": {"inline": [[1, 2], [3]]}}, 422, "invalid", "lengths"),
        ({"strategy": "k_center", "budget": 1, "pool": {}}, 422, "invalid", "either key or inline"),
        ({"strategy": "k_center", "budget": 1, "pool": {"inline": [[0.5] * 1001]}}, 413, "too-large", "limit is 1000"),
        ({"strategy": "k_center", "budget": 1, "pool": {"key": "no/such.npy"}}, 404, "not-found", "no/such.npy"),
        (
            {"strategy": "k_center", "budget": 1, "pool": {"key": "../secret.npy"}},
            422,
            "invalid",
            "not an artefact key",
        ),
    ],
)
def test_what_cannot_be_picked_is_refused(
    http: httpx.Client, request_: Json, status: int, code: str, reason: str
) -> None:
    answer = http.post("/v1/selections", json=request_)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert reason in answer.text


def test_changed_bytes_are_noticed(http: httpx.Client, store: DirectoryStore) -> None:
    stored = put_array(store, "arrays/pool.npy", POOL)
    put_array(store, "arrays/pool.npy", POOL + 1)
    given = {"key": stored.key, "sha256": stored.sha256}
    answer = http.post("/v1/selections", json={"strategy": "k_center", "budget": 1, "pool": given})
    assert (answer.status_code, answer.json()["code"]) == (500, "artefact-corrupt")


def test_unknown_selections(http: httpx.Client) -> None:
    for id in ("a" * 64, "..%2F..%2Fetc", "a" * 5000, "%C3%A9"):
        assert http.get(f"/v1/selections/{id}").status_code == 404
        assert http.delete(f"/v1/selections/{id}").status_code == 404


def test_the_token(settings: Settings) -> None:
    guarded = Settings(state_dir=settings.state_dir, sampler_token="secret")
    request = {"strategy": "random", "budget": 1, "size": 2}
    with serving(make_app(guarded)) as url, httpx.Client(base_url=url) as http:
        assert http.post("/v1/selections", json=request).status_code == 401
        wrong = {"Authorization": "Bearer wrong"}
        assert http.post("/v1/selections", json=request, headers=wrong).json()["code"] == "not-authorised"
        right = {"Authorization": "Bearer secret"}
        assert http.post("/v1/selections", json=request, headers=right).status_code == 200
        assert http.get("/healthz").status_code == http.get("/readyz").status_code == 200


def test_it_describes_itself(http: httpx.Client) -> None:
    assert set(http.get("/openapi.json").json()["paths"]) >= {"/v1/selections", "/v1/selections/{id}"}


def test_what_is_computed_is_counted_once(hasty: httpx.Client, store: DirectoryStore) -> None:
    request = slow_request(store) | {"budget": 2000}
    place = hasty.post("/v1/selections", json=request).headers["Location"]
    wait_until(lambda: _done(hasty, place), 120, "the selection that was answered 202")
    assert hasty.post("/v1/selections", json=request).status_code == 200, "a replay computes nothing"
    counted = hasty.get("/metrics").text
    assert 'winnow_selection_seconds_count{strategy="k_center"} 1.0' in counted
    assert "winnow_selections_running 0.0" in counted


def _done(http: httpx.Client, place: str) -> Json:
    found = http.get(place).json()
    return found if found["status"] == "done" else {}
