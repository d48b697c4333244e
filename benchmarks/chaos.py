"""Experiments on a deployment of several machines' worth of processes, of which something dies all the time.

    python benchmarks/chaos.py --kills 500 --seconds 1200       # impatient timings, many kills
    python benchmarks/chaos.py --defaults --seconds 600         # the settings' own timings
    python benchmarks/chaos.py --defaults --only sigterm        # how long an orderly end takes, and what it leaves

Runs one wave of tiny experiments in peace, then the same specs again and again while processes are killed and stopped,
connections hang, bells get lost and the disk is full; judges every experiment by what lies in the database and the
artefact store (verdict.py), and compares it with the undisturbed one. Exit code 1 when anything does not hold.
"""

import argparse
import json
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import psutil
from cluster import QUICK, Cluster
from deaths import describe, waits
from faults import KILLS, OTHERS, Mischief, Toll
from verdict import DOUBLED
from volume import Volume
from workload import SPECS, Workload

from winnow.settings import Settings

PATIENT = {"WINNOW_MAX_LOSSES": "1000", "WINNOW_MAX_FAILURES": "1000"}
"""A round of seconds that is killed every few seconds would be given up by the defaults, and rightly so."""
LEASE_OF_DEFAULTS: float = Settings.model_fields["lease_seconds"].default
SPARING = {
    "machine": 3,
    "supervisor": 3,
    "coordinator": 3,
    "zombie machine": 1,
    "sigterm": 2,
    "postgres": 1,
    "redis": 1,
}
"""What is done at default timings: few faults, each left alone until it is healed."""
FENCED = ("claim.fenced", "picking.fenced")


