"""A deployment whose processes die at the steps that are armed and are started again, and what it lives through.

A life is one piece of work and the steps at which processes die during it, each once, in the order in which it gets
there. Its end is held against an undisturbed one on the same deployment.
"""

import hashlib
import os
import shutil
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster import Cluster, Kind
from conftest import wait_until
from e2e.conftest import add_experiment, add_tissue, wait_for
from e2e.invariants import Api, check
from e2e.nursery import SERVICES, Nursery
from processes import Member

from winnow.failpoints import EXIT_CODE, VARIABLE, Failpoint
from winnow.store import Database, events

HURRIED = {
    "WINNOW_LEASE_SECONDS": "3",
    "WINNOW_RENEW_SECONDS": "0.5",
    "WINNOW_STEWARD_SECONDS": "0.1",
    "WINNOW_RING_AGAIN_SECONDS": "0.3",  # and trainers poll as seldom as ever: what a bell lost, a bell brings back
    "WINNOW_RETRY_SECONDS": "0",
    "WINNOW_MAX_LOSSES": "100",
    "WINNOW_MAX_FAILURES": "100",
}
ROUNDS = 2
TISSUE = {"sources": [{"kind": "synthetic", "synthetic": {"patches": 120, "slides": 6, "test_slides": 2}}]}
DRAWS = {"draws": [{"count": 20, "by": "stratum"}], "shard_size": 50}
PATIENCE = 500
"""Seconds for a life on a machine that is busy with other tests: a training process takes a while to start."""
SAME = ("weights", "optimizer", "embeddings", "probabilities", "index", "proxy")
"""Ends of the kinds of artefacts that two runs of one spec share to the last bit. Counters hold seconds."""


@dataclass(frozen=True)
class Outcome:
    """What must not depend on who died."""

    picks: list[list[tuple[int, float]]]
    metrics: list[dict[str, Any]]
    digests: dict[str, str]


@dataclass(frozen=True)
class Life:
    """A piece of work, which is to end as an undisturbed one of the arm `like` did, and the deaths during it.

    `prepare` comes before: nothing is armed yet.
    """

    name: str
    points: tuple[Failpoint, ...]
    live: "Callable[[Bench], str | None]"
    like: str = ""
    prepare: "Callable[[Bench], None]" = lambda bench: None


@dataclass
class Story:
    """How a life went: the steps at which a process ended, and what is to be said against its end."""

    ended: set[Failpoint] = field(default_factory=set)
    complaint: str = ""


