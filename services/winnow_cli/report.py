"""What experiments came to: report.json, and the table that people read first."""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from winnow import __version__
from winnow.client import Client
from winnow.domain import ExperimentStatus, has_ended
from winnow_cli.output import coloured, count, duration, plain, score

Json = dict[str, Any]
COLUMNS = ["~experiment", "status", ">samples", ">visits", ">seconds", ">F1", ">macro F1", ">AUROC"]
FLOORS = {"colour_histogram": "floor: colour histogram", "untrained_encoder": "floor: untrained encoder"}
REPEATED = ("name", "seed")
"""What the experiments of one group may differ in."""
FREE = (*REPEATED, "arm")
"""What arms of one comparison may differ in without a note."""
NAMED = 3
"""Differences that a group's label names, past which it names its first experiment; experiments that a note names."""


@dataclass(frozen=True)
class Group:
    """Experiments whose specs differ in name and seed alone. `first` says whether it is the first of its arm."""

    label: str
    experiments: list[Json]
    first: bool

    @property
    def arm(self) -> str:
        return self.experiments[0]["arm"]

    @property
    def size(self) -> str:
        """How many seeds, and how many runs where seeds were run more than once."""
        runs, seeds = len(self.experiments), len({one["seed"] for one in self.experiments})
        words = f"{seeds} seed{'s' if seeds > 1 else ''}"
        return words if runs == seeds else f"{runs} runs of {words}"


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
    """The table: the last evaluation of each experiment, groups over several seeds, then the floors."""
    for title, experiment in zip(titles(experiments), experiments, strict=True):
        yield _row(title, experiment)
    for group in grouped([experiment for experiment in experiments if experiment["rounds"]]):
        if len(group.experiments) > 1:
            yield _spread(group)
    yield from _floor_rows(experiments)


def titles(experiments: Sequence[Json]) -> list[str]:
    """What to call each: its name, with its id where another has the same name."""
    times = Counter(experiment["name"] for experiment in experiments)
    return [one["name"] if times[one["name"]] == 1 else f"{one['name']} ({one['id']})" for one in experiments]


def grouped(experiments: Sequence[Json]) -> list[Group]:
    """Groups in the order of their first experiments. Labelled by arm, and by what its groups differ in."""
    by_spec: dict[str, list[Json]] = {}
    for experiment in experiments:
        flat = _flatten(experiment["spec"])
        same = {key: value for key, value in flat.items() if key not in REPEATED}
        by_spec.setdefault(json.dumps(same, sort_keys=True), []).append(experiment)
    heads = [group[0] for group in by_spec.values()]
    found: list[Group] = []
    for group in by_spec.values():
        rivals = [head for head in heads if head["arm"] == group[0]["arm"]]
        found.append(Group(_label(group[0], rivals), group, first=rivals[0] is group[0]))
    return found


def headline(metrics: Json) -> float | None:
    """F1 of the positive class, or macro F1 where no class is positive."""
    return metrics["f1"] if metrics.get("f1") is not None else metrics.get("macro_f1")


def notes(experiments: Sequence[Json]) -> list[str]:
    """What makes these experiments less comparable than they look."""
    found: list[str] = []
    named = titles(experiments)
    flat = [_flatten(experiment["spec"]) for experiment in experiments]
    for key in _differing(flat, FREE):
        owners: dict[str, list[str]] = {}
        for title, one in zip(named, flat, strict=True):
            owners.setdefault(json.dumps(one.get(key)), []).append(title)
        values = ", ".join(f"{_word(json.loads(value))} ({_some(titled)})" for value, titled in owners.items())
        found.append(f"{key} differs: {values}")
    for title, experiment in zip(named, experiments, strict=True):
        if experiment["status"] != "completed":
            reason = f" ({experiment['error']})" if experiment["error"] else ""
            found.append(f"{title} is {experiment['status']}{reason}: {_how_far(experiment)}")
    return found


