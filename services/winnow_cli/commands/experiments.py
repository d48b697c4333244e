"""`winnow run`, `watch`, `list`, `pause`, `resume`, `cancel`, `remove`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from winnow.client import ApiProblem, Client
from winnow.domain import ExperimentSpec, ExperimentStatus
from winnow_cli import files
from winnow_cli.hearing import hear
from winnow_cli.live import follow, reasons, wait
from winnow_cli.naming import id_of, ids_of, there
from winnow_cli.options import AsJson, Named, StateDir, UnderWay, Url, Yes, connect
from winnow_cli.ordering import give, removed, require_consent
from winnow_cli.output import aside, coloured, console, count, plain, print_json, print_line, print_table, score
from winnow_cli.report import COLUMNS, gather, headline, rows

Json = dict[str, Any]
LIST_COLUMNS = ["id", "~name", "~dataset", "arm", "status", ">rounds", ">samples", ">visits", ">F1"]
LIST_SPARE = [">visits", "~dataset", "arm", ">samples"]
"""What a narrow terminal goes without, in this order."""


def run(
    spec: Annotated[Path, typer.Argument(help="YAML or JSON; docs/spec.md lists the keys, examples/ has some.")],
    dataset: Annotated[str | None, typer.Option(help="Run on this dataset instead of the spec's.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Run this arm instead of the spec's; may be repeated.")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Run with this seed instead of the spec's; may be repeated.")
    ] = None,
    detach: Annotated[bool, typer.Option(help="Begin, and return at once.")] = False,
    url: Url = None,
    state_dir: StateDir = None,
    json: AsJson = False,
) -> None:
    """Begin the experiments of a spec and follow them. Ctrl-C detaches; they go on."""
    document = files.read(spec)
    given = {"dataset": dataset, "arms": arm, "seeds": seed}
    document |= {key: value for key, value in given.items() if value}
    specs = files.experiments(document, str(spec))
    with connect(url, state_dir) as client:
        views = _begin_all(client, specs)
        ids = [view["id"] for view in views]
        if not (json and detach):
            for view in views:
                (console if detach else aside).print(f"{view['name']}: {view['id']}")
        if json:
            views = views if detach else wait(client, ids)
            print_json(views)
            _exit_if_failed(client, views)
        elif not detach:
            watch_until_the_end(client, ids)


def watch(ids: UnderWay = None, url: Url = None, state_dir: StateDir = None, json: AsJson = False) -> None:
    """Follow experiments until each has ended or is paused. --json: their events, a line each."""
    with connect(url, state_dir) as client:
        wanted = ids_of(client, ids or []) or _under_way(client)
        if not wanted:
            aside.print("no experiment is under way; `winnow run SPEC.yaml` begins one")
        elif json:
            for id, event in hear(client, wanted):
                print_line({"experiment": id, "id": event.id, "type": event.type, "data": event.data})
            _exit_if_failed(client, there(client, wanted))
        else:
            watch_until_the_end(client, wanted)


def list_all(
    status: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    url: Url = None,
    state_dir: StateDir = None,
    json: AsJson = False,
) -> None:
    """All experiments, newest first."""
    with connect(url, state_dir) as client:
        found = list(client.experiments(status=status))
    if json:
        print_json(found)
        return
    print_table(LIST_COLUMNS, map(_list_row, found), spare=LIST_SPARE)


def pause(ids: Named, url: Url = None, state_dir: StateDir = None, json: AsJson = False) -> None:
    """Pause: training stops within one step and keeps a checkpoint."""
    with connect(url, state_dir) as client:
        _order(client, client.pause, ids, json)


def resume(ids: Named, url: Url = None, state_dir: StateDir = None, json: AsJson = False) -> None:
    """Go on after a pause, or from the last checkpoint of a round that failed."""
    with connect(url, state_dir) as client:
        _order(client, client.resume, ids, json)


def cancel(ids: Named, url: Url = None, state_dir: StateDir = None, json: AsJson = False) -> None:
    """End experiments for good. Results so far stay."""
    with connect(url, state_dir) as client:
        _order(client, client.cancel, ids, json)


def remove(ids: Named, yes: Yes = False, url: Url = None, state_dir: StateDir = None, json: AsJson = False) -> None:
    """Forget experiments that have ended, for good: picks, metrics, encoders and every file of theirs.

    Where one is not known, none is removed; one that is under way keeps none from the others.
    """
    with connect(url, state_dir) as client:
        views = {id: client.experiment(id) for id in ids_of(client, ids)}
        require_consent(map(_to_go, views.values()), yes=yes, as_json=json)

        def act(id: str) -> Json:
            client.remove_experiment(id)
            return removed(views[id])

        give(act, "experiment", views, json)


def watch_until_the_end(client: Client, ids: list[str]) -> None:
    """Follow, and end with the table; Ctrl-C detaches. Exit code 1 when an experiment failed."""
    try:
        follow(client, ids)
    except KeyboardInterrupt:
        aside.print(f"\ndetached; the experiments go on. winnow watch {' '.join(ids)}")
        return
    views = there(client, ids)
    if not (left := [view["id"] for view in views]):
        return
    console.print()
    print_table(COLUMNS, rows(gather(client, left)["experiments"]))
    console.print(f"[dim]winnow compare {' '.join(left)}[/dim]", soft_wrap=True)
    paused = [view["id"] for view in views if view["status"] == ExperimentStatus.PAUSED]
    if paused:
        console.print(f"[dim]winnow resume {' '.join(paused)}[/dim]", soft_wrap=True)
    _exit_if_failed(client, views)


def _exit_if_failed(client: Client, views: list[Json]) -> None:
    """Say why experiments failed, with the reason of every attempt. Exit code 1 when there are any."""
    for view in views:
        if view["status"] == "failed":
            aside.print(f"[red]{view['name']} failed:[/red] {plain(view['error'] or '')}", soft_wrap=True)
            for reason in reasons(client, view["id"]):
                aside.print(f"  {plain(reason)}", soft_wrap=True)
            aside.print(f"  once the reason is mended: winnow resume {view['id']}", soft_wrap=True)
            aside.print("  where the spec is the reason, begin another")
    if any(view["status"] == "failed" for view in views):
        raise typer.Exit(1)


def _begin_all(client: Client, specs: list[ExperimentSpec]) -> list[Json]:
    """All of them or none: where one is refused, those that had begun are cancelled, and that is said."""
    begun: list[Json] = []
    for spec in specs:
        try:
            begun.append(client.create_experiment(spec))
        except ApiProblem:
            for view in begun:
                client.cancel(view["id"])
            others = f"; cancelled, as they had begun: {', '.join(view['name'] for view in begun)}" if begun else ""
            aside.print(f"{spec.name} is refused{others}", soft_wrap=True)
            raise
        except KeyboardInterrupt:
            _tell_begun(begun, spec.name)
            raise
    return begun


def _tell_begun(begun: list[Json], asked: str) -> None:
    """What goes on after Ctrl-C. The call that it broke off may have arrived."""
    if begun:
        words = f"begun, and going on: {', '.join(view['name'] for view in begun)}; perhaps {asked}, too"
    else:
        words = f"nothing was begun, but perhaps {asked}"
    aside.print(f"\nstopped; {words}: winnow list shows it", soft_wrap=True)


def _under_way(client: Client) -> list[str]:
    """Those that have not ended, oldest first."""
    return [view["id"] for view in client.experiments() if not view["ended_at"]][::-1]


def _to_go(view: Json) -> str:
    done = f"{view['rounds_done']} of {view['rounds_total']} rounds done"
    return f"{plain(view['name'])} ({view['id']}): {coloured(view['status'])}, {done}"


def _list_row(view: Json) -> list[str]:
    latest = view["latest"] or {}
    spent = [count(latest.get("samples")), count(latest.get("visits")), score(headline(latest.get("metrics", {})))]
    done = f"{view['rounds_done']}/{view['rounds_total']}"
    return [view["id"], view["name"], view["dataset"], view["arm"], coloured(view["status"]), done, *spent]


def _order(client: Client, order: Callable[[str], Json], called: list[str], json: bool) -> None:
    give(lambda one: order(id_of(client, one)), "experiment", called, json)
