"""How fast, how large and how right picking is, beside the selectors that others publish, side by side in one run.

    python benchmarks/selection.py                                  10,000 candidates
    python benchmarks/selection.py --cases 10k 99k 1m --repeats 1   all of them: scikit-activeml takes minutes at 99k
    python benchmarks/selection.py --inputs embeddings --embeddings h.npy
    python benchmarks/selection.py --cases entropy

winnow    k_center_greedy
plain     FAISS for the centres (knn), then one float32 matrix-vector product a pick, with NumPy
oracle    scikit-learn's pairwise distances in float64, a pass a pick, as in google/active-learning's kcenter_greedy
skactive  scikit-activeml's CoreSet; where it is not installed the row says so

inputs    clustered: mixtures below max(0, .), of skewed sizes, as ResNet's pooled output is
          gaussian: independent normals, where no candidate is near another
          outliers: clustered, a row in a hundred a thousand times as long
          tight: two clusters, three thousand times as far apart as they are wide
          embeddings: rows of your own .npy (float32, as many columns as it has), the first ones the centres;
          benchmarks/embeddings.py writes one from real patches

Each contender is a process of its own, one after the other, `--repeats` times in turn; the median counts. Memory is
the largest anonymous memory of the process beyond what it held with the input loaded: the map of a file is not in it.
Two hashes tell picks apart: of their order, and of their set.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from winnow_trainer.memory import give_back

WIDTH = 512
BLOCK = 4096


class Case(NamedTuple):
    """How many candidates and centres there are, and whether the candidates stay on disk."""

    candidates: int
    centres: int
    mapped: bool
    contenders: tuple[str, ...]


CASES = {
    "10k": Case(10_000, 1000, False, ("winnow", "plain", "oracle", "skactive")),
    "99k": Case(99_000, 5000, False, ("winnow", "plain", "oracle", "skactive")),
    "1m": Case(1_000_000, 1000, True, ("winnow", "plain")),
}
CONTENDERS = ("winnow", "plain", "oracle", "skactive")
INPUTS = ("clustered", "gaussian", "outliers", "tight", "embeddings")
ENTROPY_ROWS, ENTROPY_CLASSES = 10_000_000, 9


def main() -> None:
    options = parse()
    if options.contender:
        print(json.dumps(run_contender(options)))
        return
    print(f"# {datetime.now(UTC):%Y-%m-%d}, {describe_machine()}, {describe_versions()}, {options.budget} picks")
    for case in options.cases:
        if case == "entropy":
            report_entropy(options.repeats)
            continue
        for kind in options.inputs:
            with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
                if write_input(Path(folder), CASES[case], kind, options.embeddings):
                    print(f"\n{case}, {kind}: {CASES[case].candidates:,} candidates, {CASES[case].centres:,} centres")
                    report(measure(options, Path(folder), case))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=(*CASES, "entropy"), default=["10k", "entropy"])
    parser.add_argument("--inputs", nargs="+", choices=INPUTS, default=["clustered", "gaussian"])
    parser.add_argument("--embeddings", type=Path, help="a float32 .npy of candidates and centres")
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds that one contender may take")
    parser.add_argument("--scratch", type=Path, help="where inputs are written; a mapped case needs 2 GiB there")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--mapped", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


# --- inputs -------------------------------------------------------------------------------------


def write_input(folder: Path, case: Case, kind: str, embeddings: Path | None) -> bool:
    """pool.npy and centres.npy; False, and a line that says why, where there are not enough embeddings."""
    rows = case.candidates + case.centres
    if kind == "embeddings":
        stored = (
            np.load(embeddings, mmap_mode="r", allow_pickle=False) if embeddings else np.empty((0, WIDTH), np.float32)
        )
        if len(stored) < rows:
            print(f"\nembeddings: not measured, {rows:,} rows are needed, there are {len(stored):,}")
            return False
        blocks = (np.asarray(stored[at : min(at + BLOCK, rows)], np.float32) for at in range(0, rows, BLOCK))
    else:
        blocks = globals()[f"draw_{kind}"](rows)
        stored = np.empty((0, WIDTH))
    centres = np.lib.format.open_memmap(folder / "centres.npy", "w+", np.float32, (case.centres, stored.shape[1]))
    pool = np.lib.format.open_memmap(folder / "pool.npy", "w+", np.float32, (case.candidates, stored.shape[1]))
    at = 0
    for block in blocks:
        split = min(max(case.centres - at, 0), len(block))
        centres[at : at + split] = block[:split]
        first = at + split - case.centres
        if split < len(block):
            pool[first : first + len(block) - split] = block[split:]
        at += len(block)
    return True


def draw_clustered(rows: int, clusters: int = 120) -> Any:
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, clusters + 1) ** 1.1
    middles = rng.normal(-0.3, 1.0, (clusters, WIDTH)).astype(np.float32)
    spreads = rng.uniform(0.3, 1.0, clusters).astype(np.float32)
    for at in range(0, rows, BLOCK):
        which = rng.choice(clusters, min(BLOCK, rows - at), p=shares / shares.sum())
        noise = rng.standard_normal((len(which), WIDTH), dtype=np.float32)
        yield np.maximum(middles[which] + spreads[which, None] * noise, 0)


def draw_gaussian(rows: int) -> Any:
    rng = np.random.default_rng(0)
    for at in range(0, rows, BLOCK):
        yield rng.standard_normal((min(BLOCK, rows - at), WIDTH), dtype=np.float32)


def draw_outliers(rows: int) -> Any:
    for block in draw_clustered(rows):
        block[::100] *= np.float32(1000)
        yield block


def draw_tight(rows: int) -> Any:
    for block in draw_gaussian(rows):
        tight = block * np.float32(1e-3)
        tight[::2] += np.float32(3)
        yield tight


# --- contenders: (pool, centres, budget) to picks and radius -------------------------------------


def run_winnow(pool: Any, centres: Any, budget: int) -> tuple[Any, float]:
    from winnow.selection import k_center_greedy

    picked = k_center_greedy(pool, budget, centers=centres)
    assert picked.radius is not None
    return picked.indices, picked.radius


def run_plain(pool: Any, centres: Any, budget: int) -> tuple[Any, float]:
    import faiss

    nearest = np.empty(len(pool), np.float32)
    norms = np.empty(len(pool), np.float32)
    step = len(pool) if not isinstance(pool, np.memmap) else 65_536
    parts = [slice(at, at + step) for at in range(0, len(pool), step)]
    for part in parts:
        nearest[part] = faiss.knn(pool[part], centres, 1)[0][:, 0]
        norms[part] = np.einsum("ij,ij->i", pool[part], pool[part])
    picks = []
    squares = np.empty(len(pool), np.float32)
    for _ in range(budget):
        pick = int(nearest.argmax())
        picks.append(pick)
        np.matmul(pool, pool[pick], out=squares)
        squares *= -2
        squares += norms
        squares += norms[pick]
        np.minimum(nearest, squares, out=nearest)
        nearest[pick] = -1
    return np.array(picks), float(np.sqrt(max(nearest.max(), 0)))


def run_oracle(pool: Any, centres: Any, budget: int) -> tuple[Any, float]:
    from sklearn.metrics import pairwise_distances

    pool, centres = pool.astype(np.float64), centres.astype(np.float64)
    nearest = np.full(len(pool), np.inf)
    for at in range(0, len(centres), 250):
        np.minimum(nearest, pairwise_distances(pool, centres[at : at + 250]).min(axis=1), out=nearest)
    picks = []
    for _ in range(budget):
        picks.append(int(nearest.argmax()))
        np.minimum(nearest, pairwise_distances(pool, pool[picks[-1:]])[:, 0], out=nearest)
        nearest[picks[-1]] = -1
    return np.array(picks), float(max(nearest.max(), 0))


def run_skactive(pool: Any, centres: Any, budget: int) -> tuple[Any, float]:
    from skactiveml.pool import CoreSet

    samples = np.concatenate([pool, centres])
    labels = np.concatenate([np.full(len(pool), np.nan), np.zeros(len(centres))])
    return CoreSet(random_state=0).query(samples, labels, batch_size=budget), float("nan")


def run_contender(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, memory and hashes of one run in this process."""
    pool = np.load(options.folder / "pool.npy", mmap_mode="r" if options.mapped else None, allow_pickle=False)
    centres = np.load(options.folder / "centres.npy", allow_pickle=False)
    run: Callable[..., tuple[Any, float]] = globals()[f"run_{options.contender}"]
    run(np.ascontiguousarray(pool[:300]), centres[:20], 5)  # imports and thread pools, not timed
    with PeakMemory() as memory:
        began = time.perf_counter()
        picks, radius = run(pool, centres, options.budget)
        seconds = time.perf_counter() - began
    order = np.asarray(picks, np.int64)
    np.save(options.folder / f"{options.contender}.npy", order)
    hashes = {name: digest(value) for name, value in (("order", order), ("set", np.sort(order)))}
    return {"seconds": seconds, "memory": memory.grown, "radius": radius, **hashes}


