"""Jobs: memory, places in the queue, cancelled prefixes, formats; comparisons."""

import gc
import io
import json
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as arrow
import pytest
from conftest import wait_until
from services.conftest import problem, serving
from services.sampler.conftest import POOL, PROBABILITIES, SLOW, Json, slow_request
from services.sampler.held import Held, Jobs

from winnow.artefacts import DirectoryStore, Stored, put_array
from winnow.errors import InvalidInput, NotFound
from winnow.selection import k_center_greedy, requirements, select, strategies
from winnow.settings import Settings
from winnow_sampler import examples
from winnow_sampler.app import make_app
from winnow_sampler.digests import Stopped
from winnow_sampler.jobs import WORKERS, Job
from winnow_sampler.memory import GIB, DoesNotFit


@pytest.fixture
def jobs(store: DirectoryStore) -> Iterator[Jobs]:
    made = Jobs(store, 100)
    yield made
    made.close()


def test_what_fits_runs_and_what_must_wait_says_its_place(jobs: Jobs) -> None:
    works = [Held() for _ in range(4)]
    needs = [60, 60, 30, 10]
    views = [jobs.submit("selections", f"j{i}", need, works[i], wait=0) for i, need in enumerate(needs)]
    assert "place" not in views[0]
    assert [view.get("place") for view in views[1:]] == [1, 2, 3], "small ones do not overtake the large one"
    assert views[1]["status"] == "queued" and views[1]["need_bytes"] == 60
    works[0].let_go.set()
    wait_until(lambda: jobs.get("selections", "j1")["status"] == "running", 20, "the second to start")
    wait_until(lambda: jobs.get("selections", "j2")["status"] == "running", 20, "the third beside it")
    assert jobs.get("selections", "j3")["place"] == 1, f"{WORKERS} at a time"
    for work in works:
        work.let_go.set()
    wait_until(lambda: jobs.running == 0, 20, "all to end")
    assert [jobs.get("selections", f"j{i}")["status"] for i in range(4)] == ["done"] * 4


def test_what_can_never_fit_is_refused(jobs: Jobs) -> None:
    with pytest.raises(DoesNotFit) as refused:
        jobs.submit("selections", "j", 101, Held(), wait=0)
    assert (refused.value.needed_bytes, refused.value.budget_bytes) == (101, 100)


def test_one_that_waits_can_be_cancelled_and_makes_way(jobs: Jobs) -> None:
    works = [Held() for _ in range(3)]
    for i, need in enumerate((60, 60, 40)):
        jobs.submit("selections", f"j{i}", need, works[i], wait=0)
    assert jobs.cancel("selections", "j1")["status"] == "cancelled"
    wait_until(lambda: jobs.get("selections", "j2")["status"] == "running", 20, "the one behind it")


def test_a_request_sent_while_it_is_cancelled_begins_anew(store: DirectoryStore) -> None:
    sent: list[Json] = []

    class Asking(DirectoryStore):
        """Sends the request again at the moment that the cancelled one is noted."""

        def put(self, key: str, source: Path | bytes) -> Stored:
            sent.append(jobs.submit("selections", "waits", 60, again, wait=0))
            return super().put(key, source)

    jobs, again, runs = Jobs(Asking(store.root), 100), Held(), Held()
    jobs.submit("selections", "runs", 60, runs, wait=0)
    jobs.submit("selections", "waits", 60, Held(), wait=0)
    assert jobs.cancel("selections", "waits")["status"] == "cancelled"
    assert [one["status"] for one in sent] == ["queued"]
    jobs.close()


def test_a_failure_gives_its_memory_back(jobs: Jobs) -> None:
    def fail(job: Job) -> Json:
        raise ValueError("budget: needs more")

    for i in range(3):
        with pytest.raises(Exception, match="needs more"):
            jobs.submit("selections", f"j{i}", 100, fail, wait=20)
    assert jobs.running == 0


def test_a_prefix_outlives_the_process_but_not_a_shutdown(store: DirectoryStore) -> None:
    first = Jobs(store, 100)
    first.submit("selections", "kept", 1, Held(), wait=0)
    assert first.cancel("selections", "kept")["indices"] == [1, 2]
    first.submit("selections", "lost", 1, Held(), wait=0)
    first.close()
    second = Jobs(store, 100)
    assert second.get("selections", "kept")["status"] == "cancelled"
    with pytest.raises(NotFound):
        second.get("selections", "lost")
    again = Held()
    again.let_go.set()
    assert second.submit("selections", "kept", 1, again, wait=20)["status"] == "done", "a prefix is not the answer"
    assert second.get("selections", "kept")["status"] == "done"
    second.close()


