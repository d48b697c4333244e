"""F1 against samples and against image visits: the two costs that an active sampler is meant to save."""

from collections import Counter
from collections.abc import Sequence
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from winnow_cli.report import FLOORS, floors, grouped, headline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Json = dict[str, Any]
# The palettes of Okabe and Ito, and of Tol, which colour-blind readers can tell apart. An arm's first group has the
# arm's own colour.
COLOURS = {
    "entropy": "#D55E00",
    "margin": "#E69F00",
    "least_confidence": "#CC79A7",
    "k_center": "#0072B2",
    "uncertain_diverse": "#882255",
    "badge": "#332288",
    "typiclust": "#44AA99",
    "prob_cover": "#999933",
    "sas": "#AA4499",
    "random": "#009E73",
    "full": "#000000",
}
OTHERS = tuple(product(("-", "--", ":", "-."), ("#56B4E9", "#F0E442", "#999999")))
"""Line and colour of an arm's further groups."""
MARKERS = dict(zip(COLOURS, "o^vsPX<>pD*", strict=True))


def draw(report: Json, path: Path) -> None:
    """Write the picture as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    experiments: Sequence[Json] = [one for one in report["experiments"] if one["rounds"]]
    for axes, key, label in ((left, "samples", "samples trained on"), (right, "visits", "image visits")):
        _curves(axes, experiments, key)
        _floors(axes, experiments)
        axes.set_xlabel(label)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(_thousands)
        axes.xaxis.set_minor_formatter(_thousands)
        axes.tick_params(axis="x", which="both", labelsize=8)
        axes.grid(visible=True, which="major", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel(_score_name(experiments))
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    datasets = sorted({one["dataset"] for one in experiments})
    figure.suptitle(f"{', '.join(datasets)}: {_score_name(experiments)} on held-out patches", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def _curves(axes: "Axes", experiments: Sequence[Json], key: str) -> None:
    """A line for each group: the mean over seeds, and each seed's own thinly behind it."""
    others = cycle(OTHERS)
    for group in grouped(experiments):
        arm, members = group.arm, group.experiments
        line, colour = ("-", COLOURS[arm]) if group.first else next(others)
        for experiment in members if len(members) > 1 else []:
            axes.plot(*_points(experiment, key), color=colour, linewidth=0.8, alpha=0.35)
        places, means = _mean(members, key)
        name = f"{group.label}, mean of {group.size}" if len(members) > 1 else group.label
        size = 9 if arm == "full" else 5
        (drawn,) = axes.plot(places, means, label=name, linewidth=1.8, color=colour, linestyle=line)
        drawn.set(marker=MARKERS[arm], markersize=size)


def _points(experiment: Json, key: str) -> tuple[list[int], list[float]]:
    """Of `full`, which never grows, only the last evaluation stands over its samples."""
    rounds = [row for row in experiment["rounds"] if headline(row["metrics"]) is not None]
    if key == "samples" and experiment["arm"] == "full":
        rounds = rounds[-1:]
    return [row[key] for row in rounds], [float(headline(row["metrics"]) or 0.0) for row in rounds]


def _mean(group: Sequence[Json], key: str) -> tuple[list[int], list[float]]:
    """Mean over the experiments of a group, round by round, as far as all have come."""
    curves = [_points(experiment, key) for experiment in group]
    shortest = min(len(places) for places, _ in curves)
    means = [sum(values[i] for _, values in curves) / len(curves) for i in range(shortest)]
    return curves[0][0][:shortest], means


def _floors(axes: "Axes", experiments: Sequence[Json]) -> None:
    """What needs no training at all, as lines across: the mean over seeds; further ones of a kind are sparser."""
    dashes = dict(zip(FLOORS, (1, 5), strict=True))
    drawn: Counter[str] = Counter()
    values: dict[tuple[str, str], list[float]] = {}
    for key, label, _, metrics in floors(experiments):
        if (value := headline(metrics)) is not None:
            values.setdefault((key, label), []).append(value)
    for (key, label), found in values.items():
        mean, gap = sum(found) / len(found), 2 + 4 * drawn[key]
        axes.axhline(mean, color="0.45", linestyle=(0, (dashes[key], gap)), linewidth=1, label=label)
        drawn[key] += 1


def _score_name(experiments: Sequence[Json]) -> str:
    positive = sorted({str(one["spec"].get("positive_class")) for one in experiments})
    return "macro F1" if positive == ["None"] else f"F1 of {', '.join(positive)}"


def _thousands(value: float, position: int | None = None) -> str:
    """12,000 as 12k. Of the minor ticks 2 and 5 alone are named, so that labels do not run together."""
    lead = f"{value:e}"[0]
    if lead not in "125":
        return ""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"
