"""What stands around coordinator and sampler: strangers, browsers, proxies, limits, headers."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import wait_until
from services.conftest import add_dataset, experiment_body, problem, serving

from winnow.errors import TooManyRequests
from winnow.perimeter import HEADERS
from winnow.settings import Settings
from winnow.store import keys
from winnow_coordinator import auth
from winnow_coordinator.__main__ import Server, make_server
from winnow_coordinator.app import MOST_BODY, make_app
from winnow_coordinator.context import Coordinator
from winnow_coordinator.pace import Pace
from winnow_sampler.app import make_app as make_sampler

KEY = "wnw_for-the-tests-of-the-perimeter"
ADMIN = {"Authorization": f"Bearer {KEY}"}


@contextmanager
def coordinator_with(settings: Settings, **changes: object) -> Iterator[httpx.Client]:
    opened = Coordinator.open(Settings(**{**settings.model_dump(), "bootstrap_key": KEY, **changes}))
    opened.database.migrate()
    with serving(make_app(opened, steward=False)) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client
    opened.close()


@pytest.fixture
def sampler(settings: Settings) -> Iterator[httpx.Client]:
    with serving(make_sampler(settings)) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://["},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Host": "evil.example"},
    {"X-Forwarded-For": "203.0.113.7"},
    {"Forwarded": "for=203.0.113.7"},
    {"Via": "1.1 proxy"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=lambda headers: " ".join(*headers.items()))
def test_without_a_key_only_programs_of_this_machine_are_served(
    headers: dict[str, str], api: httpx.Client, sampler: httpx.Client
) -> None:
    problem(api.post("/experiments/x/cancel", headers=headers), 401, "not-authorised")
    problem(sampler.delete(f"/v1/embeddings/{'a' * 64}", headers=headers), 401, "not-authorised")


def test_a_page_of_the_service_itself_is_served(api: httpx.Client, sampler: httpx.Client) -> None:
    own = {"Origin": str(api.base_url).removesuffix("/api/v1/"), "Sec-Fetch-Site": "same-origin"}
    assert api.get("/experiments", headers=own).status_code == 200
    assert sampler.get("/v1/strategies", headers=own).status_code == 200


def test_behind_a_proxy_a_key_is_asked_for_on_loopback_too(settings: Settings) -> None:
    with coordinator_with(settings, require_key=True) as client:
        problem(client.get("/api/v1/experiments"), 401, "not-authorised")
        assert client.get("/api/v1/experiments", headers=ADMIN).status_code == 200


def test_a_body_above_the_limit_is_refused(api: httpx.Client, coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    large = experiment_body(name="x" * MOST_BODY)
    found = problem(api.post("/experiments", json=large), 413, "too-large")
    assert str(MOST_BODY) in found["detail"]

    def unannounced() -> Iterator[bytes]:
        yield b'{"name": "'
        yield b"x" * (MOST_BODY + 1)

    json = {"Content-Type": "application/json"}
    problem(api.post("/experiments", content=unannounced(), headers=json), 413, "too-large")
    assert api.post("/experiments", json=experiment_body()).status_code == 201


def _raw(url: str, request: bytes) -> bytes:
    place = urlsplit(url)
    with socket.create_connection((str(place.hostname), int(place.port or 0)), timeout=20) as line:
        line.sendall(request)
        return line.recv(65536)


def test_headers_above_the_limit_are_refused(coordinator: Coordinator) -> None:
    server = make_server(coordinator)  # with the limits that the program runs with
    assert (server.config.limit_concurrency, server.config.proxy_headers) == (1000, False)
    with _running(server) as url:
        head = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: %s\r\n\r\n"
        assert _raw(url, head % b"x").startswith(b"HTTP/1.1 200")
        refused = _raw(url, head % (b"x" * 20_000))
        assert refused.startswith(b"HTTP/1.1 431") and b"application/problem+json" in refused
        endless = _raw(url, head.removesuffix(b"\r\n\r\n") % (b"x" * 100_000))
        assert endless.startswith(b"HTTP/1.1 400")


@contextmanager
def _running(server: Server) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started, 20, "the server to start")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.mark.parametrize("path", ["/healthz", "/api/v1/experiments", "/api/v1/none", "/api/v1/experiments/none"])
def test_every_answer_of_the_coordinator_has_the_security_headers(path: str, api: httpx.Client) -> None:
    answer = httpx.get(str(api.base_url).removesuffix("/api/v1/") + path)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS


@pytest.mark.parametrize("path", ["/healthz", "/v1/strategies", "/none"])
def test_every_answer_of_the_sampler_has_the_security_headers(path: str, sampler: httpx.Client) -> None:
    assert {name: sampler.get(path).headers[name] for name in HEADERS} == HEADERS


def test_the_page_of_the_description_takes_nothing_from_elsewhere(api: httpx.Client, sampler: httpx.Client) -> None:
    for service in (str(api.base_url).removesuffix("/api/v1/"), str(sampler.base_url)):
        page = httpx.get(f"{service}/docs")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "https:" not in policy
        linked = re.findall(r"""(?:src|href|url)(?:=|: )["']([^"']+)""", page.text)
        assert len(linked) == 4 and not [link for link in linked if "//" in link]
        for link in linked:
            answer = httpx.get(page.url.join(link))
            assert answer.is_success and answer.content, link
        assert httpx.get(f"{service}/docs/../../x").status_code == httpx.get(f"{service}/redoc").status_code == 404


PREFLIGHT = {"Origin": "https://board.example", "Access-Control-Request-Method": "GET"}


def test_no_other_page_may_read_answers_by_default(settings: Settings) -> None:
    with coordinator_with(settings) as client:
        asked = client.options("/api/v1/experiments", headers=PREFLIGHT)
        read = client.get("/api/v1/experiments", headers=ADMIN | PREFLIGHT)
        assert asked.status_code == 405
        assert not [name for name in {**asked.headers, **read.headers} if name.startswith("access-control")]


def test_a_page_that_is_named_may_and_needs_a_key(settings: Settings) -> None:
    with coordinator_with(settings, cors_origins=("https://board.example",)) as client:
        asked = client.options("/api/v1/experiments", headers=PREFLIGHT)
        assert asked.headers["access-control-allow-origin"] == "https://board.example"
        assert "access-control-allow-credentials" not in asked.headers
        problem(client.get("/api/v1/experiments", headers=PREFLIGHT), 401, "not-authorised")
        assert client.get("/api/v1/experiments", headers=ADMIN | PREFLIGHT).status_code == 200
        other = client.options("/api/v1/experiments", headers=PREFLIGHT | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_a_key_that_asks_too_fast_is_told_when_to_come_back(settings: Settings) -> None:
    with coordinator_with(settings, requests_per_second=0.001) as client:
        assert client.get("/api/v1/experiments", headers=ADMIN).status_code == 200
        refused = client.get("/api/v1/experiments", headers=ADMIN)
        assert "0.001 times a second" in problem(refused, 429, "too-many-requests")["detail"]
        assert 900 < int(refused.headers["retry-after"]) <= 1000
        assert client.get("/api/v1/experiments").status_code == 200, "this machine's programs are not counted"
        assert client.get("/healthz").status_code == 200


def test_each_key_has_a_bucket_that_fills() -> None:
    now = 0.0
    pace = Pace(10, clock=lambda: now)
    for _ in range(20):
        pace.take("a")
    with pytest.raises(TooManyRequests) as refused:
        pace.take("a")
    assert refused.value.retry_after == 1
    pace.take("b")
    now = 0.5
    for _ in range(5):
        pace.take("a")
    with pytest.raises(TooManyRequests):
        pace.take("a")
    for _ in range(1000):
        Pace(0).take("a")


def test_a_stream_ends_with_its_key(
    settings: Settings, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "LOOK_AGAIN_SECONDS", 0.0)
    add_dataset(coordinator)
    with coordinator_with(settings, require_key=True) as client:
        view = client.post("/api/v1/experiments", json=experiment_body(), headers=ADMIN).json()
        with coordinator.database.begin() as session:
            row, text = keys.create(session, "look", ["read"])
        reader = {"Authorization": f"Bearer {text}"}
        with client.stream("GET", f"/api/v1/experiments/{view['id']}/events", headers=reader) as stream:
            lines = stream.iter_lines()
            while not next(lines).startswith("data:"):
                pass
            assert client.delete(f"/api/v1/keys/{row.id}", headers=ADMIN).status_code == 204
            assert client.post(f"/api/v1/experiments/{view['id']}/pause", headers=ADMIN).status_code == 202
            assert "experiment.pausing" not in "\n".join(lines)


def test_a_revoked_first_key_stays_revoked(settings: Settings) -> None:
    with coordinator_with(settings, require_key=True) as client:
        (first,) = client.get("/api/v1/keys", headers=ADMIN).json()["items"]
        assert client.delete(f"/api/v1/keys/{first['id']}", headers=ADMIN).status_code == 204
    with coordinator_with(settings, require_key=True) as client:
        problem(client.get("/api/v1/keys", headers=ADMIN), 401, "not-authorised")


def test_a_key_is_stored_as_its_digest_alone(settings: Settings, tmp_path: Path) -> None:
    with coordinator_with(settings) as client:
        text = client.post("/api/v1/keys", json={"name": "n", "scopes": ["read"]}, headers=ADMIN).json()["key"]
    stored = b"".join(path.read_bytes() for path in settings.state_dir.glob("winnow.sqlite3*"))
    assert keys.digest_of(text).encode() in stored
    assert text.encode() not in stored and KEY.encode() not in stored
