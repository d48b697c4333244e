"""One coordinator and Postgres under the reads of many people: latency, errors, memory.

    python benchmarks/load.py --minutes 10 --rate 200 --pin

Starts Postgres and a coordinator, each a process of its own, and fills the database: 1,000,000 samples; 1,000
experiments of 20 rounds with their metrics, events, artefacts and picks. Reports the seconds to insert 100,000 picks;
what the first and the last page of each list take; the processor time of a request of each route; then latency by route
under open-loop traffic with open event streams beside it, and the coordinator's memory over time. The clients run on
the same machine, in this process: with `--pin` the coordinator has the first processor to itself, and they share the
others with Postgres.
"""

import argparse
import asyncio
import contextlib
import os
import secrets
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp
import httpx
import numpy as np
import psutil
from load_rows import DATASET, Made, Sizes, fill
from load_traffic import MIX, TIMEOUT, Heard, Reader, listen, send, write
from processes import Guard, Member, free_port
from servers import create_database, make_postgres
from sqlalchemy import delete, text

from winnow.store import Database, picks
from winnow.store.tables import Pick
from winnow_coordinator import pages

PEOPLE = 50
"""Callers with a key each."""
PARTS = ("picks", "pages", "cost", "traffic")
SETTLED = 0.2
"""Share of the run after which memory counts: caches fill first."""


def main() -> None:
    options, guard = parse(), Guard()
    with tempfile.TemporaryDirectory(prefix="winnow-load-", dir=options.folder) as made:
        folder = Path(made)
        with postgres(folder, guard) as (url, pid):
            measure(options, url, pid, folder, guard)
    guard.close()


def measure(options: argparse.Namespace, url: str, pid: int, folder: Path, guard: Guard) -> None:
    """Fill the database, and print the parts that were asked for."""
    database = Database(url)
    database.migrate()
    begun = time.monotonic()
    sizes = Sizes(options.samples, options.experiments, options.rounds)
    made = fill(database, sizes)
    print(f"filled {sizes} in {time.monotonic() - begun:.0f} s; {_version(database)}")
    if "picks" in options.only:
        insert_picks(database, made[0], options.picks)
    with coordinator(url, folder, guard) as (address, key, process):
        processes = [process, psutil.Process(pid)]
        if options.pin:
            spread(*processes)
        if "pages" in options.only:
            compare_pages(address, key, made, sizes)
        if "cost" in options.only:
            weigh_routes(address, key, made, sizes, processes, options.repeats)
        if "traffic" in options.only:
            watch_traffic(address, key, made, options, processes, database)
    database.close()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--samples", type=int, default=Sizes.samples)
    parser.add_argument("--experiments", type=int, default=Sizes.experiments)
    parser.add_argument("--rounds", type=int, default=Sizes.rounds)
    parser.add_argument("--picks", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=100, help="requests of each route whose cost is measured")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--pin", action="store_true", help="keep everything else off the coordinator's processor")
    parser.add_argument("--folder", type=Path, help="where logs and state lie while it runs")
    return parser.parse_args()


@contextlib.contextmanager
def postgres(folder: Path, guard: Guard) -> Iterator[tuple[str, int]]:
    """An address of an empty database on a server with its own defaults, and the server's process id."""
    server, url, made = make_postgres(folder / "postgres.log", guard, settings=())
    try:
        server.start()
        server.wait_ready()
        create_database(url)
        yield url, server.pid
    finally:
        server.stop()
        shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def coordinator(database_url: str, folder: Path, guard: Guard) -> Iterator[tuple[str, str, psutil.Process]]:
    """The address of a coordinator, a key for it, its process."""
    port, key = free_port(), f"wnw_{secrets.token_urlsafe(32)}"
    given = {"STATE_DIR": folder, "DATABASE_URL": database_url, "COORDINATOR_PORT": port, "BOOTSTRAP_KEY": key}
    address = f"http://127.0.0.1:{port}"
    member = Member(
        "coordinator",
        [sys.executable, "-m", "winnow_coordinator"],
        folder / "coordinator.log",
        guard,
        environment={f"WINNOW_{name}": str(value) for name, value in given.items()},
        answers=lambda: _is_ready(address),
    )
    try:
        member.start()
        member.wait_ready()
        yield address, key, psutil.Process(member.pid)
    finally:
        member.stop()