def test_one_cancelled_before_it_began_is_so_after_a_restart(store: DirectoryStore) -> None:
    def never(job: Job) -> str:
        while not job.cancelled.wait(0.01):
            pass
        raise Stopped

    first = Jobs(store, 100)
    first.submit("selections", "runs", 60, Held(), wait=0)
    first.submit("selections", "waits", 60, Held(), wait=0)
    assert first.cancel("selections", "waits")["status"] == "cancelled"
    first.submit("selections", "reads", 10, Held(), wait=0, identify=never)
    assert first.cancel("selections", "reads")["status"] == "cancelled"
    first.close()
    second = Jobs(store, 100)
    assert second.get("selections", "waits") == {"id": "waits", "status": "cancelled"}
    assert second.get("selections", "reads") == {"id": "reads", "status": "cancelled"}
    with pytest.raises(NotFound):
        second.get("selections", "runs")
    second.close()


def test_a_job_is_known_by_the_id_that_it_began_with_and_by_its_own(jobs: Jobs, store: DirectoryStore) -> None:
    work, again = Held(), Held()
    jobs.submit("selections", "state", 10, work, wait=0, identify=lambda job: "bytes")
    wait_until(lambda: jobs.get("selections", "state")["id"] == "bytes", 20, "the digest")
    joined = jobs.submit("selections", "bytes", 10, again, wait=0)
    assert joined["status"] == "running" and jobs.running == 1, "computed once"
    work.let_go.set()
    wait_until(lambda: jobs.running == 0, 20, "the job to end")
    assert jobs.get("selections", "state") == jobs.get("selections", "bytes")
    assert store.list("selections") == ["selections/bytes.json"]
    other = jobs.submit("selections", "touched", 10, again, wait=20, identify=lambda job: "bytes")
    assert other == jobs.get("selections", "bytes"), "the answer was there already"


class Answer(dict[str, Any]):
    """A document that can be seen to go."""


def test_of_a_job_that_has_ended_nothing_large_stays_in_memory(jobs: Jobs) -> None:
    seen: list[weakref.ref[Any]] = []

    def pick(job: Job) -> Json:
        arrays = np.zeros(9)
        answer = Answer(id=job.id, status="cancelled" if job.id == "part" else "done", indices=arrays.tolist())
        seen.extend([weakref.ref(arrays), weakref.ref(answer)])
        if job.id == "wrong":
            raise InvalidInput("pool", "is wrong")
        return answer

    for id in ("whole", "part"):
        assert jobs.submit("selections", id, 1, pick, wait=20)["indices"] == [0] * 9
    with pytest.raises(InvalidInput, match="is wrong"):
        jobs.submit("selections", "wrong", 1, pick, wait=20)
    with pytest.raises(InvalidInput, match="is wrong") as refused:
        jobs.get("selections", "wrong")
    assert (refused.value.field, refused.value.reason) == ("pool", "is wrong")
    wait_until(lambda: jobs.running == 0, 20, "the jobs to leave")
    gc.collect()
    assert [ref() for ref in seen] == [None] * 6
    assert jobs.get("selections", "whole")["indices"] == jobs.get("selections", "part")["indices"] == [0] * 9


def test_an_answer_that_was_removed_is_computed_again(jobs: Jobs, store: DirectoryStore) -> None:
    work = Held()
    work.let_go.set()
    jobs.submit("selections", "state", 1, work, wait=20, identify=lambda job: "bytes")
    store.delete("selections")
    for id in ("state", "bytes"):
        with pytest.raises(NotFound):
            jobs.get("selections", id)
    assert jobs.submit("selections", "state", 1, work, wait=20, identify=lambda job: "bytes")["indices"] == [1, 2, 3]
    assert store.list("selections") == ["selections/bytes.json"]


def test_uploads_are_held_until_the_jobs_that_work_on_them_end(jobs: Jobs) -> None:
    works = [Held(), Held()]
    for i, work in enumerate(works):
        jobs.submit("selections", f"j{i}", 60, work, wait=0, holds=frozenset({f"u{i}"}))
    assert jobs.held() == {"u0", "u1"}, "one runs, one waits"
    for work in works:
        work.let_go.set()
    wait_until(lambda: not jobs.held(), 20, "both to end")


def test_a_cancelled_selection_shows_the_valid_prefix(settings: Settings, store: DirectoryStore) -> None:
    request = slow_request(store)
    hasty = settings.model_copy(update={"answer_seconds": 0.01})
    with serving(make_app(hasty)) as url, httpx.Client(base_url=url, timeout=60) as http:
        place = http.post("/v1/selections", json=request).headers["Location"]
        wait_until(lambda: http.get(place).json().get("progress", {}).get("done"), 60, "some picks")
        prefix = http.delete(place).json()
        assert prefix["status"] == "cancelled" and "cancelled after" in prefix["notes"][-1]
        count = len(prefix["indices"])
        assert 0 < count < 20_000
        assert prefix["indices"] == k_center_greedy(SLOW, count).indices.tolist(), "the answer to a smaller budget"
        rows = np.load(io.BytesIO(http.get(place, headers={"Accept": "application/x-npy"}).content))
        assert rows.tolist() == prefix["indices"]


