"""What experiments came to: report.json, and the table that people read first."""

import statistics
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from winnow import __version__
from winnow.client import Client
from winnow_cli.output import coloured, count, duration, score

Json = dict[str, Any]
COLUMNS = ["experiment", "status", ">samples", ">visits", ">seconds", ">F1", ">macro F1", ">AUROC"]
FLOORS = {"colour_histogram": "floor: colour histogram", "untrained_encoder": "floor: untrained encoder"}
FREE = ("name", "arm", "seed")
"""What arms of one comparison may differ in without a note."""


def gather(client: Client, ids: Sequence[str]) -> Json:
    """The report: experiments → rounds → samples, visits, seconds (by phase) and metrics.

    `samples`, `visits` and `total_seconds` count from round 0; `seconds` are the round's own. Waiting for a free
    trainer is the queue's doing, not the arm's: it stands in `seconds`, and not in `total_seconds`.
    """
    experiments = [_experiment(client, id) for id in ids]
    return {
        "winnow": __version__,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "notes": notes(experiments),
        "experiments": experiments,
    }


def rows(experiments: Sequence[Json]) -> Iterable[list[str]]:
    """The table: the last evaluation of each experiment, arms over several seeds, then the floors."""
    for experiment in experiments:
        yield _row(experiment)
    for arm, group in by_arm(experiments).items():
        if len(group) > 1:
            yield _spread(arm, group)
    yield from _floor_rows(experiments)


def by_arm(experiments: Sequence[Json]) -> dict[str, list[Json]]:
    """Experiments that differ in their seed alone, by `arm` (with the dataset, where there are several)."""
    several = len({experiment["dataset"] for experiment in experiments}) > 1
    groups: dict[str, list[Json]] = {}
    for experiment in experiments:
        label = f"{experiment['arm']} on {experiment['dataset']}" if several else experiment["arm"]
        groups.setdefault(label, []).append(experiment)
    return groups


def headline(metrics: Json) -> float | None:
    """F1 of the positive class, or macro F1 where no class is positive."""
    return metrics["f1"] if metrics.get("f1") is not None else metrics.get("macro_f1")


def notes(experiments: Sequence[Json]) -> list[str]:
    """What makes these experiments less comparable than they look."""
    found: list[str] = []
    flat = [_flatten({**experiment["spec"]}) for experiment in experiments]
    for key in sorted({key for one in flat for key in one}):
        values = {experiment["name"]: one.get(key) for experiment, one in zip(experiments, flat, strict=True)}
        if key not in FREE and len(set(map(str, values.values()))) > 1:
            found.append(f"{key} differs: " + ", ".join(f"{name} {value}" for name, value in values.items()))
    for experiment in experiments:
        if experiment["status"] != "completed":
            reason = f" ({experiment['error']})" if experiment["error"] else ""
            found.append(f"{experiment['name']} is {experiment['status']}{reason}: its last evaluation so far is shown")
    return found


def _experiment(client: Client, id: str) -> Json:
    view = client.experiment(id)
    total = 0.0
    evaluated: list[Json] = []
    floors: Json | None = None
    for row in client.rounds(id):
        total += sum(spent for phase, spent in row["seconds"].items() if phase != "wait")
        floors = row["report"].get("floors", floors)
        if row["metrics"]:
            evaluated.append(
                {
                    "round": row["number"],
                    "samples": row["samples"],
                    "visits": row["visits"],
                    "seconds": row["seconds"],
                    "total_seconds": total,
                    "attempts": row["attempt"],
                    "metrics": row["metrics"],
                    "losses": row["report"].get("losses", []),
                }
            )
    kept = ("id", "name", "dataset", "arm", "status", "error", "rounds_total", "spec")
    return {key: view[key] for key in kept} | {"seed": view["spec"]["seed"], "floors": floors, "rounds": evaluated}


def _row(experiment: Json) -> list[str]:
    status, done = experiment["status"], f"{len(experiment['rounds'])}/{experiment['rounds_total']}"
    start = [experiment["name"], coloured(status) if status == "completed" else f"{coloured(status)} {done}"]
    if not experiment["rounds"]:
        return [*start, *[""] * (len(COLUMNS) - len(start))]
    last = experiment["rounds"][-1]
    spent = [count(last["samples"]), count(last["visits"]), duration(last["total_seconds"])]
    return [*start, *spent, *_scores(last["metrics"])]


def _spread(arm: str, group: Sequence[Json]) -> list[str]:
    """Mean and standard deviation over seeds, of the last evaluations."""
    last = [experiment["rounds"][-1]["metrics"] for experiment in group if experiment["rounds"]]
    cells: list[str] = []
    for name in ("f1", "macro_f1", "auroc"):
        values = [metrics[name] for metrics in last if metrics.get(name) is not None]
        enough = len(values) > 1
        cells.append(f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}" if enough else "")
    return [f"{arm}, {len(last)} seeds: mean ± sd", *[""] * (len(COLUMNS) - 4), *cells]


def _floor_rows(experiments: Sequence[Json]) -> Iterable[list[str]]:
    """Floors once for each seed and dataset; arms share them."""
    seen: set[str] = set()
    for experiment in experiments:
        for key, label in FLOORS.items():
            metrics = (experiment["floors"] or {}).get(key)
            if metrics is None:
                continue
            cells = _scores(metrics)
            mark = f"{label} {cells}"
            if mark not in seen:
                seen.add(mark)
                yield [f"[dim]{label}[/dim]", *[""] * (len(COLUMNS) - 4), *cells]


def _scores(metrics: Json) -> list[str]:
    return [score(metrics.get(name)) for name in ("f1", "macro_f1", "auroc")]


def _flatten(spec: Json, stem: str = "") -> Json:
    flat: Json = {}
    for key, value in spec.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{stem}{key}.")
        else:
            flat[f"{stem}{key}"] = value
    return flat