def spread(coordinator: psutil.Process, postgres: psutil.Process) -> None:
    """The coordinator on the first processor of this machine, Postgres and this process on the others."""
    first, *others = sorted(os.sched_getaffinity(0))
    _pin(coordinator, [first])
    for process in (postgres, *postgres.children(recursive=True), psutil.Process()):
        _pin(process, others or [first])


def _pin(process: psutil.Process, processors: list[int]) -> None:
    for thread in process.threads():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread.id, processors)


def _is_ready(address: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{address}/readyz", trust_env=False).is_success
    return False


def insert_picks(database: Database, one: Made, count: int, repeats: int = 5) -> None:
    """Seconds to insert and commit a batch of `count` picks."""
    batch, scores = np.random.default_rng(0).permutation(count).astype(np.int64), np.linspace(1, 0, count).tolist()
    spent: list[float] = []
    for _ in range(repeats):
        with database.begin() as session:
            session.execute(delete(Pick).where(Pick.experiment_id == one.id))
        begun = time.monotonic()
        with database.begin() as session:
            picks.insert(session, one.id, one.rounds, batch, scores)
        spent.append(time.monotonic() - begun)
    middle, low, high = statistics.median(spent), min(spent), max(spent)
    print(f"{count:,} picks inserted: {middle:.2f} s ({low:.2f} to {high:.2f}, {repeats} runs)")


def compare_pages(address: str, key: str, made: Sequence[Made], sizes: Sizes, repeats: int = 60) -> None:
    """Milliseconds of a list's first and last full page, in turn."""
    limit = min(50, len(made) // 2)
    samples = f"/api/v1/datasets/{DATASET}/samples?limit=100"
    last = pages.encode(sizes.samples - 101)
    pairs = {
        "experiments": (f"?limit={limit}", f"?limit={limit}&cursor={pages.encode(made[limit].id)}"),
        "samples": (samples, f"{samples}&cursor={last}"),
        "samples of a role": (f"{samples}&role=pool", f"{samples}&role=pool&cursor={last}"),
    }
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=address, headers=headers, trust_env=False) as client:
        for name, (first, final) in pairs.items():
            both = [f"/api/v1/experiments{path}" if path[0] == "?" else path for path in (first, final)]
            spent = [[_time(client, path) for path in both] for _ in range(repeats)]
            begin, end = (statistics.median(column) * 1000 for column in zip(*spent, strict=True))
            print(f"pages of {name}: first {begin:.1f} ms, last {end:.1f} ms, ratio {end / begin:.2f}")


def weigh_routes(
    address: str, key: str, made: Sequence[Made], sizes: Sizes, processes: list[psutil.Process], repeats: int
) -> None:
    """Processor time of one request, one at a time: it hardly depends on what else the machine does."""
    reader, total = Reader(made, sizes.samples, 1), 0.0
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as client:
        for name, share in MIX.items():
            paths = [reader.address(name) for _ in range(repeats)]
            for path in paths[:20]:
                _time(client, path)
            before = [_cpu(process) for process in processes]
            for path in paths:
                _time(client, path)
            spent = [1000 * (_cpu(one) - was) / repeats for one, was in zip(processes, before, strict=True)]
            total += spent[0] * share / 100
            print(f"cost of {name:22}{spent[0]:6.1f} ms in the coordinator,{spent[1]:6.1f} ms in Postgres")
    print(f"cost of the mix: {total:.1f} ms of the coordinator for each request")


def _time(client: httpx.Client, path: str) -> float:
    begun = time.perf_counter()
    client.get(path).raise_for_status()
    return time.perf_counter() - begun


def watch_traffic(
    address: str,
    key: str,
    made: Sequence[Made],
    options: argparse.Namespace,
    processes: list[psutil.Process],
    database: Database,
) -> None:
    """Requests, streams and writes for the minutes asked for, then the report."""
    stop, memory, heard = threading.Event(), [], Heard()
    beside = [
        threading.Thread(target=write, args=(database, made, stop)),
        threading.Thread(target=_weigh, args=(processes[0], memory, stop)),
    ]
    before = [*map(_cpu, processes), time.process_time()]
    begun = time.monotonic()
    for thread in beside:
        thread.start()
    try:
        asyncio.run(_run(address, key, made, options, heard))
    finally:
        stop.set()
        for thread in beside:
            thread.join()
    seconds = time.monotonic() - begun
    after = [*map(_cpu, processes), time.process_time()]
    report(heard, memory, [(b - a) / seconds for a, b in zip(before, after, strict=True)])


async def _run(address: str, key: str, made: Sequence[Made], options: argparse.Namespace, heard: Heard) -> None:
    followed = [one for one in made if one.is_open]
    headers, connector = {"Authorization": f"Bearer {key}"}, aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(address, headers=headers, connector=connector, timeout=TIMEOUT) as client:
        streams = [
            asyncio.create_task(listen(client, followed[n % len(followed)], heard)) for n in range(options.streams)
        ]
        await asyncio.sleep(2)  # what happened before is sent first
        people = [await _make_key(client, n) for n in range(PEOPLE)]
        reader = Reader(made, options.samples, 0)
        await send(client, people, reader, heard, rate=options.rate, seconds=60 * options.minutes)
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)