def test_what_no_memory_would_fit_is_refused_with_the_bytes(settings: Settings, store: DirectoryStore) -> None:
    stored = put_array(store, "pool.npy", POOL)
    small = settings.model_copy(update={"sampler_memory_gib": 1e-3})
    with serving(make_app(small)) as url, httpx.Client(base_url=url, timeout=60) as http:
        request = {"strategy": "k_center", "budget": 2, "pool": {"key": stored.key}}
        found = problem(http.post("/v1/selections", json=request), 413, "does-not-fit")
        assert found["budget_bytes"] == int(1e-3 * GIB) < found["needed_bytes"]
        assert str(found["needed_bytes"]) in found["detail"]


@pytest.mark.parametrize("strategy", strategies())
def test_every_strategy_answers_what_the_library_answers(http: httpx.Client, strategy: str) -> None:
    given = {"pool": POOL, "probabilities": PROBABILITIES}
    wanted = {name: given[name] for name in requirements(strategy).requires} or {"pool": POOL}
    request = {name: {"inline": array.tolist()} for name, array in wanted.items()}
    answer = http.post("/v1/selections", json={"strategy": strategy, "budget": 6, "seed": 3, **request})
    assert answer.status_code == 200, answer.text
    assert answer.json()["indices"] == select(strategy, budget=6, seed=3, **wanted).indices.tolist()


def test_constraints_and_the_near_duplicate_stage(http: httpx.Client) -> None:
    pool = np.concatenate([POOL[:20], POOL[:20] * 1.0001])
    request = {
        "strategy": "k_center",
        "budget": 6,
        "pool": {"inline": pool.tolist()},
        "groups": {"inline": ["a", "b"] * 20},
        "constraints": {"cap": {"b": 2}, "exclude": [0, 1], "pinned": [5, 30], "quota": {"b": 2}},
        "near_duplicates": {"threshold": 0.9999},
    }
    answer = http.post("/v1/selections", json=request).json()
    assert answer["indices"][:2] == [5, 30] and not {0, 1} & set(answer["indices"])
    assert sum(row % 2 for row in answer["indices"]) == 2
    assert all(row < 20 for row in answer["indices"][2:]), "the copies are set aside"
    assert any("near-duplicate stage" in note for note in answer["notes"])


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"constraints": {"exclude": list(range(79))}, "budget": 2}, r"1 picks are possible.*exclude \(79 rows\)"),
        ({"constraints": {"exclude": [2**64]}}, "9223372036854775807"),
        ({"constraints": {"pinned": [80]}}, "needs rows 0 to 79"),
        ({"constraints": {"cap": 1}}, "needs the group of each row"),
        ({"constraints": {"minimum_distance": 1e6}, "budget": 2}, "1 picks are possible at most"),
        ({"groups": {"inline": ["a"]}, "constraints": {"cap": 1}}, "needs 80 labels"),
        ({"groups": {"by": "file"}, "constraints": {"cap": 1}}, "came from files"),
        ({"budget": 81}, "needs 1 to 80"),
        ({"probabilities": {"inline": [[1.0]]}}, "needs a row for each of pool's 80"),
        ({"pool": {"inline": []}}, "is empty"),
        ({"centers": {"inline": [[1.0]]}}, "centers"),
        ({"unknown": 1}, "Extra inputs"),
    ],
)
def test_what_cannot_be_picked_says_why(http: httpx.Client, more: Json, reason: str) -> None:
    request = {"strategy": "k_center", "budget": 1, "pool": {"inline": POOL.tolist()}, **more}
    found = problem(http.post("/v1/selections", json=request), 422, "invalid")
    assert re.search(reason, found["detail"]), found["detail"]


def test_the_formats(http: httpx.Client) -> None:
    request = {"strategy": "k_center", "budget": 7, "pool": {"inline": POOL.tolist()}}

    def ask(accept: str) -> httpx.Response:
        return http.post("/v1/selections", json=request, headers={"Accept": accept})

    whole = ask("application/json").json()
    rows = [
        {"rank": rank, "row": row, "score": score}
        for rank, (row, score) in enumerate(zip(whole["indices"], whole["scores"], strict=True))
    ]
    lines = ask("application/x-ndjson")
    assert [json.loads(line) for line in lines.text.splitlines()] == rows
    assert lines.headers["Vary"] == "Accept"
    picks = np.load(io.BytesIO(ask("application/x-npy").content), allow_pickle=False)
    assert picks.dtype == np.int64 and picks.tolist() == whole["indices"]
    stream = ask("application/vnd.apache.arrow.stream;q=0.9, text/html")
    assert stream.headers["Content-Type"] == "application/vnd.apache.arrow.stream"
    table = arrow.ipc.open_stream(stream.content).read_all()
    assert table.column_names == ["rank", "row", "score"]
    assert table.column("row").to_pylist() == whole["indices"]
    assert np.allclose(table.column("score").to_pylist(), whole["scores"])
    assert json.loads(table.schema.metadata[b"winnow"])["radius"] == whole["radius"]
    problem(ask("text/html"), 406, "not-acceptable")


