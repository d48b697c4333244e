"""Reads are shared by those that ask for the same, taken together, and each told only what concerns it."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import httpx
import pytest
from services.conftest import Driver, add_dataset, experiment_body
from sqlalchemy import text
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.orm import Session

from winnow.domain import ExperimentStatus
from winnow.errors import NotFound
from winnow.store import Database, experiments
from winnow_coordinator.context import Coordinator
from winnow_coordinator.reads import MOST, READERS, Reads
from winnow_coordinator.schemas import HealthView

T = TypeVar("T")


class Counter:
    """Something that writers change and readers see; `gate` holds the readers up."""

    def __init__(self) -> None:
        self.value, self.looks = 0, 0
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.threads: set[int] = set()
        self.sessions: set[Session] = set()

    def look(self, session: Session, name: str) -> tuple[str, int]:
        self.looks += 1
        self.threads.add(threading.get_ident())
        self.sessions.add(session)
        seen = self.value
        self.entered.release()
        assert self.gate.wait(20)
        return name, seen


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def reads(database_url: str) -> Iterator[Reads]:
    database = Database(database_url)
    yield Reads(database)
    database.close()


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 30))


async def enter(counter: Counter) -> None:
    """Until one more look has begun."""
    assert await asyncio.to_thread(counter.entered.acquire, timeout=20)


def test_those_who_ask_for_the_same_share_one_look_that_began_after_they_asked(reads: Reads, counter: Counter) -> None:
    async def ask() -> list[tuple[str, int]]:
        busy: list[asyncio.Task[tuple[str, int]]] = []
        for n in range(READERS):  # one after the other: asked at once, one reader would take them all
            busy.append(asyncio.create_task(reads(counter.look, f"busy-{n}")))
            await enter(counter)
        counter.value = 1  # a look at "busy-0" is under way, and has seen less
        late = [asyncio.create_task(reads(counter.look, name)) for name in ("busy-0", "same", "same", "same")]
        await asyncio.sleep(0)
        counter.gate.set()
        return await asyncio.gather(*busy, *late)

    found = run(ask())
    assert found == [*((f"busy-{n}", 0) for n in range(READERS)), ("busy-0", 1), *[("same", 1)] * 3]
    assert counter.looks == READERS + 2
    assert len(counter.threads) <= READERS


def test_many_that_wait_are_answered_in_few_goes(reads: Reads, counter: Counter) -> None:
    async def ask() -> list[tuple[str, int]]:
        asked = [asyncio.create_task(reads(counter.look, f"{n}")) for n in range(5 * MOST)]
        for _ in range(READERS):
            await enter(counter)
        counter.gate.set()
        return await asyncio.gather(*asked)

    assert [name for name, _ in run(ask())] == [f"{n}" for n in range(5 * MOST)]
    assert len(counter.threads) <= READERS
    assert len(counter.sessions) == 5


def test_what_is_asked_as_a_reader_ends_is_answered(
    reads: Reads, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("winnow_coordinator.reads.READERS", 1)
    counter.gate.set()

    async def ask() -> tuple[str, int]:
        first = asyncio.create_task(reads(counter.look, "first"))
        await asyncio.sleep(0)
        (inner,) = reads._waiting.values()  # answered by the reader in its last step

        async def follow() -> tuple[str, int]:
            await inner
            return await reads(counter.look, "second")

        return (await asyncio.gather(follow(), first))[0]

    assert run(ask()) == ("second", 0)


def test_an_error_is_for_the_one_who_asked(reads: Reads) -> None:
    def fail(session: Session, error: Exception) -> None:
        raise error

    async def ask() -> list[Any]:
        broken = DataError("SELECT", None, ValueError("NUL"))
        asked = (reads(one, 1), reads(fail, NotFound("experiment", "x")), reads(fail, broken), reads(one, 2))
        return await asyncio.gather(*asked, return_exceptions=True)

    def one(session: Session, number: int) -> int:
        return session.scalar(text("SELECT 1")) or 0

    good, missing, broken, also = run(ask())
    assert (good, also) == (1, 1)
    assert isinstance(missing, NotFound) and isinstance(broken, DataError)


def test_a_database_that_is_away_is_asked_once_for_all_that_wait(reads: Reads) -> None:
    asked: list[int] = []

    def fail(session: Session, number: int) -> int:
        asked.append(number)
        raise OperationalError("SELECT", None, OSError("no answer"))

    async def ask() -> list[Any]:
        return await asyncio.gather(*(reads(fail, n) for n in range(MOST)), return_exceptions=True)

    assert all(isinstance(answer, OperationalError) for answer in run(ask()))
    assert len(asked) <= READERS


def test_who_leaves_takes_the_answer_from_nobody(reads: Reads, counter: Counter) -> None:
    async def ask() -> tuple[str, int]:
        both = [asyncio.create_task(reads(counter.look, "same")) for _ in range(2)]
        await enter(counter)
        both[0].cancel()
        counter.gate.set()
        return await both[1]

    assert run(ask()) == ("same", 0)


def test_what_is_shown_is_rendered_by_the_reader(reads: Reads) -> None:
    rendered: list[int] = []

    class View(HealthView):
        def model_dump_json(self, **options: Any) -> str:
            rendered.append(threading.get_ident())
            return super().model_dump_json(**options)

    async def ask() -> bytes:
        answer = await reads.show(lambda session: View(status="ok"))
        return bytes(answer.body)

    assert run(ask()) == b'{"status":"ok"}'
    (thread,) = rendered
    assert thread != threading.get_ident()


def test_an_experiment_is_remembered_once_nothing_can_change_it(
    api: httpx.Client, coordinator: Coordinator, driver: Driver
) -> None:
    add_dataset(coordinator)
    id = api.post("/experiments", json=experiment_body(rounds=1)).raise_for_status().json()["id"]
    reads: tuple[Callable[[], Any], ...] = (
        lambda: api.get(f"/experiments/{id}").json(),
        lambda: api.get("/experiments").json()["items"][0],
        lambda: api.get("/experiments?status=completed").json()["items"][0],
    )
    assert [read()["status"] for read in reads[:2]] == ["created", "created"]
    driver.train()
    assert [read()["current_round"]["status"] for read in reads[:2]] == ["trained", "trained"]
    assert coordinator.final_views.get(id) is None
    with coordinator.database.begin() as session:
        experiments.transition(session, id, ExperimentStatus.COMPLETED)
    assert [read()["status"] for read in reads] == ["completed"] * 3
    assert coordinator.final_views.get(id) is None, "its round was still open"
    with coordinator.database.begin() as session:
        session.execute(text("UPDATE round SET status = 'done'"))
    seen = reads[0]()
    assert seen["current_round"] is None
    assert coordinator.final_views.get(id) is not None
    assert [read() for read in reads] == [seen] * 3