async def _make_key(client: aiohttp.ClientSession, n: int) -> str:
    asked = client.post("/api/v1/keys", json={"name": f"person-{n}", "scopes": ["read"]}, raise_for_status=True)
    async with asked as answer:
        return (await answer.json())["key"]


def _weigh(process: psutil.Process, memory: list[tuple[float, float]], stop: threading.Event) -> None:
    """(minutes, MiB) of resident memory, twice a second."""
    begun = time.monotonic()
    while not stop.wait(0.5):
        memory.append(((time.monotonic() - begun) / 60, process.memory_info().rss / 2**20))


def _cpu(process: psutil.Process) -> float:
    """Seconds of processor time of a process and its children."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def report(heard: Heard, memory: list[tuple[float, float]], shares: list[float]) -> None:
    print(f"{'route':22}{'requests':>9}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}")
    everything = [one for some in heard.latencies.values() for one in some]
    for name in (*MIX, "all"):
        some = everything if name == "all" else heard.latencies.get(name, [])
        if some:
            p50, p99, most = np.percentile(np.array(some) * 1000, [50, 99, 100])
            print(f"{name:22}{len(some):9,}{p50:9.1f}{p99:9.1f}{most:9.1f}")
    print(f"errors: {dict(heard.errors) or 'none'}")
    print(f"sent late by the client itself: p99 {np.percentile(heard.lags, 99) * 1000:.1f} ms")
    if heard.delays:
        p50, p99 = np.percentile(heard.delays, [50, 99])
        print(f"events: {len(heard.delays):,} live, p50 {p50:.2f} s, p99 {p99:.2f} s after they happened; ", end="")
        print(f"{heard.frames:,} frames, {heard.breaks} streams broken")
    names = ("coordinator", "Postgres", "this client")
    print("cores: " + ", ".join(f"{name} {share:.2f}" for name, share in zip(names, shares, strict=True)))
    settled = np.array(memory[int(len(memory) * SETTLED) :])
    if len(settled) > 2:
        slope = np.polyfit(settled[:, 0], settled[:, 1], 1)[0]
        first, last, most = settled[0, 1], settled[-1, 1], settled[:, 1].max()
        print(f"memory: {first:.1f} MiB, at the end {last:.1f}, at most {most:.1f}; slope {slope:+.2f} MiB a minute")


def _version(database: Database) -> str:
    with database.read() as session:
        server = session.scalar(text("SHOW server_version"))
        size = session.scalar(text("SELECT pg_size_pretty(pg_database_size(current_database()))"))
        return f"PostgreSQL {server}, {size}"


if __name__ == "__main__":
    main()
