"""Jobs that meet each other, a full disk, a queue without end, or what an earlier one left."""

import errno
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import wait_until
from services.sampler.conftest import POOL, Json
from services.sampler.held import Held, Jobs

from winnow.artefacts import DirectoryStore, Stored
from winnow.errors import Unavailable
from winnow_sampler.jobs import MOST_WAITING, Job, Work


@pytest.fixture
def jobs(store: DirectoryStore) -> Iterator[Jobs]:
    made = Jobs(store, 100)
    yield made
    made.close()


def begin(jobs: Jobs, id: str, work: Work) -> None:
    """A job that turns out to be of the same bytes as others."""
    jobs.submit("selections", id, 10, work, wait=0, identify=lambda job: "bytes")
    wait_until(lambda: jobs.get("selections", id)["id"] == "bytes", 20, "its digest")


class Full(DirectoryStore):
    """On a disk without room."""

    def put(self, key: str, source: Path | bytes) -> Stored:
        raise OSError(errno.ENOSPC, "No space left on device", str(self.root / key))


def test_on_a_full_disk_a_request_is_to_be_sent_again_and_a_cancelled_one_is_cancelled(store: DirectoryStore) -> None:
    jobs, work, runs = Jobs(Full(store.root), 100), Held(), Held()
    work.let_go.set()
    with pytest.raises(Unavailable, match=r"could not be stored \(No space left on device\)") as refused:
        jobs.submit("selections", "done", 60, work, wait=20)
    assert str(store.root) not in str(refused.value)
    jobs.submit("selections", "runs", 60, runs, wait=0)
    jobs.submit("selections", "waits", 60, Held(), wait=0)
    assert jobs.cancel("selections", "waits")["status"] == "cancelled"
    jobs.close()


def test_the_queue_has_an_end(jobs: Jobs) -> None:
    jobs.submit("selections", "runs", 100, Held(), wait=0)
    for number in range(MOST_WAITING):
        assert jobs.submit("selections", f"j{number}", 1, Held(), wait=0)["place"] == number + 1
    with pytest.raises(Unavailable, match="100 jobs wait"):
        jobs.submit("selections", "more", 1, Held(), wait=0)
    assert jobs.submit("selections", "j7", 1, Held(), wait=0)["place"] == 8, "one that waits is joined"


def test_of_two_jobs_that_turn_out_to_be_one_the_second_waits_for_the_first(jobs: Jobs) -> None:
    works, computed = [Held(), Held()], threading.Event()

    def second(job: Job) -> Json:
        computed.set()
        return works[1](job)

    begin(jobs, "folder1", works[0])
    begin(jobs, "folder2", second)
    works[0].let_go.set()
    wait_until(lambda: jobs.running == 0, 20, "both to end")
    assert jobs.get("selections", "folder1") == jobs.get("selections", "folder2")
    assert not computed.is_set()


def test_one_whose_twin_is_called_off_is_known_by_the_id_and_computed(jobs: Jobs) -> None:
    stubborn, second = threading.Event(), Held()

    def first(job: Job) -> Json:
        stubborn.wait(20)
        return {"id": job.id, "status": "cancelled", "indices": []}

    begin(jobs, "folder1", first)
    calling_off = threading.Thread(target=jobs.cancel, args=("selections", "bytes"))
    calling_off.start()
    begin(jobs, "folder2", second)
    wait_until(
        lambda: jobs.get("selections", "bytes")["status"] == "running", 20, "the second to be the one of that id"
    )
    stubborn.set()
    calling_off.join()
    second.let_go.set()
    wait_until(lambda: jobs.running == 0, 20, "both to end")
    assert jobs.get("selections", "bytes")["status"] == "done"


def test_whoever_calls_an_id_off_calls_off_all_that_turned_out_to_be_it(jobs: Jobs) -> None:
    begin(jobs, "folder1", Held())
    begin(jobs, "folder2", Held())
    assert jobs.cancel("selections", "bytes")["status"] == "cancelled"
    wait_until(lambda: jobs.running == 0, 20, "both to end")


def test_one_that_waits_under_an_id_is_called_off_with_the_one_that_turns_out_to_be_it(jobs: Jobs) -> None:
    runs, knows = Held(), threading.Event()

    def identify(job: Job) -> str:
        knows.wait(20)
        return "bytes"

    jobs.submit("selections", "folder", 60, runs, wait=0, identify=identify)
    assert jobs.submit("selections", "bytes", 60, Held(), wait=0)["status"] == "queued"
    knows.set()
    wait_until(lambda: jobs.get("selections", "folder")["id"] == "bytes", 20, "the digest")
    assert jobs.cancel("selections", "bytes")["status"] == "cancelled"
    wait_until(lambda: jobs.running == 0, 20, "both to end")


def test_one_called_off_beside_its_twin_is_not_noted_as_the_twin(jobs: Jobs, store: DirectoryStore) -> None:
    begin(jobs, "folder1", Held())
    begin(jobs, "folder2", Held())
    assert jobs.cancel("selections", "folder2")["status"] == "cancelled"
    assert jobs.get("selections", "bytes")["status"] == "running" and not store.list("cancelled")


def test_at_a_stop_one_that_waited_for_its_twin_begins_nothing(store: DirectoryStore) -> None:
    jobs, began = Jobs(store, 100), threading.Event()

    def second(job: Job) -> Json:
        began.set()
        return {"id": job.id, "status": "cancelled"}

    begin(jobs, "folder1", Held())
    begin(jobs, "folder2", second)
    jobs.close()
    assert not began.is_set() and not store.list("cancelled")


def test_one_that_waits_is_answered_with_what_is_there_meanwhile(jobs: Jobs, store: DirectoryStore) -> None:
    jobs.submit("selections", "runs", 100, Held(), wait=0)
    jobs.submit("selections", "waits", 1, Held(), wait=0)
    store.put("selections/waits.json", b'{"id": "waits", "status": "done"}\n')
    assert jobs.get("selections", "waits")["status"] == "done"


def test_of_two_cancelled_runs_the_longer_prefix_is_kept(store: DirectoryStore) -> None:
    def pick(count: int) -> Json:
        jobs, work = Jobs(store, 100), Held(list(range(count)))
        jobs.submit("selections", "j", 1, work, wait=0)
        found = jobs.cancel("selections", "j")
        jobs.close()
        return found

    assert [pick(count)["indices"] for count in (5, 2, 7)] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]]


def test_an_answer_that_was_cut_off_is_computed_again(http: httpx.Client, store: DirectoryStore) -> None:
    request = {"strategy": "k_center", "budget": 5, "pool": {"inline": POOL.tolist()}}
    whole = http.post("/v1/selections", json=request).json()
    path = store.local(f"selections/{whole['id']}.json")
    assert json.loads(path.read_text()) == whole
    cut = path.read_bytes()[:-40] + b"}"  # where something else ended, say
    path.write_bytes(cut)
    again = http.post("/v1/selections", json=request).json()
    assert again["indices"] == whole["indices"] == json.loads(path.read_text())["indices"]


def test_an_answer_is_sent_whole_whatever_part_is_asked_for(http: httpx.Client) -> None:
    request = {"strategy": "k_center", "budget": 5, "pool": {"inline": POOL.tolist()}}
    place = f"/v1/selections/{http.post('/v1/selections', json=request).json()['id']}"
    for part in ("bytes=0-3", "bytes=99999-", "x"):
        answer = http.get(place, headers={"Range": part})
        assert answer.status_code == 200 and len(answer.json()["indices"]) == 5
        assert answer.headers["Vary"] == "Accept" and int(answer.headers["Content-Length"]) == len(answer.content)
