"""`winnow select`: the selection library from the shell. Needs the bare install and the `select` extra alone."""

import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from winnow import embeddings
from winnow.csv_lines import csv_lines
from winnow.embeddings import Embeddings, Survey
from winnow.errors import InvalidInput
from winnow.selection import NearDuplicates, Selection, requirements, strategies
from winnow.selection import select as pick
from winnow_cli.output import aside, console, note, plain, print_json
from winnow_cli.rules import Rules, read_selected

Json = dict[str, Any]
Given = list[Path]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
_RULES = "Constraints"


def select(
    files: Annotated[
        Given,
        typer.Argument(metavar="EMBEDDINGS...", help=".npy, HDF5 or Parquet files, or folders of them: one pool."),
    ],
    strategy: Annotated[str, typer.Option(help=f"One of {', '.join(strategies())}.")] = "k_center",
    budget: Annotated[int, typer.Option(help="How many to pick.")] = 1000,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The CSV to write the picks to.")] = None,
    selected: Annotated[
        Path | None,
        typer.Option(
            help="What is selected already, the centres: its embeddings, or rows of the pool, given as for --exclude, "
            "which are not picked again."
        ),
    ] = None,
    proba: Annotated[Path | None, typer.Option(help="Probabilities (n, classes) of the pool's rows.")] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="The group of each row: a file with one a line or .npy, `file` for the stem of each row's file, or "
            "`column:NAME` of the pool's Parquet.",
            rich_help_panel=_RULES,
        ),
    ] = None,
    cap: Annotated[
        list[str] | None,
        typer.Option(
            help="N: the most picks of any group. GROUP=N: of that one. May be repeated.", rich_help_panel=_RULES
        ),
    ] = None,
    quota: Annotated[
        list[str] | None,
        typer.Option(help="GROUP=N: the fewest picks of a group; may be repeated.", rich_help_panel=_RULES),
    ] = None,
    exact_quota: Annotated[
        bool, typer.Option("--exact-quota", help="A quota is also the most.", rich_help_panel=_RULES)
    ] = False,
    exclude: Annotated[
        Path | None,
        typer.Option(
            help="Rows that are never picked: row numbers, or keys of the pool's Parquet, one a line, as .npy, or in a "
            "CSV this wrote.",
            rich_help_panel=_RULES,
        ),
    ] = None,
    pinned: Annotated[
        Path | None, typer.Option(help="Rows that are picked first, given as for --exclude.", rich_help_panel=_RULES)
    ] = None,
    minimum_distance: Annotated[
        float | None,
        typer.Option(help="L2 distance of each pick to all earlier picks and the centres.", rich_help_panel=_RULES),
    ] = None,
    near_duplicates: Annotated[
        float | None,
        typer.Option(
            help="Set near-duplicates aside first: those of at least this cosine, or of at most this L2 distance.",
            rich_help_panel=_RULES,
        ),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="cosine or l2: what --near-duplicates means.", rich_help_panel=_RULES)
    ] = "cosine",
    direction: Annotated[str, typer.Option(help="high or low: the most or the least uncertain.")] = "high",
    seed: Annotated[int, typer.Option(help="The same seed gives the same picks.")] = 0,
    json: AsJson = False,
) -> None:
    """Pick rows from files of embeddings. Ctrl-C stops and keeps the picks so far, which are valid as they are."""
    if direction not in ("high", "low"):
        raise InvalidInput("--direction", f"needs high or low, got {direction!r}")
    if metric not in ("cosine", "l2"):
        raise InvalidInput("--metric", f"needs cosine or l2, got {metric!r}")
    began = time.perf_counter()
    near = None if near_duplicates is None else NearDuplicates(near_duplicates, "l2" if metric == "l2" else "cosine")
    rules = Rules(groups, cap or [], quota or [], exact_quota, exclude, pinned, minimum_distance)
    survey = embeddings.survey(files, name="EMBEDDINGS")
    others = {"--selected": selected, "--proba": proba} | rules.files
    _require_apart(output, {"EMBEDDINGS": [one.path for one in survey.sources]} | _listed(others))
    before = read_selected(selected, survey)
    centers = None if before else selected
    arrays, notes = _read(_reads(strategy, rules, near, proba), survey, before, centers, proba)
    with _stopping() as stopped, _bar(strategy, budget, hidden=json) as advance:
        picked = _run(
            strategy,
            budget=budget,
            n=survey.rows,
            seed=seed,
            direction=direction,
            constraints=rules.constraints(survey, before),
            near_duplicates=near,
            on_progress=advance,
            should_stop=stopped.is_set,
            **arrays,
        )
    report = _report(strategy, budget, picked, [*notes, *picked.notes], time.perf_counter() - began)
    if not report["picked"]:
        _end_without_picks(report, output, as_json=json)
    origins = embeddings.origins_of(survey.parts(), report["indices"])
    table = embeddings.tabulate(report["indices"], report["scores"], origins)
    if output is not None:
        write_csv(output, table)
    _show(report, table, output, as_json=json)
    if report["status"] == "stopped":
        raise typer.Exit(130)