class PeakMemory:
    """The largest anonymous memory of this process inside the block, beyond what it had before: looked at often."""

    def __enter__(self) -> "PeakMemory":
        self.peak, self.lock = 0, threading.Lock()
        self.done, watching = threading.Event(), threading.Event()
        self.watch = threading.Thread(target=self._watch, args=(watching,))
        self.watch.start()
        watching.wait()
        give_back()  # what was freed before is not to be had again for nothing
        with self.lock:
            self.before = self.peak = anonymous_bytes()
        return self

    def _watch(self, watching: threading.Event) -> None:
        while not self.done.wait(0.005):
            with self.lock:
                self.peak = max(self.peak, anonymous_bytes())
            watching.set()  # what a look takes is there, and not the contender's

    def __exit__(self, *reason: object) -> None:
        self.done.set()
        self.watch.join()

    @property
    def grown(self) -> int:
        return self.peak - self.before


def anonymous_bytes() -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition("RssAnon:")[2].split()[0])


def digest(numbers: Any) -> str:
    return hashlib.sha256(numbers.tobytes()).hexdigest()[:12]


# --- what was measured --------------------------------------------------------------------------


def measure(options: argparse.Namespace, folder: Path, case: str) -> dict[str, list[dict[str, Any]]]:
    """The runs of each contender, and how many picks it shares with the oracle, else with winnow."""
    runs: dict[str, list[dict[str, Any]]] = {}
    command = [sys.executable, __file__, "--folder", str(folder), "--budget", str(options.budget)]
    command += ["--mapped"] if CASES[case].mapped else []
    for _ in range(options.repeats):
        for contender in (name for name in CASES[case].contenders if name in options.only):
            runs.setdefault(contender, []).append(run_once([*command, "--contender", contender], options.limit))
    reference = next((n for n in ("oracle", "plain") if (folder / f"{n}.npy").exists()), None)
    for name, rows in runs.items():
        if reference and "seconds" in rows[0]:
            ours, theirs = (np.load(folder / f"{one}.npy", allow_pickle=False) for one in (name, reference))
            shared = np.intersect1d(ours, theirs)
            rows[0]["overlap"] = f"{100 * len(shared) / options.budget:.1f} % of {reference}'s"
    return runs


