"""`winnow dataset`: add, list, show, remove."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from rich.live import Live

from winnow.client import ApiProblem, Client
from winnow.csv_lines import csv_lines
from winnow.domain import DatasetSpec, DatasetStatus, Role, SampleRow
from winnow.errors import InvalidInput, TrainingFailed
from winnow_cli import files
from winnow_cli.options import AsJson, StateDir, Url, Yes, connect
from winnow_cli.ordering import give, removed, require_consent
from winnow_cli.output import (
    aside,
    coloured,
    console,
    count,
    make_table,
    note,
    plain,
    print_json,
    print_lines,
    print_table,
)
from winnow_cli.sources import sources_of

app = typer.Typer(help="Datasets: patches, packed once, each with one role.", no_args_is_help=True)
Json = dict[str, Any]
SHOWN = 10
"""Skipped files that are named."""
PAIRS = 2
"""Equal patches that a note names."""
PAGE = 5000
"""Samples that are written at a time: there may be millions."""
SOURCES_HELP = (
    "Folder with a sub-folder for each class, manifest (.csv, .tsv, .parquet, .pq, or a folder that holds one by that "
    "name), .npz, or synthetic[:PATCHES]. Put a role before it where it is not the pool's: test=/data/CRC-VAL-HE-7K."
)
SPEC_FILES = (".yaml", ".yml", ".json")
WRITTEN_IN_SPEC = ("size", "labelled", "by", "held_out", "column", "split", "on_unreadable")
"""Options that a spec file leaves nothing to say to."""


@app.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the dataset, or a YAML or JSON file with the whole spec.")],
    sources: Annotated[list[str] | None, typer.Argument(metavar="[SOURCE]...", help=SOURCES_HELP)] = None,
    size: Annotated[int, typer.Option(help="Pixels a side; patches of other sizes are resized and counted.")] = 224,
    labelled: Annotated[int, typer.Option(help="Draw this many labelled patches from the pool.", min=0)] = 0,
    by: Annotated[
        str, typer.Option(help="How to draw them: random, or stratum (each label in its proportion).")
    ] = "random",
    held_out: Annotated[int, typer.Option("--test", help="Draw this many test patches, in whole groups.", min=0)] = 0,
    column: Annotated[
        list[str] | None, typer.Option(help="Manifest: FIELD=ITS-NAME for path, label, group or role.")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="A manifest's or .npz's split: ITS-NAME=ROLE.")] = None,
    on_unreadable: Annotated[str, typer.Option(help="What broken files mean: fail or skip.")] = "fail",
    wait: Annotated[bool, typer.Option(help="Wait until it is ingested.")] = True,
    url: Url = None,
    state_dir: StateDir = None,
    json: AsJson = False,
) -> None:
    """Take patches in: decode, resize, pack, count, assign roles."""
    drawing = [option for option, number in (("--test", held_out), ("--labelled", labelled)) if number]
    if Path(name).suffix in SPEC_FILES:
        _refuse_what_it_says_itself(context, name, sources)
        spec = files.dataset(files.read(Path(name)), name)
    elif sources:
        if not labelled and _was_typed(context, "by"):
            raise InvalidInput("--by", "says how --labelled draws; say --labelled NUMBER, too")
        columns, splits = files.pairs(column, "--column"), files.pairs(split, "--split")
        document: Json = {
            "name": name,
            "image_size": size,
            "on_unreadable": on_unreadable,
            "sources": sources_of(sources, columns, splits, tell),
            "draws": [*draw("test", held_out, "random"), *draw("labelled", labelled, by)],
        }
        spec = files.parse(DatasetSpec, document, name)
    else:
        raise InvalidInput("SOURCE", f"say where the patches of {name!r} are, or name a YAML file with the spec")
    with connect(url, state_dir) as client:
        looks = True
        try:
            with _screen(json) as say:
                say(f"{spec.name}: the coordinator looks through the sources")
                view = _create(client, spec, drawing)
            looks = False
            view = ingest(client, spec.name, quiet=json) if wait else view
        except KeyboardInterrupt:
            goes_on = "the coordinator looks on, and adds it if it can" if looks else "ingesting goes on"
            aside.print(f"\ndetached; {goes_on}. winnow dataset show {spec.name}", soft_wrap=True)
            return
    print_json(view) if json else show_one(view)
    warn_of_leaks(view)


@app.command("list")
def list_all(url: Url = None, state_dir: StateDir = None, json: AsJson = False) -> None:
    """All datasets, newest first."""
    with connect(url, state_dir) as client:
        found = list(client.datasets())
    if json:
        print_json(found)
        return
    cells = ([view["name"], coloured(view["status"]), count(view["samples"]), view["image_size"]] for view in found)
    print_table(["dataset", "status", ">patches", ">pixels"], cells)


@app.command()
def show(name: str, url: Url = None, state_dir: StateDir = None, json: AsJson = False) -> None:
    """One dataset: patches by role and label, and what ingesting found."""
    with connect(url, state_dir) as client:
        view = client.dataset(name)
    print_json(view) if json else show_one(view)
    warn_of_leaks(view)


@app.command()
def skipped(name: str, url: Url = None, state_dir: StateDir = None, json: AsJson = False) -> None:
    """The files of a dataset that could not be read, with the reason; as CSV where no terminal shows them."""
    with connect(url, state_dir) as client:
        found = client.skipped(name)
    if json:
        print_json(found)
        return
    if console.is_terminal:
        for one in found:
            console.print(f"{plain(one['path'])}: {plain(one['reason'])}", soft_wrap=True)
        return
    sys.stdout.write(csv_lines([("path", "reason"), *((one["path"], one["reason"]) for one in found)]))


@app.command()
def samples(
    name: str,
    role: Annotated[Role | None, typer.Option(help="Those of one role alone.")] = None,
    url: Url = None,
    state_dir: StateDir = None,
    json: AsJson = False,
) -> None:
    """The patches of a dataset by idx, as CSV: which are in the pool, labelled, held out. --json: an object a line."""
    with connect(url, state_dir) as client:
        found = client.samples(name, role=role)
        if not json:
            sys.stdout.write(csv_lines([SampleRow._fields]))
        while some := list(islice(found, PAGE)):
            if json:
                print_lines(some)
            else:
                sys.stdout.write(csv_lines([one[field] for field in SampleRow._fields] for one in some))


@app.command()
def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Datasets; `winnow dataset list` shows them.")],
    yes: Yes = False,
    url: Url = None,
    state_dir: StateDir = None,
    json: AsJson = False,
) -> None:
    """Forget datasets that no experiment is on, for good. The files that they were taken in from stay."""
    with connect(url, state_dir) as client:
        views = {view["name"]: view for view in map(client.dataset, names)}
        to_go = (f"{view['name']}: {count(view['samples'])} patches" for view in views.values())
        require_consent(to_go, yes=yes, as_json=json)

        def act(name: str) -> Json:
            client.remove_dataset(views[name]["id"])
            return removed(views[name])

        give(act, "dataset", views, json)


def tell(text: str) -> None:
    """What was guessed, and is well to know."""
    aside.print(plain(text), soft_wrap=True)


def draw(role: Literal["test", "labelled"], number: int, by: str) -> list[Json]:
    """A draw from the pool, if there is to be one."""
    return [{"role": role, "count": number, "by": by}] if number else []


def ingest(client: Client, name: str, *, quiet: bool = False, ended: Callable[[], bool] = lambda: False) -> Json:
    """Wait for a dataset, or until `ended` says so, and show how far it is. Its last view.

    Raises TrainingFailed with the reason when it fails, or is removed.
    """
    view: Json = {}
    with _screen(quiet) as show:
        reason = None
        for view in client.wait_for_dataset(name):
            show(_progress(view))
            is_tried_again = view["status"] == DatasetStatus.QUEUED and view["error"] not in (None, reason)
            if is_tried_again and not console.is_terminal:  # nobody sees the line that changes
                tell(_progress(view))
            reason = view["error"]
            if ended():
                return view
    if view["status"] != DatasetStatus.READY:
        reason = view["error"] if view["status"] == DatasetStatus.FAILED else "somebody removes it"
        raise TrainingFailed(f"dataset {name} could not be ingested: {reason}")
    return view


def _create(client: Client, spec: DatasetSpec, drawing: Sequence[str]) -> Json:
    """Have a dataset ingested. Raises InvalidInput naming the option of `drawing` whose draw is too large."""
    try:
        return client.create_dataset(spec)
    except ApiProblem as refused:
        for number, option in enumerate(drawing):
            if refused.problem.get("field") == f"draws.{number}.count":
                raise InvalidInput(option, refused.problem["errors"][0]["reason"]) from None
        raise


@contextmanager
def _screen(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Shows a line in place of the one before; nothing where nobody looks."""
    if quiet or not console.is_terminal:
        yield lambda text: None
        return
    with Live(console=console, transient=True) as screen:
        yield screen.update


