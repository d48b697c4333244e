"""A look through a dataset's sources, in a process of its own: `python -m winnow_coordinator.source_check PARENT`.

A table of ten million rows takes a minute and gigabytes, and a file may be made to harm its reader. The process has a
limit of memory and none of the coordinator's secrets, and the coordinator answers others meanwhile.
"""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from anyio import BrokenResourceError, CancelScope, Semaphore, open_process
from anyio.abc import Process

from winnow import confinement, datasets
from winnow.domain import DatasetSpec
from winnow.errors import InvalidInput, PathForbidden
from winnow.settings import Settings

Json = dict[str, Any]
AT_ONCE = 2
"""Looks of one coordinator that go on at the same time; others wait: each may take gigabytes."""


class SourceCheck:
    """Refuses what no trainer could ingest, as far as can be known without decoding an image."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turns = Semaphore(AT_ONCE)

    async def run(self, spec: DatasetSpec) -> None:
        """Raises InvalidInput with the field, also where the look needs more memory than it may have; PathForbidden.

        One that is cancelled leaves no process behind.
        """
        job = {
            "spec": spec.model_dump(mode="json"),
            "data_roots": [str(root) for root in self._settings.data_roots],
            "memory_gib": self._settings.ingest_memory_gib,
        }
        async with self._turns:
            code, said = await _ask(json.dumps(job).encode())
        if code != 0:
            end = confinement.describe_end(code)
            raise InvalidInput("sources", f"the process that looked through them ended with {end}")
        answer = json.loads(said)
        if (refused := answer.get("invalid")) is not None:
            raise InvalidInput(**refused)
        if (refused := answer.get("forbidden")) is not None:
            raise PathForbidden(**refused)


async def _ask(asked: bytes) -> tuple[int, bytes]:
    """What the process answers, and how it ended."""
    command = [sys.executable, "-m", "winnow_coordinator.source_check", str(os.getpid())]
    process: Process | None = None
    with CancelScope(shield=True):  # asyncio does not wait for one that is called off while it starts
        process = await open_process(command, stderr=None, env=confinement.environment())
    assert process is not None and process.stdin is not None and process.stdout is not None
    async with process:
        with suppress(BrokenResourceError):  # it has ended already
            await process.stdin.send(asked)
        await process.stdin.aclose()
        said = b"".join([part async for part in process.stdout])
        return await process.wait(), said


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