def run_once(command: list[str], limit: float) -> dict[str, Any]:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {limit:.0f} s"}
    if ended.returncode:
        return {"error": (ended.stderr.strip().splitlines() or ["no reason"])[-1]}
    return json.loads(ended.stdout.strip().splitlines()[-1])


def report(runs: dict[str, list[dict[str, Any]]]) -> None:
    """A line a contender, then the ratios that count."""
    medians: dict[str, float] = {}
    for name, rows in runs.items():
        if "error" in rows[0]:
            print(f"  {name:8} not measured: {rows[0]['error']}")
            continue
        seconds = [row["seconds"] for row in rows if "seconds" in row]
        medians[name] = statistics.median(seconds)
        spread = f"({min(seconds):.2f} to {max(seconds):.2f})"
        first, memory = rows[0], max(row.get("memory", 0) for row in rows) / 2**20
        picks = f"order {first['order']} set {first['set']} {first.get('overlap', '')}"
        print(f"  {name:8} {medians[name]:8.2f} s {spread:18} {memory:7.2f} MiB  radius {first['radius']:.7g}  {picks}")
    for name in medians.keys() - {"winnow"}:
        if "winnow" in medians:
            print(f"  {name} / winnow: {medians[name] / medians['winnow']:.1f}")


def report_entropy(repeats: int) -> None:
    """Entropy of ten million rows, against the logarithm of the same array."""
    from winnow.selection import most_uncertain

    powers = np.random.default_rng(0).standard_exponential((ENTROPY_ROWS, ENTROPY_CLASSES), dtype=np.float32)
    powers += np.float32(1e-6)
    powers /= powers.sum(axis=1, keepdims=True)
    logs, own, grown = [], [], 0
    for _ in range(repeats):
        logs.append(timed(lambda: np.log(powers)))
        with PeakMemory() as memory:
            own.append(timed(lambda: most_uncertain(powers, 1000)))
        grown = max(grown, memory.grown)
    log, entropy = statistics.median(logs), statistics.median(own)
    print(f"\nentropy of {ENTROPY_ROWS:,} x {ENTROPY_CLASSES}, 1,000 picks")
    print(f"  numpy.log {log:.3f} s, most_uncertain {entropy:.3f} s, ratio {entropy / log:.2f}")
    print(f"  beyond the input {grown / 2**20:.0f} MiB, {grown / (4 * ENTROPY_ROWS):.2f} arrays of n floats")


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def describe_machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return f"{models[0] if models else 'unknown processor'}, {len(models)} cores"


def describe_versions() -> str:
    from importlib import metadata

    found = []
    for name in ("numpy", "faiss-cpu", "scikit-learn", "scikit-activeml"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


if __name__ == "__main__":
    main()