def show_one(view: Json) -> None:
    """A dataset as a table of patches by role and label, and its report."""
    console.print(f"{view['name']}: {coloured(view['status'])}, {view['image_size']} pixels a side")
    if view["error"]:
        console.print(f"[red]{plain(view['error'])}[/red]")
    labels = sorted({label for by_label in view["counts"].values() for label in by_label})
    cells = (
        [role, *(count(by_label.get(label, 0)) for label in labels), count(sum(by_label.values()))]
        for role, by_label in view["counts"].items()
    )
    if labels:
        console.print(make_table(["role", *(f">{label}" for label in labels), ">all"], cells))
    for words in _findings(view["name"], view["report"]):
        console.print(f"[dim]{plain(words)}[/dim]", soft_wrap=True)


def warn_of_leaks(view: Json) -> None:
    """A note where patches of two roles are equal: no error, and what is measured on them may mean nothing."""
    found = view["report"].get("duplicates", {})
    if number := found.get("across_roles", 0):
        pairs = "; ".join(" = ".join(pair) for pair in found["examples"][:PAIRS])
        leaked = f"{count(number)} of {count(view['report']['packed'])} patches have the pixels of one in another role"
        note(f"{view['name']}: {leaked}, e.g. {pairs}. Scores on patches that were trained on mean little")