def write_csv(path: Path, table: dict[str, list[Any]]) -> None:
    """Write picks so that a reader sees all of them or the file that was there before."""
    text = csv_lines([list(table), *zip(*table.values(), strict=True)])
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("x", encoding="utf-8", newline="") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InvalidInput("--output", f"{path} cannot be written ({error.strerror})") from error


def _listed(inputs: Mapping[str, Path | None]) -> dict[str, list[Path]]:
    """The files of each that is given: a folder stands for those in it."""
    return {
        option: embeddings.list_files([path], option)[0] if path.is_dir() else [path]
        for option, path in inputs.items()
        if path is not None
    }


def _require_apart(output: Path | None, inputs: Mapping[str, Sequence[Path]]) -> None:
    """Raises InvalidInput where picks would take the place of what they are made from."""
    if output is None or not output.exists():
        return
    for option, files in inputs.items():
        if any(file.exists() and file.samefile(output) for file in files):
            raise InvalidInput("--output", f"{output} is read as {option}; name another file")


def _reads(strategy: str, rules: Rules, near: NearDuplicates | None, proba: Path | None) -> set[str]:
    """The arrays that the run looks at. Raises InvalidInput for an unknown strategy, and for one that lacks `proba`."""
    try:
        needs = requirements(strategy)
    except ValueError as error:
        raise InvalidInput.of(error) from error
    if "probabilities" in needs.requires and proba is None:
        raise InvalidInput("--proba", f"strategy {strategy} needs the probabilities of each row")
    found = set[str]() if needs.counts_rows else {*needs.requires, *needs.reads}
    if rules.minimum_distance is not None:
        found |= {"pool", "centers"}
    return found | ({"pool"} if near is not None else set())


def _read(
    reads: set[str], survey: Survey, before: list[int], centers: Path | None, proba: Path | None
) -> tuple[Json, list[str]]:
    """The arrays of `reads` that are given, and what was converted. Raises InvalidInput."""
    found: dict[str, Embeddings] = {}
    if "pool" in reads:
        found["pool"] = survey.read()
    if "centers" in reads and centers is not None:
        found["centers"] = embeddings.survey([centers], name="--selected").read()
    if "probabilities" in reads and proba is not None:
        found["probabilities"] = embeddings.survey([proba], name="--proba").read()
    arrays: Json = {name: one.features for name, one in found.items()}
    if "centers" in reads and before:
        arrays["centers"] = found["pool"].features[before]
    return arrays, [f"{name}: {note}" for name, one in found.items() for note in one.notes]


def _run(strategy: str, **given: Any) -> Selection:
    try:
        return pick(strategy, **given)
    except ValueError as error:
        raise InvalidInput.of(error) from error


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; a second one ends the program at once."""
    stopped = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


@contextmanager
def _bar(strategy: str, budget: int, *, hidden: bool) -> Iterator[Any]:
    """A progress bar on the terminal, and what to call with (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=aside, transient=True, disable=hidden or not aside.is_terminal) as bar:
        task = bar.add_task(strategy, total=budget)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _report(strategy: str, budget: int, picked: Selection, notes: list[str], seconds: float) -> Json:
    indices = picked.indices.tolist()
    is_whole = len(indices) == budget
    if indices and not is_whole:
        notes = [*notes, f"stopped after {len(indices)} of {budget} picks, which are valid as they are"]
    return {
        "status": "done" if is_whole else "stopped",
        "strategy": strategy,
        "picked": len(indices),
        "indices": indices,
        "scores": [float(score) for score in picked.scores],
        "radius": picked.radius,
        "seconds": seconds,
        "notes": notes,
    }


def _end_without_picks(report: Json, output: Path | None, *, as_json: bool) -> NoReturn:
    """A file of picks from before is worth more than an empty one."""
    kept = "" if output is None else f"; {output} is as it was"
    words = f"stopped before the first pick{kept}"
    if as_json:
        print_json(report | {"notes": [*report["notes"], words], "output": None})
    else:
        note(words)
    raise typer.Exit(130)


def _show(report: Json, table: dict[str, list[Any]], output: Path | None, *, as_json: bool) -> None:
    if as_json:
        print_json(report | {"output": None if output is None else str(output.absolute())})
        return
    for words in report["notes"]:
        note(words)
    radius = "" if report["radius"] is None else f", radius {report['radius']:.4g}"
    where = "" if output is None else f"; {plain(str(output))}"
    aside.print(f"{report['picked']} picks in {report['seconds']:.1f} s{radius}{where}", soft_wrap=True)
    if output is None:
        console.print("\n".join(map(str, table["row"])), soft_wrap=True)
