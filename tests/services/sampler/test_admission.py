"""What is refused before a body is read, and before it is parsed."""

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

import faiss
import httpx
import numpy as np
import pytest
from services.conftest import problem, serving

from winnow.settings import Settings
from winnow_sampler.admission import MOST_VALUES
from winnow_sampler.app import MOST_BODY, make_app
from winnow_sampler.digests import mark_of

JSON = {"Content-Type": "application/json"}
TOKEN = "t" * 24


@pytest.mark.parametrize("place", ["selections", "comparisons"])
@pytest.mark.parametrize("sent", ["", f"Authorization: Bearer {TOKEN[:-1]}x\r\n"])
def test_nothing_is_read_of_who_has_no_token(settings: Settings, place: str, sent: str) -> None:
    guarded = Settings(**{**settings.model_dump(), "sampler_token": TOKEN})
    with serving(make_app(guarded)) as url:
        where = urlsplit(url)
        with socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=20) as line:
            head = f"POST /v1/{place} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{sent}"
            line.sendall(f"{head}Content-Length: {MOST_BODY}\r\n\r\n".encode())  # and not a byte of it
            answer = line.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 401") and '"not-authorised"' in answer


@pytest.mark.parametrize("place", ["selections", "comparisons"])
@pytest.mark.parametrize("values", [b"[],", b"0,", b'{"a":'])
def test_more_values_than_can_be_parsed_in_a_moment_are_refused(url: str, place: str, values: bytes) -> None:
    """As they stand, whatever they mean: this is no JSON that could be parsed."""
    body = values * (MOST_VALUES + 1)
    problem(httpx.post(f"{url}/v1/{place}", content=body, headers=JSON, timeout=60), 413, "too-large")


def test_a_body_that_is_cut_off_ends_nothing(url: str) -> None:
    where = urlsplit(url)
    with socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=20) as line:
        line.sendall(b"POST /v1/selections HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}


def test_another_version_answers_anew(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    request = {"strategy": "random", "budget": 3, "size": 9}
    first, again = (httpx.post(f"{url}/v1/selections", json=request).json()["id"] for _ in range(2))
    monkeypatch.setattr(faiss, "__version__", "0")
    assert first == again != httpx.post(f"{url}/v1/selections", json=request).json()["id"]


def test_bytes_that_were_changed_in_place_are_others_whatever_their_time_of_writing(tmp_path: Path) -> None:
    path = tmp_path / "pool.npy"
    np.save(path, np.zeros(4))
    before, times = mark_of(path), path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns and mark_of(path) != before