def _findings(name: str, report: Json) -> Iterator[str]:
    """What an ingest found and did, a line each, without what it found nothing of."""
    for key, value in report.items():
        if key == "skipped":
            yield from _skipped(name, value, count_skipped(report))
        elif key == "skipped_count":
            continue
        elif key == "draws":
            yield from map(_draw, value)
        elif words := _words(value):
            yield f"{key}: {words}"


def count_skipped(report: Json) -> int:
    """How many files could not be read; the report of an older ingest names all of them."""
    return report.get("skipped_count", len(report.get("skipped", [])))


def _skipped(name: str, files: Sequence[Json], number: int) -> Iterator[str]:
    if files:
        yield f"skipped: {count(number)}"
    yield from (f"  {one['path']}: {one['reason']}" for one in files[:SHOWN])
    if number > SHOWN:
        yield f"  and {count(number - SHOWN)} more, which winnow dataset skipped {name} lists"


def _draw(made: Json) -> str:
    groups = f" in {count(made['groups'])} whole groups" if made["whole_groups"] else ""
    source = "" if made["source"] is None else f" of source {made['source']}"
    whose = f"{made['from_role']}{source} to {made['role']}{groups}"
    return f"drawn: {count(made['taken'])} from {whose}, by {made['by']}, seed {made['seed']}"


def _words(value: Any) -> str:
    if isinstance(value, dict):
        said = ((key, _words(one)) for key, one in cast("Json", value).items())
        return ", ".join(f"{key} {words}" for key, words in said if words)
    if isinstance(value, list):  # patches that are equal, or several sets of them
        several = cast("list[Any]", value)
        return ("; " if any(isinstance(one, list) for one in several) else " = ").join(map(_words, several))
    return "" if not value else count(value) if isinstance(value, int) else str(value)


def _was_typed(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name != "DEFAULT"


def _refuse_what_it_says_itself(context: typer.Context, file: str, sources: list[str] | None) -> None:
    options = {one.name: one.opts[0] for one in context.command.params}
    typed = (options[name] for name in WRITTEN_IN_SPEC if _was_typed(context, name))
    given = [*typed, *(["SOURCE"] if sources else [])]
    if given:
        raise InvalidInput(", ".join(given), f"{file} is a spec file, which says this itself; write it there")


def _progress(view: Json) -> str:
    progress = view["progress"]
    step, steps = progress.get("step"), progress.get("steps")
    waits = "starts" if view["status"] == DatasetStatus.INGESTING else "waits for a trainer"
    if view["status"] == DatasetStatus.QUEUED and view["error"]:
        waits = f"waits to be tried again: {plain(view['error'])}"
    if view["status"] == DatasetStatus.REMOVING:
        return f"{view['name']}: {view['status']}"
    done = "patches stored" if progress.get("phase") == "store" else "patches"
    how_far = f"{count(step)} of {count(steps)} {done}" if steps else waits
    return f"{view['name']}: {view['status']}, {how_far}"
