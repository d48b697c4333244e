"""Faults, drawn at random: who is killed, paused, cut off, emptied or filled up, and what undoes it."""

import heapq
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
import redis
from cluster import Cluster
from deaths import Death, Goodbye, left_checkpoint, witness
from kombu.exceptions import OperationalError as KombuError
from processes import Member
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from volume import Volume

from winnow.queue import TRAIN_TASK, make_app
from winnow.store import Database
from winnow.store.tables import Round

KILLS = {"supervisor": 2, "child": 3, "machine": 1, "coordinator": 4, "sampler": 3, "redis": 7, "postgres": 7}
"""Faults that kill processes, with their weights: what takes long to start again is killed less often."""
OTHERS = {
    "zombie machine": 1,
    "zombie supervisor": 1,
    "zombie coordinator": 1,
    "half-open postgres": 1,
    "half-open redis": 1,
    "flushall": 1,
    "bells doubled": 2,
    "bells dropped": 2,
    "bells late": 2,
    "full disk": 1,
    "sigterm": 1,
}
GONE = (redis.RedisError, KombuError, SQLAlchemyError, ProcessLookupError, psutil.NoSuchProcess)
"""What a fault meets whose victim another fault has just taken away: it is skipped."""
QUEUE = "winnow"
"""The Redis list in which Celery keeps the bells."""


@dataclass
class Toll:
    """What was done: faults by kind, processes killed, claims that died, orderly ends."""

    faults: Counter[str] = field(default_factory=Counter)
    deaths: list[Death] = field(default_factory=list[Death])
    goodbyes: list[Goodbye] = field(default_factory=list[Goodbye])
    fallen: Counter[str] = field(default_factory=Counter)
    """Services that ended by themselves, and were started again as any supervisor of containers does."""

    @property
    def kills(self) -> int:
        return sum(self.faults[kind] for kind in KILLS)


