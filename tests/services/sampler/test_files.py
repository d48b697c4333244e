"""Embeddings by upload and by path: what is taken, what is refused, and before how much of it was read."""

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from conftest import wait_until
from services.conftest import problem
from services.sampler.conftest import PROBABILITIES
from services.sampler.sending import COORDS, FEATURES, npy, pick, send, slide

from winnow.artefacts import DirectoryStore
from winnow.errors import InvalidInput, NotFound, PathForbidden, Unavailable
from winnow.selection import select
from winnow.settings import Settings
from winnow_sampler import examples
from winnow_sampler.context import Sampler
from winnow_sampler.digests import Digests, Stopped, mark_of
from winnow_sampler.gate import most_body
from winnow_sampler.jobs import Job
from winnow_sampler.memory import GIB
from winnow_sampler.schemas import SelectionRequest
from winnow_sampler.selecting import Selecting
from winnow_sampler.snapshots import Found, Wanted
from winnow_sampler.uploads import Uploads

LIMIT = 20_000


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With room for two uploads."""
    return settings.model_copy(update={"upload_gib": LIMIT / GIB, "uploads_gib": 2.5 * LIMIT / GIB})


def test_an_upload_is_kept_once_and_picked_from(http: httpx.Client, settings: Settings) -> None:
    first, again = send(http, "slide-1.h5", slide()), send(http, "slide-1.h5", slide())
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json() == http.get(first.headers["Location"]).json()
    assert (first.json()["rows"], first.json()["columns"], first.json()["dtype"]) == (30, 4, "float32")
    answer = pick(http, {"upload": first.json()["id"]})
    assert answer["indices"] == select("k_center", budget=5, pool=FEATURES).indices.tolist()
    rows = answer["indices"]
    assert answer["origins"] == [
        {"file": "slide-1.h5", "row": row, "coords": COORDS[row].astype(float).tolist()} for row in rows
    ]
    assert not list(settings.artefact_dir.glob(".incoming*")), "nothing is left of what arrived"


def test_several_uploads_are_one_pool_with_a_group_each(http: httpx.Client) -> None:
    halves = [
        send(http, f"s{i}.h5", slide(FEATURES[15 * i : 15 * i + 15].astype(np.float64), COORDS[:15])) for i in (0, 1)
    ]
    pool = {"upload": [half.json()["id"] for half in halves]}
    answer = pick(http, pool, groups={"by": "file"}, constraints={"quota": {"s0": 4, "s1": 1}, "quota_is_exact": True})
    assert [row < 15 for row in answer["indices"]].count(True) == 4
    assert {one["file"] for one in answer["origins"]} == {"s0.h5", "s1.h5"}
    assert "pool: float64 converted to float32" in answer["notes"]


def test_a_removed_upload_is_gone(http: httpx.Client) -> None:
    place = send(http, "pool.npy", npy(FEATURES)).headers["Location"]
    assert http.delete(place).status_code == 204
    problem(http.get(place), 404, "not-found")
    request = {"strategy": "k_center", "budget": 1, "pool": {"upload": place.split("/")[-1]}}
    problem(http.post("/v1/selections", json=request), 404, "not-found")
    problem(http.get("/v1/embeddings/..%2F..%2Fetc"), 404, "not-found")


def test_uploads_beyond_what_is_kept_push_the_oldest_out(http: httpx.Client) -> None:
    places = [send(http, f"{i}.npy", npy(np.full((1000, 4), i, np.float32))).headers["Location"] for i in range(4)]
    found = [http.get(place).status_code for place in places]
    assert found[-1] == 200 and 404 in found
    assert found == sorted(found, reverse=True), "the oldest went"


def test_uploads_that_jobs_work_on_stay(settings: Settings) -> None:
    sampler = Sampler(settings)
    held: set[str] = set()
    uploads = Uploads(sampler.store, LIMIT, 2 * LIMIT, lambda: held)

    def keep(number: int) -> str:
        with uploads.begin(f"{number}.npy", None) as incoming:
            incoming.write(npy(np.full((1000, 4), number, np.float32)))
            incoming.finish()
            return uploads.keep(incoming)[0]["id"]

    first, second = keep(1), keep(2)
    held.add(first)
    third = keep(3)
    assert uploads.find(first).name == "1.npy", "the oldest, which a job works on"
    with pytest.raises(NotFound):
        uploads.find(second)
    held.add(third)
    with pytest.raises(Unavailable, match="leave no room"):
        keep(4)
    sampler.jobs.close()


def test_a_file_is_not_read_before_the_job_runs(hasty: httpx.Client, tmp_path: Path) -> None:
    path = tmp_path / "data" / "large.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, (1_000_000, 100)).flush()  # 400 MB of holes
    request = {"strategy": "random", "budget": 3, "pool": {"path": str(path)}}
    begun = hasty.post("/v1/selections", json=request)
    assert begun.status_code == 202
    place, done = begun.headers["Location"], {"status": "done"}
    found = wait_until(lambda: done.items() <= (body := hasty.get(place).json()).items() and body, 120, "the picks")
    assert found["id"] != begun.json()["id"], "of the state of the file, as its bytes were not known"
    assert found["origins"][0] == {"file": "large.npy", "row": found["indices"][0]}
    answered = hasty.post("/v1/selections", json=request)
    assert (answered.status_code, answered.json()) == (200, found)
    assert hasty.get(f"/v1/selections/{found['id']}").json() == found


def test_picks_say_where_they_came_from_though_no_feature_was_read(http: httpx.Client, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "slides"
    folder.mkdir()
    (folder / "s0.h5").write_bytes(slide())
    given = {"pool": {"path": str(folder)}, "probabilities": {"inline": PROBABILITIES[:30].tolist()}}
    for strategy in ("entropy", "random"):
        answer = http.post("/v1/selections", json={"strategy": strategy, "budget": 2, **given}).json()
        rows = answer["indices"]
        assert [one["row"] for one in answer["origins"]] == rows and len(answer["origins"][0]["coords"]) == 2
    assert Wanted("random", None, None).reads() == set()


@pytest.mark.parametrize("name", ["", "../up.npy", ".hidden", "a/b.npy", "x" * 201])
def test_names_that_are_no_file_names_are_refused(http: httpx.Client, name: str) -> None:
    assert problem(send(http, name, npy(FEATURES)), 422, "invalid")["field"] == "name"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "is empty, 0 bytes"),
        (npy(FEATURES)[:-4], "cut short"),
        (npy(np.array([[{"a": 1}]], object), allow_pickle=True), "unpickled; never done"),
        (b"\x80\x04\x95", "never loaded"),
        (npy(FEATURES[0]), "needs 2 dimensions"),
        (npy(COORDS), "got int64"),
        (slide()[:700], "cannot be read as HDF5"),
        (slide(coords=COORDS[:3]), "coords needs 30 rows"),
        (b"hello", "none of .npy, HDF5, Parquet"),
    ],
)
def test_an_upload_that_holds_no_embeddings_is_refused(
    http: httpx.Client, settings: Settings, body: bytes, reason: str
) -> None:
    found = problem(send(http, "pool.npy", body), 422, "invalid")
    assert reason in found["detail"] and "pool.npy" in found["detail"]
    assert not DirectoryStore(settings.artefact_dir).list("embeddings")
    assert not list(settings.artefact_dir.glob(".incoming*"))


def test_a_value_that_is_not_finite_is_named_by_its_row(http: httpx.Client) -> None:
    for bad, kind in ((np.nan, np.float32), (np.inf, np.float16)):
        features = FEATURES.astype(kind)
        features[17, 2] = bad
        id = send(http, "pool.npy", npy(features)).json()["id"]
        request = {"strategy": "k_center", "budget": 1, "pool": {"upload": id}}
        found = problem(http.post("/v1/selections", json=request), 422, "invalid")
        assert found["field"] == "pool" and "row 17" in found["detail"]


def raw(url: str, head: str, body: bytes = b"") -> str:
    """What the server answers to bytes that no client would send."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as line:
        line.sendall(f"POST /v1/embeddings?name=a.npy HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n\r\n".encode() + body)
        answer = b""
        while b"\r\n\r\n" not in answer or b"too-large" not in answer:
            got = line.recv(65536)
            if not got:
                break
            answer += got
    return answer.decode()


