"""What a request passes before its route sees it: the token before the body, limits, a thread for its JSON."""

import json
import socket
import threading
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, field_validator
from services.conftest import problem, serving
from services.sampler.conftest import POOL

from winnow import problems
from winnow.settings import Settings
from winnow_sampler.app import make_app
from winnow_sampler.context import Sampler
from winnow_sampler.gate import MOST_NAMED, GatedRoute, most_body, most_lists


@pytest.fixture
def guarded(settings: Settings) -> Settings:
    return Settings(**{**settings.model_dump(), "sampler_token": "the-token-of-the-tests"})


def begin(url: str, path: str, *headers: str) -> str:
    """The answer to a request that says how long its body is, and then sends nothing of it."""
    where = urlsplit(url)
    head = [f"POST {path} HTTP/1.1", "Content-Type: application/json", "Content-Length: 1000", *headers]
    with socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=20) as line:
        line.sendall("".join(f"{one}\r\n" for one in [*head, ""]).encode())
        return line.recv(65536).decode()


@pytest.mark.parametrize("path", ["/v1/selections", "/v1/comparisons", "/v1/embeddings?name=a.npy"])
@pytest.mark.parametrize(
    "given", ["X-None: 1", "Authorization: Bearer wrong", "Authorization: Basic the-token-of-the-tests"]
)
def test_a_stranger_is_refused_before_its_body_is_read(guarded: Settings, path: str, given: str) -> None:
    with serving(make_app(guarded)) as url:
        answer = begin(url, path, "Host: 127.0.0.1", given)
    assert answer.startswith("HTTP/1.1 401") and '"not-authorised"' in answer
    assert "www-authenticate: Bearer" in answer and "x-content-type-options" in answer


def test_without_a_token_strangers_are_refused_before_their_bodies_are_read(url: str) -> None:
    assert begin(url, "/v1/selections", "Host: evil.example").startswith("HTTP/1.1 401")


def test_every_route_asks_for_the_token(guarded: Settings) -> None:
    with serving(make_app(guarded)) as url, httpx.Client(base_url=url) as http:
        paths = http.get("/openapi.json").json()["paths"]
        asked = [(path, method) for path, methods in paths.items() if path.startswith("/v1/") for method in methods]
        assert len(asked) == 10
        for path, method in asked:
            problem(http.request(method, path.replace("{id}", "a" * 64)), 401, "not-authorised")
            assert paths[path][method]["security"] == [{"HTTPBearer": []}]


def test_what_a_request_may_hold_fits(settings: Settings) -> None:
    """Each array as Python writes float64, a row of its own for every number, and a label for every row."""
    rows = settings.inline_limit
    column = [[-1.2345678901234567e-100]] * rows
    labels = ["GTEX-1117F-0126/tile_0001"] * rows
    arrays = {name: {"inline": column} for name in ("pool", "centers", "probabilities")}
    asked = json.dumps({**arrays, "groups": {"inline": labels}, "labels": {"inline": labels}})
    assert len(asked) < most_body(rows) and asked.count("[") < most_lists(rows)


def test_more_lists_than_rows_are_refused(http: httpx.Client, settings: Settings) -> None:
    empty = b"[]," * most_lists(settings.inline_limit)
    assert len(empty) < most_body(settings.inline_limit)
    asked = b'{"strategy":"k_center","budget":1,"pool":{"inline":[' + empty + b"[]]}}"
    found = problem(post(http, asked), 413, "too-large")
    assert str(most_lists(settings.inline_limit)) in found["detail"]


def post(http: httpx.Client, body: bytes) -> httpx.Response:
    return http.post("/v1/selections", content=body, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"pool": {"inline": ["", "", ""]}},
        {"pool": {"inline": [["", "", ""], [""]]}},
        {"constraints": {"exclude": [-1, -1, -1]}},
        {"constraints": {"pinned": ["", "", ""]}},
    ],
)
def test_of_a_long_list_the_first_value_at_fault_is_named(http: httpx.Client, wrong: dict[str, object]) -> None:
    asked = {"strategy": "k_center", "budget": 1, "pool": {"inline": POOL.tolist()}, **wrong}
    found = problem(http.post("/v1/selections", json=asked), 422, "invalid")
    assert len(found["errors"]) == 1 and "0" in found["errors"][0]["field"].split(".")


def test_of_many_values_at_fault_the_first_are_named(http: httpx.Client) -> None:
    unknown = {f"u{number}": 0 for number in range(5000)}
    found = problem(http.post("/v1/selections", json={"strategy": "random", "budget": 1, **unknown}), 422, "invalid")
    assert len(found["errors"]) == 20 and found["detail"].endswith("; and 4980 more")


@pytest.mark.parametrize("values", ["{}," * MOST_NAMED, ""])
def test_more_named_values_than_groups_are_refused(http: httpx.Client, values: str) -> None:
    named = f"[{values}{{}}]" if values else json.dumps({f"{number}": 0 for number in range(MOST_NAMED)})
    found = problem(
        post(http, b'{"strategy":"random","budget":1,"size":9,"pool":' + named.encode() + b"}"), 413, "too-large"
    )
    assert f"more than {MOST_NAMED} named values" in found["detail"]


def test_json_is_read_in_a_thread_and_once(settings: Settings) -> None:
    threads: list[str] = []

    class Asked(BaseModel):
        value: int

        @field_validator("value")
        @classmethod
        def _note(cls, value: int) -> int:
            threads.append(threading.current_thread().name)
            return value

    router = APIRouter(route_class=GatedRoute)

    @router.post("/asked")
    async def answer(asked: Asked) -> int:
        threads.append(threading.current_thread().name)
        return asked.value

    app = FastAPI()
    app.state.sampler = Sampler(settings)
    problems.install(app)
    app.include_router(router)
    with serving(app) as url, httpx.Client(base_url=url) as http:
        assert http.post("/asked", json={"value": 3}).json() == 3
        made, answered = threads
        assert made != answered, "the loop, where /healthz waits, did not make it"
        problem(http.post("/asked", json={"value": "three"}), 422, "invalid")
        problem(http.post("/asked", json=None), 422, "invalid")
    app.state.sampler.jobs.close()