def test_a_comparison_measures_what_its_strategies_pick(http: httpx.Client, store: DirectoryStore) -> None:
    contenders = [{"strategy": "k_center"}, {"strategy": "random", "seed": 1}, {"strategy": "random", "name": "again"}]
    request = {
        "strategies": contenders,
        "budget": 8,
        "pool": {"inline": POOL.tolist()},
        "groups": {"inline": [row % 2 for row in range(80)]},
        "labels": {"inline": ["x"] * 80},
    }
    answer = http.post("/v1/comparisons", json=request)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    first, second, third = body["strategies"]
    assert first["indices"] == select("k_center", budget=8, pool=POOL).indices.tolist()
    assert second["indices"] == select("random", budget=8, seed=1, n=80).indices.tolist()
    assert first["radius"] == pytest.approx(k_center_greedy(POOL, 8).radius, rel=1e-5)
    assert first["redundancy"] > second["redundancy"]
    common = len(set(first["indices"]) & set(third["indices"]))
    assert body["shared"][0][2] == body["shared"][2][0] == common
    assert body["jaccard"][0][2] == pytest.approx(common / (16 - common))
    assert sum(first["groups"].values()) == 8 and third["labels"] == {"x": 8}
    assert http.post("/v1/comparisons", json=request).json() == body, "computed once"
    assert http.get(f"/v1/comparisons/{body['id']}").json() == body
    assert http.delete(f"/v1/comparisons/{body['id']}").json() == body
    assert not store.list("selections"), "nothing is committed"
    refused = http.post("/v1/comparisons", json=request, headers={"Accept": "text/csv"})
    problem(refused, 406, "not-acceptable")


@pytest.mark.parametrize(
    ("contenders", "reason"),
    [
        ([{"strategy": "random"}, {"strategy": "random"}], "two are called 'random'"),
        ([{"strategy": "random"}], "at least 2"),
        ([{"strategy": "random"}, {"strategy": "nearest"}], "needs one of"),
        ([{"strategy": "random"}, {"strategy": "entropy"}], "probabilities"),
        (
            [{"strategy": "random"}, {"strategy": "k_center", "constraints": {"exclude": list(range(79))}}],
            "strategies.1: k_center: budget: 1 picks are possible",
        ),
    ],
)
def test_a_comparison_that_cannot_be_made(http: httpx.Client, contenders: list[Json], reason: str) -> None:
    request = {"strategies": contenders, "budget": 2, "pool": {"inline": POOL.tolist()}}
    assert reason in problem(http.post("/v1/comparisons", json=request), 422, "invalid")["detail"]


def _shape_of(value: Any, like: Any) -> Any:
    """`value` with numbers rounded and what differs between runs left out."""
    if isinstance(like, dict):
        return {name: _shape_of(value[name], like[name]) for name in like if name not in ("id", "seconds")}
    if isinstance(like, list):
        assert len(value) == len(like)
        return [_shape_of(one, other) for one, other in zip(value, like, strict=True)]
    return round(value, 4) if isinstance(value, float) else value


@pytest.mark.parametrize(
    ("path", "request_", "answer"),
    [
        ("selections", examples.SELECTION_REQUEST, examples.SELECTION),
        ("comparisons", examples.COMPARISON_REQUEST, examples.COMPARISON),
    ],
)
def test_the_examples_are_true(http: httpx.Client, path: str, request_: Json, answer: Json) -> None:
    found = http.post(f"/v1/{path}", json=request_)
    assert found.status_code == 200, found.text
    assert set(found.json()) == set(answer)
    assert _shape_of(found.json(), answer) == _shape_of(answer, answer)


def test_the_strategies_and_what_they_read(http: httpx.Client) -> None:
    items = {item["name"]: item for item in http.get("/v1/strategies").json()["items"]}
    assert set(items) == set(strategies())
    assert items["k_center"]["requires"] == ["pool"] and "centers" in items["k_center"]["reads"]
    described = http.get("/openapi.json").json()
    asked = described["components"]["schemas"]["SelectionRequest"]["properties"]["strategy"]
    assert asked["enum"] == list(strategies())