def test_an_upload_above_the_limit_is_refused_before_it_is_read(url: str, settings: Settings) -> None:
    answer = raw(url, f"Content-Length: {10**12}")
    assert answer.startswith("HTTP/1.1 413 ") and '"too-large"' in answer and "Nothing of it was read" in answer
    assert not list(settings.artefact_dir.glob(".incoming*"))


def test_an_upload_without_a_length_is_refused_once_it_is_too_long(url: str, settings: Settings) -> None:
    chunk = b"%x\r\n%s\r\n" % (LIMIT + 1, b"x" * (LIMIT + 1))  # and no end
    answer = raw(url, "Transfer-Encoding: chunked", chunk)
    assert answer.startswith("HTTP/1.1 413 ") and '"too-large"' in answer
    assert not list(settings.artefact_dir.glob(".incoming*"))


def test_an_upload_that_is_cut_off_leaves_nothing(url: str, settings: Settings) -> None:
    where, store = urlsplit(url), settings.artefact_dir
    with socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=20) as line:
        line.sendall(b"POST /v1/embeddings?name=a.npy HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500\r\n\r\nabc")
        wait_until(lambda: any(store.iterdir()), 20, "the upload to begin")
    wait_until(lambda: not any(store.iterdir()), 20, "what had arrived to be gone")