def main() -> None:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C does: everything is stopped and unmounted
    with tempfile.TemporaryDirectory(prefix="winnow-chaos-") as folder, ExitStack() as stack:
        root = Path(folder)
        volume = Volume(root / "disk")
        stack.callback(volume.close)
        cluster = stack.enter_context(make_cluster(root, volume, options))
        workload = Workload(
            cluster,
            volume.artefacts,
            epochs=options.epochs,
            size=options.size,
            budget=options.budget,
            rounds=options.rounds,
            arms=options.arms,
        )
        stack.callback(workload.close)
        began = time.monotonic()
        workload.run_wave(options.patience)
        say(f"undisturbed: {len(workload.records)} experiments in {time.monotonic() - began:.0f} s")
        toll = disturb(cluster, volume, workload, options)
        codes = cluster.stop()
        logs = [path.read_text(errors="replace") for path in (cluster.root / "logs").glob("*.log")]
        if options.keep_logs:
            shutil.copytree(cluster.root / "logs", options.keep_logs, dirs_exist_ok=True)
        sys.exit(report(workload, toll, volume, logs, codes, options))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="end after so many killed processes")
    parser.add_argument("--seconds", type=float, default=600, help="or after so long")
    parser.add_argument("--pause", type=float, help="mean seconds between faults; 1.5, or 40 with --defaults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--defaults", action="store_true", help="the settings' own timings (a lease of 28 s)")
    parser.add_argument("--only", nargs="+", choices=list(KILLS | OTHERS), help="the kinds of faults, equally often")
    parser.add_argument("--coordinators", type=int, default=2)
    parser.add_argument("--samplers", type=int, default=2)
    parser.add_argument("--trainers", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=SPECS, default=list(SPECS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8, help="of each round")
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--budget", type=int, default=16)
    parser.add_argument(
        "--patience", type=float, default=300, help="seconds for the last wave once the faults are over"
    )
    parser.add_argument("--keep-logs", type=Path, help="copy the members' logs here")
    options = parser.parse_args(arguments)
    options.pause = options.pause or (40.0 if options.defaults else 1.5)
    return options


def make_cluster(root: Path, volume: Volume, options: argparse.Namespace) -> Cluster:
    """The deployment under test, its artefacts and scratch on the volume."""
    timings = {} if options.defaults else QUICK | PATIENT
    cluster = Cluster(
        root / "cluster",
        coordinators=options.coordinators,
        samplers=options.samplers,
        trainers=options.trainers,
        settings=timings | {"WINNOW_ARTEFACT_DIR": str(volume.artefacts), "WINNOW_LOG_FORMAT": "json"},
        gateways=True,
    )
    for trainer in cluster.named("trainer"):
        trainer.environment["WINNOW_SCRATCH_DIR"] = str(volume.root / f"scratch-{trainer.name}")
    return cluster


def disturb(cluster: Cluster, volume: Volume, workload: Workload, options: argparse.Namespace) -> Toll:
    """Faults on one side, wave after wave on the other; what was done."""
    over = threading.Event()
    mischief = Mischief(
        cluster,
        volume,
        seed=options.seed,
        pause=options.pause,
        lease=LEASE_OF_DEFAULTS if options.defaults else float(QUICK["WINNOW_LEASE_SECONDS"]),
        faults=dict.fromkeys(options.only, 1) if options.only else SPARING if options.defaults else None,
    )
    worker = threading.Thread(target=work, args=(workload, over, options.patience), name="workload", daemon=True)
    worker.start()
    try:
        mischief.run(kills=options.kills, seconds=options.seconds)
    finally:
        over.set()
        say(f"the faults are over: {mischief.toll.kills} kills; waiting for wave {workload.waves}")
        worker.join()
        mischief.close()
    return mischief.toll


def work(workload: Workload, over: threading.Event, patience: float) -> None:
    """Wave after wave until it is over; a wave that cannot even be asked for is a breach by itself."""
    while not over.is_set():
        began, before = time.monotonic(), len(workload.breaches)
        workload.run_wave(patience, over.is_set)
        news = workload.breaches[before:]
        say(f"wave {workload.waves}: {time.monotonic() - began:.0f} s, {len(news)} breaches")
        for breach in news:
            say(f"  {breach}")


def report(
    workload: Workload, toll: Toll, volume: Volume, logs: list[str], codes: dict[str, int], options: argparse.Namespace
) -> int:
    """Print the figures; the exit code."""
    breaches = workload.breaches
    rules = Counter(breach.rule for breach in breaches)
    taken_back = waits(toll.deaths, workload.records)
    of_lost = [seconds for death, seconds in taken_back if death.fault != "zombie"]
    saved = Counter(goodbye.saved for goodbye in toll.goodbyes if goodbye.in_training)
    trained = [death for death in toll.deaths if death.epochs is not None]
    figures = {
        "experiments": len(workload.records),
        "rounds": sum(len(record.rounds) for record in workload.records),
        "attempts": sum(row["attempt"] for record in workload.records for row in record.rounds),
        "kills": toll.kills,
        "kills by kind": {kind: toll.faults[kind] for kind in KILLS if toll.faults[kind]},
        "other faults": {kind: toll.faults[kind] for kind in OTHERS if toll.faults[kind]},
        "ended by themselves": dict(toll.fallen),
        "lost": workload.lost,
        "doubled": sum(rules[rule] for rule in DOUBLED),
        "different from the undisturbed run": rules["same"],
        "fenced": sum(text.count(f'"event": "{event}"') for text in logs for event in FENCED),
        "from death to reclaim": describe(of_lost),
        "from stop to reclaim (zombies)": describe([s for death, s in taken_back if death.fault == "zombie"]),
        "since the last checkpoint": describe([death.unsaved for death in trained if death.unsaved is not None]),
        "epochs done again, at most": max((death.epochs or 0 for death in trained), default=0),
        "SIGTERM to exit": describe([goodbye.seconds for goodbye in toll.goodbyes]),
        "in mid-training, and left a checkpoint": f"{saved[True]} of {saved.total()}; replaced since: {saved[None]}",
        "orderly exit codes": dict(Counter(codes.values())),
        "full disk": volume.kind,
        "seed": options.seed,
        "machine": f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores",
    }
    for name, value in figures.items():
        say(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")
    for breach in breaches:
        say(f"BREACH {json.dumps(asdict(breach))}")
    return 1 if breaches or workload.lost else 0


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
