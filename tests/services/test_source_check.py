"""The process that looks through a dataset's sources: what it refuses, what it is held to, and that it is not left."""

import asyncio
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import wait_until
from numpy.lib import format as npy
from services.conftest import add_dataset, problem

from winnow.domain import DatasetSpec
from winnow.errors import InvalidInput, PathForbidden, Unavailable
from winnow.settings import SECRETS, Settings
from winnow_coordinator import source_check
from winnow_coordinator.app import THREADS
from winnow_coordinator.context import Coordinator
from winnow_coordinator.source_check import SourceCheck

MANY = 1_500_000
"""Rows that a look takes seconds for, in a file of some kilobytes."""


@pytest.fixture
def many(settings: Settings) -> DatasetSpec:
    """A dataset of very many images of one pixel."""
    path = settings.data_roots[0] / "many.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("train_images.npy", "w") as member:
        npy.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (MANY, 1, 1)})
        member.write(bytes(MANY))
    return spec_of("npz", path)


def spec_of(kind: str, path: Path) -> DatasetSpec:
    return DatasetSpec.model_validate({"name": "d", "sources": [{"kind": kind, "path": str(path)}]})


def its_process() -> psutil.Process | None:
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it ends
            if "winnow_coordinator.source_check" in child.cmdline():
                return child
    return None


def check(settings: Settings) -> SourceCheck:
    return SourceCheck(settings, threading.Event())


def look(settings: Settings, spec: DatasetSpec) -> None:
    asyncio.run(check(settings).run(spec))


async def its_start() -> psutil.Process:
    return await asyncio.to_thread(wait_until, its_process, 30, "the process to start")


def test_what_is_refused_keeps_its_field(settings: Settings, tmp_path: Path) -> None:
    root = settings.data_roots[0]
    with pytest.raises(InvalidInput, match="no folder") as invalid:
        look(settings, spec_of("folder", root / "nowhere"))
    assert invalid.value.field == "sources.0.path"
    (root / "out").symlink_to(tmp_path)
    with pytest.raises(PathForbidden) as forbidden:
        look(settings, spec_of("folder", root / "out"))
    assert str(forbidden.value) == str(PathForbidden(forbidden.value.path, [str(root)]))


def test_more_memory_than_it_may_have_is_refused_with_what_to_do(settings: Settings, many: DatasetSpec) -> None:
    little = settings.model_copy(update={"ingest_memory_gib": 0.25})
    with pytest.raises(InvalidInput, match=r"needs more than 0\.25 GiB; make several .* WINNOW_INGEST_MEMORY_GIB"):
        look(little, many)
    look(settings, many)


def test_one_that_is_killed_is_refused(settings: Settings, many: DatasetSpec) -> None:
    async def kill() -> None:
        running = asyncio.create_task(check(settings).run(many))
        (await its_start()).kill()
        await running

    with pytest.raises(InvalidInput, match="SIGKILL; if nobody did that, the machine ran out of memory; raise WINNOW_"):
        asyncio.run(kill())


def test_it_is_given_no_secret(settings: Settings, many: DatasetSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = {f"WINNOW_{name.upper()}" for name in SECRETS}
    for name in secret:
        monkeypatch.setenv(name, "redis://:secret@host/0")
    monkeypatch.setenv("WINNOW_LOG_LEVEL", "info")

    async def see() -> dict[str, str]:
        running = asyncio.create_task(check(settings).run(many))
        seen = await asyncio.to_thread(wait_until, (await its_start()).environ, 10, "its environment")
        await running
        return seen

    seen = asyncio.run(see())
    assert "WINNOW_LOG_LEVEL" in seen and not secret & seen.keys()


def test_who_asks_for_the_same_waits_for_the_look_under_way(settings: Settings, many: DatasetSpec) -> None:
    async def ask_again() -> bool:
        checking = check(settings)
        first = asyncio.create_task(checking.run(many))
        process = await its_start()
        process.suspend()
        again = asyncio.create_task(checking.run(many))
        for name in ("another", "third"):  # one after the other: a look of its own would be over by then
            await checking.run(many.model_copy(update={"name": name}))
        waits = not again.done()
        process.resume()
        await asyncio.gather(first, again)
        return waits

    assert asyncio.run(ask_again())


@pytest.mark.parametrize("leaves", [0.0, 0.05, 0.3])
def test_one_that_is_called_off_leaves_no_process(settings: Settings, many: DatasetSpec, leaves: float) -> None:
    """As the end of an event loop calls tasks off."""
    seen: list[psutil.Process] = []

    async def leave() -> None:
        running = asyncio.create_task(check(settings).run(many))
        seen.append(await its_start())
        seen[0].suspend()  # it would end by itself
        await asyncio.wait({running}, timeout=leaves)

    asyncio.run(leave())
    assert not psutil.pid_exists(seen[0].pid)


def test_a_coordinator_that_stops_does_not_wait_for_the_end(settings: Settings, many: DatasetSpec) -> None:
    stopping = threading.Event()

    async def stop() -> None:
        running = asyncio.create_task(SourceCheck(settings, stopping).run(many))
        process = await its_start()
        process.suspend()
        stopping.set()
        with pytest.raises(Unavailable, match="send it again"):
            await running
        await asyncio.to_thread(wait_until, lambda: not psutil.pid_exists(process.pid), 30, "the process to end")

    asyncio.run(stop())


def test_one_that_takes_too_long_is_ended(
    settings: Settings, many: DatasetSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_check, "MOST_SECONDS", 0.01)
    with pytest.raises(InvalidInput, match=r"longer than 0\.01 s; make several datasets"):
        look(settings, many)
    assert its_process() is None


def test_others_are_answered_while_sources_are_looked_through(api: httpx.Client, many: DatasetSpec) -> None:
    with ThreadPoolExecutor(1) as pool:
        added = pool.submit(api.post, "/datasets", json=many.model_dump(mode="json"))
        process = wait_until(its_process, 30, "the process to start")
        process.suspend()  # for as long as it takes
        try:
            for _ in range(3 * THREADS):
                assert api.get("/datasets").json()["items"] == []
            taken = api.post("/datasets", json={"name": "other", "sources": [{"kind": "synthetic"}]})
            assert taken.status_code == 202 and not added.done()
        finally:
            process.resume()
        assert added.result(60).status_code == 202


def test_a_name_that_is_taken_is_refused_before_anything_is_looked_through(
    api: httpx.Client, coordinator: Coordinator
) -> None:
    add_dataset(coordinator)
    source = {"kind": "folder", "path": "/nowhere"}
    problem(api.post("/datasets", json={"name": "tissue", "sources": [source]}), 409, "already-exists")
