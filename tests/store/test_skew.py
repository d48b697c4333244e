"""Two machines whose clocks are five days apart: leases of rows and devices are as if they were not."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from store.conftest import add_experiment

from winnow.store import Database
from winnow.store.tables import Dataset

DAY = 86_400
LEASE = 4.0
PATCH = """
import os, time
true, true_ns, offset = time.time, time.time_ns, float(os.environ["SKEW"])
time.time, time.time_ns = lambda: true() + offset, lambda: true_ns() + int(offset * 1e9)
"""
MACHINE = """
import json, sys, time
from winnow.errors import Fenced
from winnow.store import Database, claims, workers
from winnow.store.claims import TRAIN

database, me, lease = Database(sys.argv[1]), sys.argv[2], float(sys.argv[3])
row = None
for order in sys.stdin:
    with database.begin() as session:
        if order.strip() == "claim":
            row = claims.claim(session, TRAIN, me, lease)
            said = row.attempt if row else None
        elif order.strip() == "renew":
            claims.renew(session, TRAIN, row.id, row.attempt, lease, None)
            said = "renewed"
        elif order.strip() == "expired":
            said = [row.attempt for row in claims.expired(session, TRAIN)]
        else:
            said = workers.lease_device(session, "h", "GPU-1", me, lease)
    print(json.dumps({"said": said, "clock": time.time()}), flush=True)
"""


class Machine:
    """A process with a wall clock of its own, told what to do a line at a time."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.clock = 0.0

    def do(self, order: str) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.clock = answer["clock"]
        return answer["said"]


@contextmanager
def machine(folder: Path, url: str, name: str, skew: float) -> Iterator[Machine]:
    (folder / "sitecustomize.py").write_text(PATCH)
    path = os.pathsep.join([str(folder), *(part for part in sys.path if part)])
    process = subprocess.Popen(
        [sys.executable, "-c", MACHINE, url, name, str(LEASE)],
        env={**os.environ, "PYTHONPATH": path, "SKEW": str(skew)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Machine(process)
        finally:
            process.kill()


@pytest.mark.parametrize("ahead", ["trainer", "coordinator"])
def test_days_between_two_clocks_neither_end_a_lease_nor_keep_it(
    database: Database, dataset: Dataset, database_url: str, tmp_path: Path, ahead: str
) -> None:
    add_experiment(database, dataset)
    skew = 2.5 * DAY if ahead == "trainer" else -2.5 * DAY
    with (
        machine(tmp_path, database_url, "trainer", skew) as trainer,
        machine(tmp_path, database_url, "coordinator", -skew) as coordinator,
    ):
        assert coordinator.do("expired") == []
        assert (trainer.do("claim"), trainer.do("device")) == (1, True)
        assert abs(trainer.clock - time.time() - skew) < 3600 and abs(coordinator.clock - time.time() + skew) < 3600
        begun = time.monotonic()
        while time.monotonic() - begun < 1.5 * LEASE:
            renewed = time.monotonic()
            assert trainer.do("renew") == "renewed" and trainer.do("device")
            seen = coordinator.do("expired"), coordinator.do("device")
            in_time = time.monotonic() - renewed < LEASE  # this machine may stand still for that long
            assert seen == ([], False) or not in_time, "a live lease is not taken for an old one"
        trainer.process.kill()
        wait_until(lambda: coordinator.do("expired") == [1], 60, "a dead one to end")
        wait_until(lambda: coordinator.do("device"), 60, "the device to be free")
