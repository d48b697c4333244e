"""Follows experiments until they end: a live table on a terminal, a line for each step of the way elsewhere."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live

from winnow.client import ApiProblem, Client
from winnow.domain import ExperimentStatus, RoundStatus, is_final
from winnow_cli.output import coloured, console, count, duration, fit_table, note, plain, score
from winnow_cli.report import headline, titles

LOOK_SECONDS = 1.0
COLUMNS = ["~experiment", "status", ">rounds", "~phase", "progress", ">images/s", ">left", ">samples", ">visits", ">F1"]
SPARE = [">images/s", ">visits", ">samples", "progress", ">left"]
"""What a narrow terminal goes without, in this order."""
BAR = 10
LOOKS_UNTIL_SAID = 10
"""At one and the same wait: every round waits for a moment."""
WAITS_FOR: dict[str, str] = {RoundStatus.QUEUED: "a trainer", RoundStatus.TRAINED: "its picks"}
Json = dict[str, Any]


def follow(
    client: Client, ids: Sequence[str], *, ended: Callable[[], bool] = lambda: False, screen: Console = console
) -> list[Json]:
    """Show experiments until each has ended or is paused, or until `ended` says so. Their last views.

    Raises KeyboardInterrupt on Ctrl-C.
    """
    looks = _looks(client, ids, ended)
    if not screen.is_terminal:
        return _follow_by_lines(looks, screen)
    views: list[Json] = []
    with Live(console=screen, refresh_per_second=4, transient=False) as live:
        for views in looks:
            shown = [_row(title, view) for title, view in zip(titles(views), views, strict=True)]
            live.update(fit_table(screen, COLUMNS, shown, spare=SPARE))
    return views


def wait(client: Client, ids: Sequence[str]) -> list[Json]:
    """Follow without a word."""
    *_, views = _looks(client, ids, lambda: False)
    return views


def _looks(client: Client, ids: Sequence[str], ended: Callable[[], bool]) -> Iterator[list[Json]]:
    """One look a second at all experiments; those in a final state are not asked for again, those removed left out."""
    seen: dict[str, Json] = {}
    left = list(ids)
    pause = threading.Event()
    while True:
        for id in list(left):
            if id not in seen or not is_final(ExperimentStatus(seen[id]["status"])):
                try:
                    seen[id] = client.experiment(id)
                except ApiProblem as problem:
                    if not problem.is_not_found or id not in seen:
                        raise
                    left.remove(id)
                    note(f"{seen[id]['name']} ({id}) was removed")
        views = [seen[id] for id in left]
        yield views
        if all(_is_at_rest(view) for view in views) or ended():
            return
        pause.wait(LOOK_SECONDS)


def reasons(client: Client, id: str) -> list[str]:
    """Why each attempt at an experiment's newest round came to nothing, a line each."""
    newest = [row["number"] for row in client.rounds(id)][-1:]
    ended = [one for number in newest for one in client.round(id, number)["attempts"]]
    return [f"attempt {one['attempt']} {one['cause']}: {one['error'] or 'no reason given'}" for one in ended]


def _is_at_rest(view: Json) -> bool:
    return ExperimentStatus(view["status"]).is_at_rest


def _follow_by_lines(looks: Iterator[list[Json]], screen: Console) -> list[Json]:
    """A line when something has changed, or is long in coming."""
    said: dict[str, object] = {}
    waits: dict[str, tuple[str, int]] = {}
    views: list[Json] = []
    for views in looks:
        for view in views:
            id, mark, awaited = view["id"], (view["status"], view["rounds_done"], _reason(view)), _awaited(view)
            before, times = waits.get(id, ("", 0))
            times = times + 1 if awaited and awaited == before else 0
            waits[id] = awaited, times
            if said.get(id) != mark or times == LOOKS_UNTIL_SAID:
                said[id] = mark
                screen.print(_line(view, awaited if times >= LOOKS_UNTIL_SAID else ""))
    return views


def _line(view: Json, awaited: str) -> str:
    latest = view["latest"] or {}
    words = [f"{view['name']}: {view['status']}, {view['rounds_done']} of {view['rounds_total']} rounds done"]
    if latest:
        f1 = score(headline(latest["metrics"]))
        words.append(f"{count(latest['samples'])} samples, {count(latest['visits'])} visits, F1 {f1}")
    return "; ".join([*words, *filter(None, [awaited, plain(_reason(view))])])


def _awaited(view: Json) -> str:
    """What the round of an experiment that goes on waits for."""
    current = view["current_round"] or {}
    if not ExperimentStatus(view["status"]).lets_work or current.get("status") not in WAITS_FOR:
        return ""
    what = "another try" if current["error"] else WAITS_FOR[current["status"]]
    return f"round {current['number']} waits for {what}"


def _reason(view: Json) -> str:
    """Why an experiment ended, or why its round was given back and waits."""
    return view["error"] or (view["current_round"] or {}).get("error") or ""


def _row(title: str, view: Json) -> list[str]:
    current, latest = view["current_round"] or {}, view["latest"] or {}
    progress = current.get("progress") or {}
    working = current.get("status") in ("training", "selecting") and not _is_at_rest(view)
    waits = ": ".join(filter(None, [_awaited(view), plain(_reason(view))]))
    rate = progress.get("images_per_second")
    return [
        title,
        coloured(view["status"]),
        f"{view['rounds_done']}/{view['rounds_total']}",
        f"round {current['number']}, {_phase(current, progress)}" if working else waits,
        _bar(progress) if working else " " * BAR,
        f"{rate:,.0f}" if working and rate else "",
        duration(progress.get("seconds_left")) if working else "",
        count((current if working else latest).get("samples")),
        count(latest.get("visits")),
        score(headline(latest.get("metrics", {}))),
    ]


def _phase(current: Json, progress: Json) -> str:
    if current["status"] == "selecting":
        return "pick"
    phase = str(progress.get("phase", "start"))
    if phase == "train" and progress.get("epochs"):
        return f"epoch {min(progress.get('epoch', 0) + 1, progress['epochs'])}/{progress['epochs']}"
    return phase


def _bar(progress: Json) -> str:
    """How far the phase is."""
    share = _share(progress)
    if share is None:
        return " " * BAR
    full = round(share * BAR)
    return f"[cyan]{'━' * full}[/cyan][dim]{'━' * (BAR - full)}[/dim]"


def _share(progress: Json) -> float | None:
    steps, step = progress.get("steps"), progress.get("step") or 0
    if not steps:
        return None
    epochs, epoch = progress.get("epochs"), progress.get("epoch") or 0
    within = min(step / steps, 1.0)
    return min((epoch + within) / epochs, 1.0) if epochs else within
