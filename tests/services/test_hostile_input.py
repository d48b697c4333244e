"""What fuzzing found in the two services, one case each: no 5xx, and a reason that names the value at fault."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from services.conftest import problem, serving

from winnow.settings import Settings
from winnow_coordinator.app import make_app
from winnow_coordinator.context import Coordinator
from winnow_sampler.app import make_app as make_sampler

JSON = {"Content-Type": "application/json"}
POOL = {"inline": [[0, 0], [0, 1], [5, 5], [9, 9]]}
HUGE = {"inline": [[3e38, -3e38], [-3e38, 3e38], [0, 0]]}
HALF = "\ud800"  # half of a surrogate pair: JSON can say it, no text can hold it


@pytest.fixture
def sampler(settings: Settings) -> Iterator[httpx.Client]:
    patient = settings.model_copy(update={"answer_seconds": 60})
    with serving(make_sampler(patient)) as url, httpx.Client(base_url=f"{url}/v1", timeout=60) as client:
        yield client


def send(client: httpx.Client, path: str, document: Any) -> httpx.Response:
    """A document in ASCII: escapes keep what UTF-8 has no bytes for."""
    return client.post(path, content=json.dumps(document).encode("ascii"), headers=JSON)


def source(kind: str, path: Path, **more: Any) -> dict[str, Any]:
    return {"name": "d", "sources": [{"kind": kind, "path": str(path), **more}]}


@pytest.mark.parametrize("body", [b"\xff\xfe", b"[" * 100_000, b'{"budget":' + b"9" * 5000 + b"}"])
def test_a_body_that_is_no_json_is_invalid_input(api: httpx.Client, body: bytes) -> None:
    assert problem(api.post("/experiments", content=body, headers=JSON), 422, "invalid")["field"] == "body"


def test_a_typing_mistake_in_json_is_shown_where_it_is(api: httpx.Client) -> None:
    found = problem(api.post("/keys", content=b'{"name": }', headers=JSON), 422, "invalid")
    assert (found["field"], found["detail"]) == ("body", "body: is no JSON: Expecting value at character 9")


def test_a_key_called_path_is_named(api: httpx.Client) -> None:
    found = problem(send(api, "/datasets", {"name": "d", "sources": [{"kind": "folder", "path": ""}]}), 422, "invalid")
    assert found["field"] == "sources.0.path"


@pytest.mark.parametrize("kind", ["npz", "manifest", "folder"])
def test_a_name_too_long_for_a_file_is_refused(api: httpx.Client, settings: Settings, kind: str) -> None:
    found = problem(send(api, "/datasets", source(kind, settings.data_roots[0] / ("a" * 300))), 422, "invalid")
    assert found["field"] == "sources.0.path" and "name too long" in found["detail"]


def test_text_that_nothing_can_store_is_refused(api: httpx.Client, settings: Settings) -> None:
    split = source("folder", settings.data_roots[0], splits={HALF: "pool"})
    for document in (split, source("folder", Path(HALF)), source("manifest", settings.data_roots[0], root=HALF)):
        assert "unicode string" in problem(send(api, "/datasets", document), 422, "invalid")["detail"]
    named = source("folder", settings.data_roots[0], labels={"a": "b\0"})
    assert problem(send(api, "/datasets", named), 422, "invalid")["field"] == "sources.0.labels.a"


def test_a_method_that_a_path_does_not_have_hears_of_those_it_has(api: httpx.Client, sampler: httpx.Client) -> None:
    assert problem_of_method(api.put("/datasets")) == "GET, POST"
    assert problem_of_method(api.put("/experiments/x/pause")) == "POST"
    assert problem_of_method(sampler.put("/embeddings/x")) == "DELETE, GET"


def problem_of_method(response: httpx.Response) -> str:
    problem(response, 405, "method-not-allowed")
    return response.headers["Allow"]


@pytest.mark.parametrize(("host", "optional"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_the_description_says_whether_a_key_is_needed(settings: Settings, host: str, optional: bool) -> None:
    coordinator = Coordinator.open(settings.model_copy(update={"coordinator_host": host}))
    for described in (make_app(coordinator, steward=False).openapi(), make_app(coordinator, steward=False).openapi()):
        guarded = [
            one["security"] for path in described["paths"].values() for one in path.values() if "security" in one
        ]
        assert guarded and all(({} in security) is optional for security in guarded)
    coordinator.close()


def test_distances_beyond_float32_are_refused_and_never_sent(sampler: httpx.Client) -> None:
    found = problem(send(sampler, "/selections", {"strategy": "k_center", "budget": 2, "pool": HUGE}), 422, "invalid")
    assert found["field"] == "pool" and "float32 scores cannot hold" in found["detail"]
    contenders = [{"strategy": "random"}, {"strategy": "random", "name": "other", "seed": 1}]
    compared = send(sampler, "/comparisons", {"strategies": contenders, "budget": 1, "pool": HUGE})
    assert compared.status_code == 200 and compared.json()["strategies"][0].get("radius") is None


@pytest.mark.parametrize("more", [{"seed": False}, {"budget": "2"}, {"pool": {"inline": [[True, 0], [1, 1]]}}])
def test_what_is_no_number_is_not_taken_for_one(sampler: httpx.Client, more: dict[str, Any]) -> None:
    problem(send(sampler, "/selections", {"strategy": "k_center", "budget": 2, "pool": POOL, **more}), 422, "invalid")


@pytest.mark.parametrize("pool", [{"key": HALF}, {"path": f"/{HALF}"}, {"upload": HALF}, {"key": "a" * 300}])
def test_a_reference_that_can_be_no_name_is_refused(sampler: httpx.Client, pool: dict[str, Any]) -> None:
    problem(send(sampler, "/selections", {"strategy": "k_center", "budget": 2, "pool": pool}), 422, "invalid")


@pytest.mark.parametrize("id", ["a" * 300, "%C3%A9", "a.b"])
def test_an_id_that_can_be_no_name_is_not_found(sampler: httpx.Client, id: str) -> None:
    for path in (f"/selections/{id}", f"/comparisons/{id}", f"/embeddings/{id}"):
        problem(sampler.get(path), 404, "not-found")
        problem(sampler.delete(path), 404, "not-found")


def test_a_comparison_of_single_picks_has_no_redundancy(sampler: httpx.Client) -> None:
    """Nor does the description promise one."""
    contenders = [{"strategy": "k_center"}, {"strategy": "random"}]
    view = send(sampler, "/comparisons", {"strategies": contenders, "budget": 1, "pool": POOL}).json()
    described = httpx.get(str(sampler.base_url).replace("/v1/", "/openapi.json")).json()
    assert "redundancy" not in view["strategies"][0]
    assert "redundancy" not in described["components"]["schemas"]["Contended"]["required"]