class Bench:
    """One deployment, from its first process to its last, and the stories so far."""

    def __init__(self, root: Path, kind: Kind, nursery: Nursery) -> None:
        self.arms = root / "failpoints"
        self.arms.mkdir(parents=True)
        self.kind: Kind = kind
        self.nursery = nursery
        self.cluster = Cluster(root, kind=kind, settings=HURRIED | {VARIABLE: str(self.arms)})
        self.scratch = elsewhere(root)
        self.cluster["trainer-0"].environment["WINNOW_SCRATCH_DIR"] = str(self.scratch)
        for member in self.services:
            service = f"winnow_{member.name.partition('-')[0]}"
            member.launch = partial(nursery.fork, service, member.log)
        self.ends: list[tuple[str, int]] = []
        self.stories: dict[str, Story] = {}
        self.undisturbed: dict[str, str] = {}
        self.baselines: dict[str, Outcome] = {}
        self._over = threading.Event()
        self._reviver = threading.Thread(target=self._revive, daemon=True)

    def __enter__(self) -> "Bench":
        self.cluster.start()
        self.api = Api(self.cluster.urls[0])
        self.api.http = self.cluster.http
        self.database = Database(self.cluster.database_url)
        self._reviver.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._reviver.join()
        self.database.close()
        self.cluster.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    @property
    def services(self) -> list[Member]:
        return [member for name in SERVICES for member in self.cluster.named(name.removeprefix("winnow_"))]

    def story(self, life: Life) -> Story:
        """The story of a life, lived when it is first asked for."""
        if not self.baselines:
            self.ingest("tissue")
            self.undisturbed = {arm: self.begin(arm) for arm in ("entropy", "k_center")}
            self.baselines = {arm: self.outcome(id) for arm, id in self.undisturbed.items()}
        if life.name not in self.stories:
            self.stories[life.name] = self._live(life)
        return self.stories[life.name]

    def outcome(self, id: str) -> Outcome:
        """The end of an experiment, after everything that can be checked of it alone."""
        ended = wait_for(self.api, id, timeout=PATIENCE)
        assert ended["status"] == "completed", ended
        check(self.api, id)
        with self.database.read() as session:
            seen = Counter((event.type, event.data.get("round")) for event in events.after(session, id, 0))
        once = [("experiment.created", None), ("experiment.completed", None)]
        once += [(f"round.{step}", n) for step in ("queued", "trained", "done") for n in range(ROUNDS)]
        assert not [step for step in once if seen[step] != 1], seen
        same = {name: digest for name, digest in self.digests(id).items() if name.rpartition("/")[2] in SAME}
        return Outcome([self._picks(id, n) for n in range(ROUNDS)], self._metrics(id), same)

    def digests(self, id: str) -> dict[str, str]:
        """SHA-256 of what an experiment's manifests name, by round and kind; the stored bytes have it."""
        named = self.manifests(id)
        for row in named.values():
            stored = self.cluster.root / "artefacts" / row["key"]
            assert hashlib.sha256(stored.read_bytes()).hexdigest() == row["sha256"], row
        return {name: row["sha256"] for name, row in named.items()}

    def manifests(self, id: str) -> dict[str, dict[str, Any]]:
        """What an experiment has, by round and kind."""
        rows = [(n, row) for n in range(ROUNDS) for row in self.api.get(f"/experiments/{id}/rounds/{n}")["artefacts"]]
        return {f"{number}/{row['kind']}": row for number, row in rows}

    def takes(self, point: Failpoint) -> bool:
        """Whether the step is taken here: patches are cached on another file system than the artefacts' alone."""
        is_other = self.scratch.stat().st_dev != self.cluster.root.stat().st_dev
        return is_other or point not in (Failpoint.PATCHES_COPIED, Failpoint.PATCHES_CACHED)

    def begin(self, arm: str, dataset: str = "tissue") -> str:
        """A tiny experiment, asked for as a client does that may lose the answer."""
        self.api.http.headers["Idempotency-Key"] = os.urandom(8).hex()
        try:
            return add_experiment(self.api, arm, dataset=dataset, rounds=ROUNDS, candidates=40, floors=False)
        finally:
            del self.api.http.headers["Idempotency-Key"]

    def ingest(self, name: str) -> None:
        """A small dataset, in three shards."""
        self.api.http.headers["Idempotency-Key"] = os.urandom(8).hex()
        try:
            add_tissue(self.api, name=name, **TISSUE, **DRAWS)
        finally:
            del self.api.http.headers["Idempotency-Key"]

    def forget_patches(self) -> None:
        """The trainer's machine has a copy of none."""
        for cached in (self.scratch / "cache").glob("*.npy"):
            cached.unlink()

    def forget_answers(self, **environment: str) -> None:
        """No sampler remembers what it picked; its next process may have another environment."""
        self.replace("sampler-0", **environment)
        shutil.rmtree(self.cluster.root / "artefacts" / "selections")

    def replace(self, name: str, **environment: str) -> None:
        """Kill a service, whose next process may have another environment, and wait for that."""
        member = self.cluster[name]
        starts = member.starts
        member.environment |= environment
        member.signal(signal.SIGKILL)
        wait_until(lambda: member.starts > starts and member.is_ready(), 60, f"a new {name}")
        self.ends.remove((name, -signal.SIGKILL))

    def have_ended(self, points: Iterable[Failpoint]) -> bool:
        """Whether at each of the steps a process ended."""
        return set(points) <= self._ended()

    def _live(self, life: Life) -> Story:
        story = Story()
        life.prepare(self)
        ends_before = len(self.ends)
        points = {point for point in life.points if self.takes(point)}
        for point in points:
            (self.arms / point).touch()
        try:
            id = life.live(self)
            if id is not None:
                assert self.outcome(id) == self.baselines[life.like], "the end differs from the undisturbed one"
                shutil.rmtree(self.cluster.root / "artefacts" / "experiments" / id)  # 0.3 GB, and all was looked at
            wait_until(lambda: self.have_ended(points), 20, "the last steps to be reached")
            other = [end for end in self.ends[ends_before:] if end[1] != EXIT_CODE]
            assert not other, f"processes ended that nobody made end: {other}"
        except (Exception, pytest.fail.Exception) as error:  # told by the test of each step
            story.complaint = f"{error or repr(error)}; not reached: {sorted(points - self._ended())}"
        story.ended = self._ended()
        for left in self.arms.iterdir():
            left.unlink()
        return story

    def _ended(self) -> set[Failpoint]:
        """The steps at which a process has ended."""
        hits = [(*hit.stem.rsplit(".", 1), hit.stat().st_ctime) for hit in self.arms.glob("*.hit")]
        return {Failpoint(point) for point, pid, at in hits if has_ended(int(pid), at)}

    def _picks(self, id: str, number: int) -> list[tuple[int, float]]:
        batch = self.api.get(f"/experiments/{id}/rounds/{number}/selection")["items"]
        return [(pick["idx"], pick["score"]) for pick in batch]

    def _metrics(self, id: str) -> list[dict[str, Any]]:
        rows = self.api.get(f"/experiments/{id}/metrics")["items"]
        return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]

    def _revive(self) -> None:
        """Start again whatever died, as `winnow up` and container runtimes do, but at once."""
        while not self._over.wait(0.05):
            for member in self.services:
                if not member.is_alive():
                    self.ends.append((member.name, member.wait(0)))
                    member.start()


def has_ended(pid: int, at: float) -> bool:
    """Whether the process that had this id at a time is gone; another one may have the id now."""
    try:
        process = psutil.Process(pid)
        return process.create_time() > at or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def elsewhere(root: Path) -> Path:
    """A scratch directory on another file system than `root`, where there is one: patches are then cached."""
    memory = Path("/dev/shm")
    is_other = memory.is_dir() and memory.stat().st_dev != root.stat().st_dev
    return Path(tempfile.mkdtemp(prefix="winnow-scratch-", dir=memory if is_other else root))
