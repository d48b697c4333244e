"""A look through a dataset's sources, in a process of its own: `python -m winnow_coordinator.source_check PARENT`.

A table of ten million rows takes a minute and gigabytes, and a file may be made to harm its reader. The process has a
limit of memory and none of the coordinator's secrets in its environment, and the coordinator answers others meanwhile.
"""

import asyncio
import json
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from winnow import confinement, datasets
from winnow.domain import DatasetSpec
from winnow.errors import InvalidInput, PathForbidden, Unavailable
from winnow.settings import Settings

Json = dict[str, Any]
AT_ONCE = 4
"""Looks of one coordinator that go on at the same time; others wait: each may take gigabytes."""
MOST_SECONDS = 840.0
"""Of a look, waiting for its turn included; the client waits a minute longer, to hear of it."""
_DEATH_SECONDS = 5.0
_PAUSE = 0.5
"""Between looks whether the coordinator stops."""


class SourceCheck:
    """Refuses what no trainer could ingest, as far as can be known without decoding an image.

    Belongs to one event loop. Who asks for a look that is under way waits for that one.
    """

    def __init__(self, settings: Settings, stopping: threading.Event) -> None:
        self._settings, self._stopping = settings, stopping
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._looks: dict[str, asyncio.Task[None]] = {}

    async def run(self, spec: DatasetSpec) -> None:
        """Raises InvalidInput with the field, also where the look takes more memory or time than it may; PathForbidden;
        Unavailable when the coordinator stops.
        """
        job = json.dumps(
            {
                "spec": spec.model_dump(mode="json"),
                "data_roots": [str(root) for root in self._settings.data_roots],
                "memory_gib": self._settings.ingest_memory_gib,
            }
        )
        look = self._looks.get(job) or self._begin(job)
        while not self._stopping.is_set():
            done, _ = await asyncio.wait({look}, timeout=_PAUSE)
            if done:
                return look.result()
        look.cancel()
        raise Unavailable("this coordinator stops, and did not look through the sources; send it again")

    def _begin(self, job: str) -> asyncio.Task[None]:
        def forget(look: asyncio.Task[None]) -> None:
            del self._looks[job]
            if not look.cancelled():
                look.exception()  # whoever asked may have left

        look = self._looks[job] = asyncio.create_task(self._look(job))
        look.add_done_callback(forget)
        return look

    async def _look(self, job: str) -> None:
        try:
            async with asyncio.timeout(MOST_SECONDS), self._turns:
                code, said = await _ask(job.encode())
        except TimeoutError:
            reason = f"looking through them took longer than {MOST_SECONDS:g} s; make several datasets of them"
            raise InvalidInput("sources", reason) from None
        if code < 0:
            advice = f"raise WINNOW_INGEST_MEMORY_GIB if {self._settings.ingest_memory_gib:g} GiB are too little"
            end = confinement.describe_end(code)
            raise InvalidInput("sources", f"the process that looked through them ended with {end}; {advice}")
        if code > 0:
            raise RuntimeError(f"the look through the sources of a dataset ended with exit code {code}")
        answer = json.loads(said)
        if (refused := answer.get("invalid")) is not None:
            raise InvalidInput(**refused)
        if (refused := answer.get("forbidden")) is not None:
            raise PathForbidden(**refused)


async def _ask(job: bytes) -> tuple[int, bytes]:
    """How the process ended, and what it answered. One that is called off is killed."""
    command = [sys.executable, "-m", "winnow_coordinator.source_check", str(os.getpid())]
    pipe, environment = asyncio.subprocess.PIPE, confinement.environment()
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=environment)
    try:
        said, _ = await process.communicate(job)
    except BaseException:
        with suppress(ProcessLookupError):
            process.kill()
        with suppress(TimeoutError):  # a file system that hangs keeps it
            await asyncio.wait_for(process.wait(), _DEATH_SECONDS)
        raise
    assert process.returncode is not None
    return process.returncode, said


def look(job: Json) -> Json:
    """The process's side: what is to be refused, if anything is."""
    confinement.confine(int(job["memory_gib"] * 2**30))
    settings = Settings(data_roots=tuple(Path(root) for root in job["data_roots"]))
    try:
        datasets.check(DatasetSpec.model_validate(job["spec"]), settings.require_allowed)
    except InvalidInput as error:
        return {"invalid": {"field": error.field, "reason": error.reason}}
    except PathForbidden as error:
        return {"forbidden": {"path": error.path, "roots": error.roots}}
    except MemoryError:
        advice = "make several datasets of them, or raise WINNOW_INGEST_MEMORY_GIB"
        reason = f"looking through them needs more than {job['memory_gib']:g} GiB; {advice}"
        return {"invalid": {"field": "sources", "reason": reason}}
    return {}


def main() -> None:
    confinement.die_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's to hear
    json.dump(look(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
