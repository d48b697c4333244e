"""The process that looks through a dataset's sources: what it refuses, what it is held to, and that it is not left."""

import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil
import pytest
from anyio import to_thread
from conftest import wait_until
from numpy.lib import format as npy

from winnow.domain import DatasetSpec
from winnow.errors import InvalidInput, PathForbidden
from winnow.settings import SECRETS, Settings
from winnow_coordinator.source_check import SourceCheck

MANY = 1_500_000
"""Rows that a look takes seconds for, in a file of some kilobytes."""


@pytest.fixture
def many(settings: Settings) -> dict[str, Any]:
    """A dataset of very many images of one pixel."""
    path = settings.data_roots[0] / "many.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("train_images.npy", "w") as member:
        npy.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (MANY, 1, 1)})
        member.write(bytes(MANY))
    return {"name": "many", "sources": [{"kind": "npz", "path": str(path)}]}


def spec_of(kind: str, path: Path) -> DatasetSpec:
    return DatasetSpec.model_validate({"name": "d", "sources": [{"kind": kind, "path": str(path)}]})


def its_process() -> psutil.Process | None:
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it ends
            if "winnow_coordinator.source_check" in child.cmdline():
                return child
    return None


def look(settings: Settings, spec: DatasetSpec) -> None:
    anyio.run(SourceCheck(settings).run, spec)


def meanwhile(settings: Settings, spec: DatasetSpec, act: Callable[[psutil.Process], object]) -> None:
    """Look through the sources, and do something to the process that does."""

    def see() -> None:
        found = wait_until(its_process, 30, "the process to start")
        act(found)

    async def both() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(to_thread.run_sync, see)
            await SourceCheck(settings).run(spec)

    anyio.run(both)


def test_what_is_refused_keeps_its_field(settings: Settings, tmp_path: Path) -> None:
    root = settings.data_roots[0]
    with pytest.raises(InvalidInput, match="no folder") as invalid:
        look(settings, spec_of("folder", root / "nowhere"))
    assert invalid.value.field == "sources.0.path"
    (root / "out").symlink_to(tmp_path)
    with pytest.raises(PathForbidden) as forbidden:
        look(settings, spec_of("folder", root / "out"))
    assert str(forbidden.value) == str(PathForbidden(forbidden.value.path, [str(root)]))


def test_more_memory_than_it_may_have_is_refused_with_what_to_do(settings: Settings, many: dict[str, Any]) -> None:
    little = settings.model_copy(update={"ingest_memory_gib": 0.25})
    with pytest.raises(InvalidInput, match=r"needs more than 0\.25 GiB; make several .* WINNOW_INGEST_MEMORY_GIB"):
        look(little, DatasetSpec.model_validate(many))
    look(settings, DatasetSpec.model_validate(many))


def test_one_that_is_killed_is_refused(settings: Settings, many: dict[str, Any]) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        meanwhile(settings, DatasetSpec.model_validate(many), psutil.Process.kill)
    assert [type(error) for error in caught.value.exceptions] == [InvalidInput]
    assert "SIGKILL; if nobody did that, the machine ran out of memory" in str(caught.value.exceptions[0])


def test_it_is_given_no_secret(settings: Settings, many: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    secret = {f"WINNOW_{name.upper()}" for name in SECRETS}
    for name in secret:
        monkeypatch.setenv(name, "redis://:secret@host/0")
    monkeypatch.setenv("WINNOW_LOG_LEVEL", "info")
    seen: list[dict[str, str]] = []

    def note(process: psutil.Process) -> None:
        seen.append(wait_until(partial(_environment, process), 10, "its environment"))

    meanwhile(settings, DatasetSpec.model_validate(many), note)
    assert "WINNOW_LOG_LEVEL" in seen[0] and not secret & seen[0].keys()


def _environment(process: psutil.Process) -> dict[str, str]:
    return process.environ()


def test_one_that_is_called_off_leaves_no_process(settings: Settings, many: dict[str, Any]) -> None:
    async def call_off() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(SourceCheck(settings).run, DatasetSpec.model_validate(many))
            seen.append(await to_thread.run_sync(wait_until, its_process, 30, "the process to start"))
            tasks.cancel_scope.cancel()

    seen: list[psutil.Process] = []
    anyio.run(call_off)
    assert not psutil.pid_exists(seen[0].pid)


def test_others_are_answered_while_sources_are_looked_through(api: httpx.Client, many: dict[str, Any]) -> None:
    answered: list[int] = []

    async def ask() -> int:
        async with httpx.AsyncClient(base_url=api.base_url, timeout=60) as http, anyio.create_task_group() as tasks:

            async def go_on() -> None:
                while True:
                    answered.append((await http.get("/datasets")).status_code)

            tasks.start_soon(go_on)
            made = await http.post("/datasets", json=many)
            tasks.cancel_scope.cancel()
        return made.status_code

    assert anyio.run(ask) == 202
    assert len(answered) > 20 and set(answered) == {200}, "the look takes seconds, and an answer some milliseconds"
