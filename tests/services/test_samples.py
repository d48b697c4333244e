"""A dataset's samples as they are sent: the same whatever the pages and the format, and never a part for the whole."""

import csv
import io
import json
import socket
import subprocess
import sys
import threading
from contextlib import suppress

import httpx
import pytest
from gateway import Gateway
from services.conftest import Winnow, add_dataset, problem
from services.test_batches import ODD
from sqlalchemy import update
from structlog.testing import capture_logs

from winnow import calls
from winnow.client import ApiProblem, Client
from winnow.domain import Role
from winnow.errors import Unavailable
from winnow.store.tables import Sample
from winnow_coordinator import datasets, samples
from winnow_coordinator.context import Coordinator
from winnow_coordinator.streams import CutShort

POOL, MANY = 60, 50_000
CSV, NDJSON = "text/csv", "application/x-ndjson"
FIELDS = ["idx", "key", "role", "label", "group"]
Row = dict[str, object]


@pytest.fixture
def here(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> Coordinator:
    """With a dataset whose keys, labels and groups are odd, sent by pages of seven."""
    monkeypatch.setattr(samples, "PAGE", 7)
    dataset = add_dataset(coordinator, pool="ab" * (POOL // 2), labelled="aabb", test=["a", None, "b", "b"])
    odd = [
        {"dataset_id": dataset.id, "idx": i, "key": f"{i}{ODD[i % len(ODD)]}", "group": ODD[-i % len(ODD)] or None}
        for i in range(POOL)
    ]
    with coordinator.database.begin() as session:
        session.execute(update(Sample), odd)
    return coordinator


def by_page(api: httpx.Client, **query: str) -> list[Row]:
    """What the pages of JSON hold."""
    found: list[Row] = []
    cursor: str | None = None
    while True:
        asked = {"limit": 11} | query | ({"cursor": cursor} if cursor else {})
        page = api.get("/datasets/tissue/samples", params=asked).raise_for_status().json()
        found += page["items"]
        cursor = page["next"]
        if cursor is None:
            return found


def from_csv(text: str) -> list[Row]:
    lines = csv.DictReader(io.StringIO(text, newline=""))
    assert lines.fieldnames == FIELDS
    return [line | {"idx": int(line["idx"])} for line in lines]


def as_csv(rows: list[Row]) -> list[Row]:
    """Rows as CSV tells them: it has no null."""
    return [{name: "" if value is None else value for name, value in row.items()} for row in rows]


@pytest.mark.parametrize("role", [None, *Role])
def test_every_format_has_what_the_pages_have(api: httpx.Client, here: Coordinator, role: Role | None) -> None:
    query = {"role": role.value} if role else {}
    rows = by_page(api, **query)
    assert len(rows) == {None: POOL + 8, "pool": POOL, "labelled": 4, "test": 4, "validation": 0}[role]
    lines = api.get("/datasets/tissue/samples", params=query, headers={"Accept": NDJSON}).raise_for_status()
    assert [json.loads(line) for line in lines.content.split(b"\n")[:-1]] == rows
    table = api.get("/datasets/tissue/samples", params=query, headers={"Accept": CSV}).raise_for_status()
    assert from_csv(table.content.decode()) == as_csv(rows)
    assert {answer.headers["vary"] for answer in (lines, table)} == {"Accept"}


def test_a_stream_begins_behind_the_cursor(api: httpx.Client, here: Coordinator) -> None:
    first = api.get("/datasets/tissue/samples", params={"limit": 20}).json()
    rest = api.get("/datasets/tissue/samples", params={"cursor": first["next"]}, headers={"Accept": CSV})
    assert as_csv(first["items"]) + from_csv(rest.content.decode()) == as_csv(by_page(api))


@pytest.mark.parametrize("accept", [CSV, NDJSON])
def test_what_cannot_be_sent_is_said_before_it_begins(api: httpx.Client, here: Coordinator, accept: str) -> None:
    made = api.post("/datasets", json={"name": "t", "sources": [{"kind": "synthetic"}]})
    assert made.status_code == 202
    wanted = {"Accept": accept}
    problem(api.get("/datasets/t/samples", headers=wanted), 409, "wrong-state")
    problem(api.get("/datasets/none/samples", headers=wanted), 404, "not-found")
    problem(api.get("/datasets/tissue/samples?cursor=!", headers=wanted), 422, "invalid")
    problem(api.get("/datasets/tissue/samples", headers={"Accept": "image/png"}), 406, "not-acceptable")


def test_a_dataset_that_is_removed_while_it_is_sent_breaks_off(here: Coordinator) -> None:
    with here.database.read() as session:
        pages = samples.listing(session, "tissue", None, None).pages(here.database)
    next(pages)
    datasets.remove(here, "tissue")
    with pytest.raises(CutShort, match=r"was removed while its samples were sent, to idx 6$"):
        next(pages)


def test_the_client_reads_them_as_they_are(url: str, api: httpx.Client, here: Coordinator) -> None:
    with Client(url) as client:
        assert list(client.samples("tissue")) == by_page(api)
        assert list(client.samples("tissue", role="test")) == by_page(api, role="test")


def test_a_client_takes_up_a_stream_that_breaks(
    gateway: Gateway, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "PAGE", 100)
    add_dataset(coordinator, pool="ab" * (MANY // 2))
    told: list[str] = []
    with Client(f"http://127.0.0.1:{gateway.port}", on_silence=told.append) as client:
        rows = client.samples("tissue")
        found = [next(rows)["idx"]]
        gateway.close_half()
        gateway.heal(cut=True)
        found += [row["idx"] for row in rows]
    assert len(told) == 1 and told[0].startswith("no answer from ")
    assert found == list(range(MANY))


def test_a_stream_that_breaks_is_not_taken_up_with_another_dataset(
    gateway: Gateway, url: str, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "PAGE", 100)
    add_dataset(coordinator, pool="ab" * (MANY // 2))
    with Client(f"http://127.0.0.1:{gateway.port}") as client, Client(url) as another:
        rows = client.samples("tissue")
        assert next(rows)["label"] == "a"
        gateway.close_half()
        another.remove_dataset("tissue")
        add_dataset(coordinator, pool="cd" * (MANY // 2))
        gateway.heal(cut=True)
        with pytest.raises(ApiProblem, match=r"^no dataset '"):
            assert all(row["label"] in "ab" for row in rows)


def test_a_client_does_not_take_a_part_for_the_whole(
    url: str, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "PAGE", 100)
    add_dataset(coordinator, pool="ab" * (MANY // 2))
    with Client(url) as client, capture_logs() as said:
        rows = client.samples("tissue")
        next(rows)
        datasets.remove(coordinator, "tissue")
        with pytest.raises(ApiProblem) as raised:
            list(rows)
    assert raised.value.is_not_found
    (failed,) = [line["exc_info"] for line in said if line["event"] == "request.failed"]
    assert isinstance(failed.__cause__, CutShort)


@pytest.mark.parametrize(
    ("headers", "body", "told"),
    [
        (b"Content-Type: application/json\r\n", b'{"items": [], "next": null}', "older than this client: update it"),
        (b"Content-Type: application/x-ndjson\r\n", b'{"idx": 0}\n{"id', "ended within a line"),
    ],
)
def test_what_is_no_stream_of_lines_is_not_read_as_an_empty_one(
    monkeypatch: pytest.MonkeyPatch, headers: bytes, body: bytes, told: str
) -> None:
    """As an older coordinator answers, and a proxy that breaks off without a word."""
    monkeypatch.setattr(calls, "RESTART_SECONDS", 0.1)

    def answer(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    asked = connection.recv(10_000)
                    found = headers + b"\r\n" + body if b"/samples" in asked else b'\r\n{"id": "d"}'
                    connection.sendall(b"HTTP/1.0 200 OK\r\n" + found)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Client(address) as client, pytest.raises((ApiProblem, Unavailable), match=told):
            list(client.samples("tissue"))
        listener.shutdown(socket.SHUT_RDWR)


def test_the_command_line_lists_them(url: str, api: httpx.Client, here: Coordinator, winnow: Winnow) -> None:
    rows = by_page(api)
    assert from_csv(winnow("dataset", "samples", "tissue").out) == as_csv(rows)
    lines = winnow("dataset", "samples", "tissue", "--role", "labelled", "--json").out
    assert [json.loads(line) for line in lines.split("\n")[:-1]] == [row for row in rows if row["role"] == "labelled"]
    assert winnow("dataset", "samples", "none").err.startswith("error: no dataset 'none'")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_who_reads_the_first_lines_alone_sees_no_error(
    url: str, coordinator: Coordinator, options: tuple[str, ...]
) -> None:
    add_dataset(coordinator, pool="ab" * (MANY // 2))
    command = [sys.executable, "-m", "winnow_cli.main", "dataset", "samples", "tissue", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1