def _some(titles: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(titles) - NAMED
    return ", ".join(titles[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _how_far(experiment: Json) -> str:
    if experiment["rounds"]:
        return "its last evaluation is shown"
    return "nothing of it was evaluated" if has_ended(ExperimentStatus(experiment["status"])) else "not evaluated yet"


def floors(experiments: Sequence[Json]) -> list[tuple[str, str, int, Json]]:
    """What needs no training at all: key, label (with what differs between the experiments), seed and metrics."""
    several = len({experiment["dataset"] for experiment in experiments}) > 1
    fitted = len({_proxy_epochs(experiment) for experiment in experiments}) > 1
    found: list[tuple[str, str, int, Json]] = []
    for experiment in experiments:
        place = f" on {experiment['dataset']}" if several else ""
        for key, label in FLOORS.items():
            proxy = f", {_proxy_epochs(experiment)} proxy epochs" if fitted and key == "untrained_encoder" else ""
            if key in (experiment["floors"] or {}):
                metrics = experiment["floors"][key]
                found.append((key, f"{label}{proxy}{place}", experiment["spec"]["seed"], metrics))
    return found


def _proxy_epochs(experiment: Json) -> int:
    """The benchmark's proxy is fitted for longer than the others', and so is the one of its floor."""
    return experiment["spec"]["proxy"]["full_epochs" if experiment["arm"] == "full" else "epochs"]


def _label(experiment: Json, rivals: Sequence[Json]) -> str:
    """The arm, and what is different about this group of it."""
    differing = _differing([_flatten(rival["spec"]) for rival in rivals], REPEATED)
    own = _flatten(experiment["spec"])
    words = [f"{key} {_word(own.get(key))}" for key in differing[:NAMED]]
    if len(differing) > NAMED:
        words.append(f"… ({experiment['name']})")
    return ", ".join([experiment["arm"], *words])


def _differing(flat: Sequence[Json], free: Sequence[str]) -> list[str]:
    """The keys that have more than one value."""
    keys = sorted({key for one in flat for key in one} - set(free))
    return [key for key in keys if len({json.dumps(one.get(key)) for one in flat}) > 1]


def _word(value: Any) -> str:
    return "none" if value is None else str(value)


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


def _row(title: str, experiment: Json) -> list[str]:
    status, done = experiment["status"], f"{len(experiment['rounds'])}/{experiment['rounds_total']}"
    start = [title, coloured(status) if status == "completed" else f"{coloured(status)} {done}"]
    if not experiment["rounds"]:
        return [*start, *[""] * (len(COLUMNS) - len(start))]
    last = experiment["rounds"][-1]
    spent = [count(last["samples"]), count(last["visits"]), duration(last["total_seconds"])]
    return [*start, *spent, *_scores(last["metrics"])]


def _spread(group: Group) -> list[str]:
    """Mean and standard deviation over seeds, of the last evaluations."""
    last = [experiment["rounds"][-1]["metrics"] for experiment in group.experiments]
    cells: list[str] = []
    for name in ("f1", "macro_f1", "auroc"):
        values = [metrics[name] for metrics in last if metrics.get(name) is not None]
        enough = len(values) > 1
        cells.append(f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}" if enough else "")
    return [f"{plain(group.label)}, {group.size}: mean ± sd", *[""] * (len(COLUMNS) - 4), *cells]


def _floor_rows(experiments: Sequence[Json]) -> Iterable[list[str]]:
    """Floors once each, since arms share them; where seeds have others, each says whose it is."""
    by_label: dict[str, dict[tuple[str, ...], int]] = {}
    for _, label, seed, metrics in floors(experiments):
        by_label.setdefault(label, {}).setdefault(tuple(_scores(metrics)), seed)
    for label, found in by_label.items():
        for cells, seed in found.items():
            whose = f", seed {seed}" if len(found) > 1 else ""
            yield [f"[dim]{label}{whose}[/dim]", *[""] * (len(COLUMNS) - 4), *cells]


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
