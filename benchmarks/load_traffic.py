"""The traffic of benchmarks/load.py: requests at the times of a timetable, event streams, and a trainer's writes.

The loop is open: a request is sent when its time has come, whether or not those before it were answered, and its
latency counts from that time. A coordinator that stalls for a second is thus charged for everything that should have
happened in it. Gaps are exponential, as those of many independent people are.
"""

import asyncio
import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
from load_rows import DATASET, Made
from sqlalchemy import select

from winnow.store import Database, claims, events
from winnow.store.tables import Round
from winnow_coordinator import pages

MIX = {
    "experiment": 54,
    "experiments": 6,
    "experiments, deep": 2,
    "experiments, running": 4,
    "metrics": 10,
    "rounds": 8,
    "round": 4,
    "selection": 2,
    "datasets": 2,
    "dataset": 2,
    "samples": 3,
    "workers": 2,
    "readyz": 0.5,
    "prometheus": 0.5,
}
"""Percent of the requests. `winnow watch` asks for each of its experiments once a second: at 200 requests a second 108
are watched. The rest is what a dashboard shows: lists of 50, curves, rounds, picks, samples, workers."""
TIMEOUT = aiohttp.ClientTimeout(total=10)
STREAM = aiohttp.ClientTimeout(total=None, sock_read=60)


@dataclass
class Heard:
    """What the clients saw. Latencies and delays in seconds."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: Counter[str] = field(default_factory=Counter)
    lags: list[float] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    frames: int = 0
    breaks: int = 0


class Reader:
    """Draws requests of the mix; most of them look at experiments that are under way."""

    def __init__(self, made: Sequence[Made], samples: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._made = made
        self._open = [one for one in made if one.is_open]
        self._small = [one for one in made if one.budget <= 1_000]
        self._samples = samples

    def next(self) -> tuple[str, str]:
        """The route's name in the mix, and an address."""
        (name,) = self._random.choices(list(MIX), list(MIX.values()))
        return name, self.address(name)

    def address(self, name: str) -> str:
        """An address of a route of the mix."""
        pick = self._random.choice
        watched = pick(self._open) if self._random.random() < 0.8 else pick(self._made)
        small = pick(self._small)
        position = self._random.randrange(self._samples)
        return {
            "experiment": f"/api/v1/experiments/{watched.id}",
            "experiments": "/api/v1/experiments",
            "experiments, deep": f"/api/v1/experiments?cursor={pages.encode(pick(self._made).id)}",
            "experiments, running": "/api/v1/experiments?status=running",
            "metrics": f"/api/v1/experiments/{watched.id}/metrics",
            "rounds": f"/api/v1/experiments/{watched.id}/rounds",
            "round": f"/api/v1/experiments/{watched.id}/rounds/{self._random.randrange(watched.rounds)}",
            "selection": f"/api/v1/experiments/{small.id}/rounds/{self._random.randrange(small.rounds)}/selection",
            "datasets": "/api/v1/datasets",
            "dataset": f"/api/v1/datasets/{DATASET}",
            "samples": f"/api/v1/datasets/{DATASET}/samples?role=pool&cursor={pages.encode(position)}",
            "workers": "/api/v1/workers",
            "readyz": "/readyz",
            "prometheus": "/metrics",
        }[name]


async def send(
    client: aiohttp.ClientSession, keys: Sequence[str], reader: Reader, heard: Heard, *, rate: float, seconds: float
) -> None:
    """Requests for `seconds`, `rate` a second on average, each under one of the `keys`."""
    loop, gaps = asyncio.get_running_loop(), random.Random(1)
    at = begun = loop.time() + 0.5
    async with asyncio.TaskGroup() as requests:
        while at < begun + seconds:
            await asyncio.sleep(max(0.0, at - loop.time()))
            heard.lags.append(loop.time() - at)
            requests.create_task(_ask(client, gaps.choice(keys), *reader.next(), at, heard))
            at += gaps.expovariate(rate)


async def _ask(client: aiohttp.ClientSession, key: str, name: str, address: str, at: float, heard: Heard) -> None:
    try:
        async with client.get(address, headers={"Authorization": f"Bearer {key}"}) as answer:
            await answer.read()
        if not answer.ok:
            heard.errors[f"{name}: {answer.status}"] += 1
    except (aiohttp.ClientError, TimeoutError) as error:
        heard.errors[f"{name}: {type(error).__name__}"] += 1
    heard.latencies[name].append(asyncio.get_running_loop().time() - at)


async def listen(client: aiohttp.ClientSession, one: Made, heard: Heard) -> None:
    """Follow an experiment until cancelled. Only what happens from now on: the past would be one long answer."""
    after, address = 0, f"/api/v1/experiments/{one.id}/events"
    begun = time.time()
    while True:
        try:
            async with client.get(address, params={"after": after}, timeout=STREAM) as answer:
                answer.raise_for_status()
                async for line in answer.content:
                    if line.startswith(b"id: "):
                        after = int(line[4:])
                    elif line.startswith(b"data: "):
                        heard.frames += 1
                        at = json.loads(line[6:]).get("at")
                        if at and at > begun:
                            heard.delays.append(time.time() - at)
        except (aiohttp.ClientError, TimeoutError) as error:
            heard.errors[f"stream: {type(error).__name__}"] += 1
        heard.breaks += 1


def write(database: Database, made: Sequence[Made], stop: threading.Event) -> None:
    """What trainers write: each running round renews its claim every five seconds, with its progress; five events a
    second. Until `stop`."""
    with database.read() as session:
        working = list(session.execute(select(Round.id, Round.experiment_id).where(Round.status == "training")))
    tick = 0
    while working and not stop.wait(1.0):
        tick += 1
        for n, (id, experiment) in enumerate(working):
            with database.begin() as session:
                if n % 5 == tick % 5:
                    progress = {"phase": "train", "epoch": tick % 100, "epochs": 100, "images_per_second": 1450.0}
                    claims.renew(session, claims.TRAIN, id, 1, 86_400, progress)
                if (n + tick) % max(1, len(working) // 5) == 0:
                    events.append(session, experiment, "round.noted", round=0, note=tick)
