"""`winnow compare` and `winnow export`."""

import csv
import json as formats
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from winnow.client import Client
from winnow.domain import ExperimentStatus
from winnow.errors import InvalidInput
from winnow_cli import picture
from winnow_cli.naming import id_of, ids_of
from winnow_cli.options import AsJson, Id, Ids, StateDir, Url, connect
from winnow_cli.output import aside, console, count, note, print_json, print_table
from winnow_cli.report import COLUMNS, gather, rows

Json = dict[str, Any]
ENCODER = "state/weights"
DESCRIPTION = "experiment.json"
INCOMPLETE = "incomplete-"
"""Begins the name of an empty file that ends in an experiment's id: its export is under way, or was broken off."""
SMALL = ("labelled/", "fitted/", "evaluated/", "proxy", "evaluator")


def compare(
    ids: Ids = None,
    out: Annotated[Path, typer.Option(help="Where compare.png and report.json go.")] = Path("winnow-compare"),
    url: Url = None,
    state_dir: StateDir = None,
    json: AsJson = False,
) -> None:
    """The table of samples, visits, seconds and F1, a picture of the curves, and report.json."""
    with connect(url, state_dir) as client:
        wanted = ids_of(client, ids or []) or _all_but_the_empty(client)
        if not (wanted or json):
            aside.print("nothing to compare; `winnow run SPEC.yaml` begins an experiment")
            return
        report = gather(client, wanted)
    written = write(report, out)
    if json:
        print_json(report)
        return
    show(report)
    for path in written:
        console.print(path, soft_wrap=True)


def export(
    id: Id,
    to: Annotated[Path | None, typer.Option(help="The folder to write; NAME-ID by default.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All arrays and weights of every round, not the last alone.")
    ] = False,
    url: Url = None,
    state_dir: StateDir = None,
    json: AsJson = False,
) -> None:
    """Write an experiment to a folder: spec, metrics, every batch picked, the encoder (safetensors), arrays."""
    with connect(url, state_dir) as client:
        view = client.experiment(id_of(client, id))
        folder = to or Path(f"{view['name']}-{view['id']}")
        _require_own(folder, view["id"])
        with _completing(folder, view["id"]):
            written = [*_tables(client, view["id"], folder), *_artefacts(client, view["id"], folder, everything)]
            written.append(_description(client, view["id"], folder))
    if json:
        print_json([str(path) for path in written])
        return
    console.print(f"{len(written)} files in {folder.absolute()}", soft_wrap=True)


def show(report: Json) -> None:
    """The table and the notes."""
    print_table(COLUMNS, rows(report["experiments"]))
    for words in report["notes"]:
        note(words)


def write(report: Json, folder: Path) -> list[Path]:
    """report.json, and compare.png where something was evaluated."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / "report.json"]
    made[0].write_text(formats.dumps(report, indent=1))
    drawn = folder / "compare.png"
    if any(experiment["rounds"] for experiment in report["experiments"]):
        made.append(drawn)
        picture.draw(report, drawn)
    else:
        drawn.unlink(missing_ok=True)  # one from before shows other experiments
    return [path.absolute() for path in made]


def _all_but_the_empty(client: Client) -> list[str]:
    """Every experiment, oldest first, without those that were cancelled before anything of them was evaluated."""
    views = list(client.experiments())[::-1]
    wanted = [view["id"] for view in views if view["latest"] or view["status"] != ExperimentStatus.CANCELLED]
    if empty := len(views) - len(wanted):
        note(f"left out, as cancelled before anything was evaluated: {count(empty)}")
    return wanted


def _require_own(folder: Path, id: str) -> None:
    """Two experiments in one folder could not be told apart, and somebody else's files would be written over."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    other = _experiment_in(folder)
    if other is None:
        raise InvalidInput("--to", f"{folder} holds files that are of no export; name another folder")
    if other != id:
        raise InvalidInput("--to", f"{folder} holds experiment {other}; name another folder")


def _experiment_in(folder: Path) -> str | None:
    """The id of the experiment that was exported to a folder, whole or not; None where none was."""
    for mark in folder.glob(f"{INCOMPLETE}*"):
        return mark.name.removeprefix(INCOMPLETE)
    try:
        found = formats.loads((folder / DESCRIPTION).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found.get("id") if isinstance(found, dict) else None


@contextmanager
def _completing(folder: Path, id: str) -> Iterator[None]:
    """Keeps a file in the folder that says whose it is to be, until it is whole. One that is not is told of."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f"{INCOMPLETE}{id}"
    mark.touch()
    (folder / DESCRIPTION).unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:  # Ctrl-C is one, too
        note(f"{folder} is incomplete; the same command again completes it")
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(folder)  # a full disk names no file
        raise
    mark.unlink()


def _description(client: Client, id: str, folder: Path) -> Path:
    """The experiment and its spec. What has one is whole."""
    place = folder / DESCRIPTION
    part = place.with_name(f"{place.name}.part")
    part.write_text(formats.dumps(gather(client, [id])["experiments"][0], indent=1))
    return part.replace(place)


def _tables(client: Client, id: str, folder: Path) -> list[Path]:
    """Its metrics and its batches, for people and spreadsheets."""
    metrics, picks = folder / "metrics.csv", folder / "selections.csv"
    _write_csv(metrics, client.metrics(id)["items"])
    batches = [
        {"round": row["number"], **pick} for row in client.rounds(id) for pick in client.selection(id, row["number"])
    ]
    _write_csv(picks, batches)
    return [metrics, picks]


def _artefacts(client: Client, id: str, folder: Path, everything: bool) -> list[Path]:
    written: list[Path] = []
    gone: list[int] = []
    ended = [row["number"] for row in client.rounds(id) if row["metrics"]]
    for number in ended if everything else ended[-1:]:
        artefacts: list[Json] = client.round(id, number)["artefacts"]
        if ENCODER not in {artefact["kind"] for artefact in artefacts}:
            gone.append(number)
        for artefact in artefacts:
            kind: str = artefact["kind"]
            if everything or kind == ENCODER or kind.startswith(SMALL):
                stem = "encoder" if kind == ENCODER else kind.replace("/", "-")
                place = folder / f"round-{number:04d}" / f"{stem}{Path(artefact['key']).suffix}"
                place.parent.mkdir(exist_ok=True)
                client.download(id, number, kind, place)
                written.append(place)
    if gone:
        numbers = ", ".join(map(str, gone))
        note(f"no encoder is kept any more of round {numbers}; with WINNOW_KEEP_STATES=0 every one is")
    return written


def _write_csv(path: Path, table: list[Json]) -> None:
    """Scalars alone; a confusion matrix has no column."""
    plain = [{key: value for key, value in row.items() if not isinstance(value, list | dict)} for row in table]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(plain[0]) if plain else [])
        writer.writeheader()
        writer.writerows(plain)