class Mischief:
    """Does one fault after the other to a cluster, and undoes each in time.

    Args:
        pause: mean seconds between two faults. lease: of the deployment, in seconds.
        volume: where artefacts and scratch lie; can be filled up.
        faults: the kinds to draw from, with their weights.
    """

    def __init__(
        self,
        cluster: Cluster,
        volume: Volume,
        *,
        seed: int,
        pause: float,
        lease: float,
        faults: dict[str, int] | None = None,
    ) -> None:
        self.toll = Toll()
        self._cluster, self._volume = cluster, volume
        self._random, self._pause, self._lease = random.Random(seed), pause, lease
        self._faults = faults or KILLS | OTHERS
        self._database = Database(cluster.database_url)
        self._celery = make_app(cluster.services_settings())
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._busy: set[str] = set()
        """Members and things that a fault holds at the moment: one fault at a time for each."""
        self._handlers: dict[str, Callable[[], bool]] = {
            **{kind: (lambda kind=kind: self._kill(kind)) for kind in KILLS},
            "zombie machine": lambda: self._zombie("trainer", whole=True),
            "zombie supervisor": lambda: self._zombie("trainer", whole=False),
            "zombie coordinator": lambda: self._zombie("coordinator", whole=True),
            "half-open postgres": lambda: self._half_open("postgres"),
            "half-open redis": lambda: self._half_open("redis"),
            "flushall": self._flush,
            "bells doubled": self._double_bells,
            "bells dropped": self._drop_bells,
            "bells late": self._delay_bells,
            "full disk": self._fill,
            "sigterm": self._ask_to_leave,
        }

    def run(self, *, kills: int, seconds: float) -> None:
        """Until so many processes were killed or the time is over; then everything is well again."""
        ends, pause = time.monotonic() + seconds, threading.Event()
        next_at = time.monotonic()
        while time.monotonic() < ends and self.toll.kills < kills:
            self._undo_due()
            self._revive_fallen()
            if time.monotonic() >= next_at:
                self._strike()
                next_at = time.monotonic() + self._random.expovariate(1 / self._pause)
            pause.wait(0.05)
        while self._later:
            heapq.heappop(self._later)[2]()
        self._cluster.revive()

    def close(self) -> None:
        self._celery.close()
        self._database.close()

    def _strike(self) -> None:
        kinds = list(self._faults)
        (kind,) = self._random.choices(kinds, [self._faults[name] for name in kinds])
        with suppress(*GONE):
            if self._handlers[kind]():
                self.toll.faults[kind] += 1

    def _after(self, seconds: float, undo: Callable[[], None], *things: str) -> None:
        """Hold `things`, and undo in so many seconds."""
        self._busy.update(things)

        def end() -> None:
            self._busy.difference_update(things)
            undo()

        heapq.heappush(self._later, (time.monotonic() + seconds, id(end), end))

    def _undo_due(self) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()

    def _revive_fallen(self) -> None:
        for name, member in self._cluster.members.items():
            if name not in self._busy and not member.is_alive():
                self.toll.fallen[name.partition("-")[0]] += 1
                self._after(1.0, member.start, name)

    def _victim(self, stem: str) -> Member | None:
        alive = [m for m in self._cluster.named(stem) if m.name not in self._busy and m.is_alive()]
        return self._random.choice(alive) if alive else None

    def _kill(self, kind: str) -> bool:
        member = self._victim({"supervisor": "trainer", "child": "trainer", "machine": "trainer"}.get(kind, kind))
        if member is None:
            return False
        if kind == "child":
            child = self._cluster.training_child(member.name)
            if child is None:
                return False
            os.killpg(child, signal.SIGKILL)
            return True
        self.toll.deaths += witness(self._database, self._volume.artefacts, member.pid, kind)
        member.kill() if kind == "supervisor" else member.kill_family()
        self._after(self._random.uniform(0.1, 2.0), member.start, member.name)
        return True

    def _zombie(self, stem: str, *, whole: bool) -> bool:
        """Stand still until the lease is over, then go on as if nothing had been."""
        member = self._victim(stem)
        if member is None:
            return False
        self.toll.deaths += witness(self._database, self._volume.artefacts, member.pid, "zombie")
        member.pause() if whole else member.signal(signal.SIGSTOP)
        self._after(self._lease * self._random.uniform(1.05, 1.5), member.resume, member.name)
        return True

    def _half_open(self, name: str) -> bool:
        if name in self._busy:
            return False
        gateway, cut = self._cluster.gateways[name], self._random.random() < 0.5
        gateway.close_half()
        self._after(self._random.uniform(0.2, 1.5) * self._lease, lambda: gateway.heal(cut=cut), name)
        return True

    def _flush(self) -> bool:
        with self._broker() as broker:
            broker.flushall()
        return True

    def _double_bells(self) -> bool:
        with self._database.read() as session:
            ids = session.scalars(select(Round.id).order_by(Round.id.desc()).limit(6)).all()
        for id in ids:
            for _ in range(2):
                self._celery.send_task(TRAIN_TASK, args=[id], retry=False, ignore_result=True)
        return True

    def _drop_bells(self) -> bool:
        with self._broker() as broker:
            return bool(broker.delete(QUEUE))

    def _delay_bells(self) -> bool:
        with self._broker() as broker:
            held = [bell for _ in range(20) if (bell := broker.lpop(QUEUE))]
        if not held:
            return False
        self._after(self._random.uniform(1, self._lease), lambda: self._return_bells(held))
        return True

    def _return_bells(self, held: Sequence[Any]) -> None:
        with suppress(redis.RedisError), self._broker() as broker:
            broker.rpush(QUEUE, *held)

    def _fill(self) -> bool:
        if "disk" in self._busy:
            return False
        self._volume.fill(self._cluster.named("trainer"))
        self._after(self._random.uniform(0.5, 4), lambda: self._volume.empty(self._cluster.named("trainer")), "disk")
        return True

    def _ask_to_leave(self) -> bool:
        member = self._victim("trainer")
        if member is None or self._busy & {"postgres", "redis"} or self._cluster.training_child(member.name) is None:
            return False
        held = witness(self._database, self._volume.artefacts, member.pid, "sigterm")
        in_training = [death for death in held if death.epochs is not None]
        began = time.monotonic()
        member.signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            member.wait(60)
        seconds = time.monotonic() - began
        saved = left_checkpoint(self._database, in_training[0]) if in_training else None
        self.toll.goodbyes.append(Goodbye(seconds, bool(in_training), saved))
        member.start()
        return True

    def _broker(self) -> redis.Redis:
        return redis.Redis.from_url(self._cluster.broker_url, socket_timeout=2, socket_connect_timeout=2)