def test_a_folder_of_slides_by_path(http: httpx.Client, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "slides"
    folder.mkdir()
    for i in (0, 1, 2):
        (folder / f"s{i}.h5").write_bytes(slide(FEATURES[10 * i : 10 * i + 10], COORDS[:10]))
    answer = pick(http, {"path": str(folder)}, groups={"by": "file"}, constraints={"cap": 2})
    files = [one["file"] for one in answer["origins"]]
    assert max(files.count(name) for name in files) == 2
    changed = FEATURES[:10] * 3
    (folder / "s0.h5").write_bytes(slide(changed, COORDS[:10]))
    other = pick(http, {"path": str(folder)}, groups={"by": "file"}, constraints={"cap": 2})
    assert other["id"] != answer["id"], "the digest is that of the bytes"


@pytest.mark.parametrize("change", ["written anew", "removed"])
def test_a_file_that_changes_after_its_digest_is_no_answer_of_that_digest(settings: Settings, change: str) -> None:
    sampler = Sampler(settings)
    path = settings.data_roots[0] / "pool.npy"
    np.save(path, FEATURES)
    request = SelectionRequest.model_validate({"strategy": "k_center", "budget": 5, "pool": {"path": str(path)}})
    work = Selecting(request, Found(request, sampler.sources), sampler.observe)
    assert len(work(Job("selections", "a", work.need, work))["indices"]) == 5
    if change == "removed":
        path.rename(path.with_suffix(".old"))
        np.save(path.with_suffix(".other"), FEATURES)
    else:
        np.save(path, FEATURES + 1)
    with pytest.raises(InvalidInput, match=r"pool.npy(: cannot be read| changed while it was read)"):
        work(Job("selections", "b", work.need, work))
    sampler.jobs.close()


@pytest.mark.parametrize("place", ["selections", "comparisons"])
def test_a_request_too_large_to_be_one_is_refused_before_it_is_read(url: str, place: str, settings: Settings) -> None:
    most, where = most_body(settings.inline_limit), urlsplit(url)
    with socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=20) as line:
        head = (
            f"POST /v1/{place} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
        )
        line.sendall(f"{head}Content-Length: {most + 1}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: line.recv(4096), b"")).decode()
    assert answer.startswith("HTTP/1.1 413") and "application/problem+json" in answer and '"too-large"' in answer


def test_a_request_without_a_length_is_refused_once_it_is_too_long(url: str, settings: Settings) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(most_body(settings.inline_limit) // 2**20 + 2):
            yield b" " * 2**20

    headers = {"Content-Type": "application/json"}
    problem(httpx.post(f"{url}/v1/selections", content=endless(), headers=headers, timeout=60), 413, "too-large")


def test_a_file_that_changed_before_it_was_read_has_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "pool.npy"
    np.save(path, FEATURES)
    mark, digests = mark_of(path), Digests()
    np.save(path, FEATURES[:20])
    with pytest.raises(InvalidInput, match=r"pool: pool\.npy changed while it was read"):
        digests.compute(mark, "pool", lambda: False)
    assert digests.known(mark) is None
    assert digests.compute(mark_of(path), "pool", lambda: False) == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(Stopped):
        Digests().compute(mark_of(path), "pool", lambda: True)


def test_other_bytes_under_the_old_time_of_writing_are_another_file(http: httpx.Client, settings: Settings) -> None:
    path = settings.data_roots[0] / "pool.npy"
    np.save(path, FEATURES)
    was = path.stat()
    first = pick(http, {"path": str(path)})
    np.save(path, FEATURES[::-1])

    def put_back() -> bool:
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
        return path.stat().st_ctime_ns != was.st_ctime_ns

    wait_until(put_back, 20, "the clock of the file system")
    assert (path.stat().st_ino, path.stat().st_size) == (was.st_ino, was.st_size)
    second = pick(http, {"path": str(path)})
    assert second["id"] != first["id"]
    assert second["indices"] == select("k_center", budget=5, pool=FEATURES[::-1]).indices.tolist()


def test_paths_outside_the_roots_are_forbidden(http: httpx.Client, tmp_path: Path) -> None:
    inside, outside = tmp_path / "data", tmp_path / "elsewhere"
    outside.mkdir()
    np.save(outside / "secret.npy", FEATURES)
    (inside / "link.npy").symlink_to(outside / "secret.npy")
    (inside / "folder").mkdir()
    (inside / "folder" / "link.npy").symlink_to(outside / "secret.npy")
    (inside / "way").symlink_to(outside)
    tried = [
        outside / "secret.npy",
        f"{inside}/../elsewhere/secret.npy",
        inside / "link.npy",
        inside / "folder",
        inside / "way" / "secret.npy",
        "secret.npy",
        f"{inside}/\0secret.npy",
        os.devnull,
    ]
    for path in tried:
        request = {"strategy": "k_center", "budget": 1, "pool": {"path": str(path)}}
        problem(http.post("/v1/selections", json=request), 403, "path-forbidden")
    for name in ("none.npy", "x" * 300):
        missing = {"strategy": "k_center", "budget": 1, "pool": {"path": str(inside / name)}}
        problem(http.post("/v1/selections", json=missing), 422, "invalid")


def test_the_example_of_an_upload_is_true(http: httpx.Client) -> None:
    body = npy(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert send(http, examples.EMBEDDINGS["name"], body).json() == examples.EMBEDDINGS


def test_what_cut_off_uploads_left_is_removed_and_one_that_arrives_is_not(settings: Settings) -> None:
    first = Sampler(settings)
    left = settings.artefact_dir / ".incoming-of-a-sampler-that-was-killed"
    left.write_bytes(b"half")
    with first.uploads.begin("a.npy", None) as arriving:
        Sampler(settings).jobs.close()  # another one starts
        assert arriving.path.exists() and not left.exists()
    first.jobs.close()


def test_a_file_that_a_link_replaces_while_it_is_found_is_not_read(settings: Settings, tmp_path: Path) -> None:
    """A thread that swaps file and link as fast as it can, against many requests."""
    inside, outside = settings.data_roots[0] / "pool.npy", tmp_path / "secret.npy"
    np.save(inside, FEATURES)
    np.save(outside, FEATURES + 100)
    sampler, over, digests = Sampler(settings), threading.Event(), set[str]()
    request = SelectionRequest.model_validate({"strategy": "k_center", "budget": 5, "pool": {"path": str(inside)}})

    def swap() -> None:
        while not over.is_set():
            (tmp_path / "link").symlink_to(outside)
            (tmp_path / "link").replace(inside)
            np.save(tmp_path / "mine.npy", FEATURES)
            (tmp_path / "mine.npy").replace(inside)

    swapper = threading.Thread(target=swap)
    swapper.start()
    refused = 0
    try:
        for _ in range(300):
            try:
                found = sampler.sources.find("pool", request.pool)  # type: ignore[arg-type]
                digests.add(found.digest("pool", lambda: False))
                assert float(found.read().features.max()) < 100
            except (InvalidInput, PathForbidden, OSError):
                refused += 1
    finally:
        over.set()
        swapper.join()
        sampler.jobs.close()
    quiet = sampler.sources.find("pool", request.pool).digest("pool", lambda: False)  # type: ignore[arg-type]
    assert refused and digests <= {quiet}
