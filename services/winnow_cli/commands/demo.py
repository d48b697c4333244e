"""`winnow demo`: the whole loop in one command, on synthetic tissue or on one's own patches."""

import hashlib
import json as formats
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from winnow import datasets
from winnow.client import Client
from winnow.datasets.decode import Picture, Unreadable
from winnow.datasets.sources import list_sources
from winnow.domain import DatasetSpec, ExperimentSpec, Role
from winnow_cli import files
from winnow_cli.commands.datasets import ingest
from winnow_cli.commands.experiments import begin
from winnow_cli.commands.results import show, write
from winnow_cli.live import follow
from winnow_cli.options import AsJson
from winnow_cli.output import aside, console, print_json
from winnow_cli.report import gather
from winnow_cli.stack import Stack, until_told

Json = dict[str, Any]
TEST_SHARE, LABELLED_SHARE, MOST_LABELLED = 0.2, 0.1, 1000
LEAST_SIDE, MOST_SIDE = 32, 224

# Three of the slides are never trained on.
TISSUE = """
name: tissue
image_size: 32
sources:
  - kind: synthetic
    synthetic: {patches: 2700, slides: 12, test_slides: 3}
draws:
  - {count: 300}
"""
SPEC = """
name: demo
dataset: tissue
arms: [random, entropy, k_center, full]
positive_class: TUM
budget: 100
rounds: 5
candidates: 800
full_evaluate_every: 2
simclr: {epochs: 6, learning_rate: 0.001, batch_size: 64, checkpoint_every: 3}
proxy: {epochs: 100, full_epochs: 100, learning_rate: 0.01, standardise: true}
"""


def demo(
    data: Annotated[
        Path | None, typer.Option(help="Your own patches: a folder of class folders, or a manifest.")
    ] = None,
    spec: Annotated[Path | None, typer.Option(help="Your own experiments; examples/small.yaml is a start.")] = None,
    out: Annotated[Path, typer.Option(help="Where results and the stack's state go.")] = Path("winnow-demo"),
    json: AsJson = False,
) -> None:
    """Start the stack, run every arm, end with the table, a picture and report.json. Run again, it goes on."""
    document = files.read(spec) if spec else yaml.safe_load(SPEC)
    dataset = _dataset_of(data, str(document.get("dataset", "tissue"))) if data else _tissue(document)
    if data and not spec:  # nobody said which class matters
        document |= {"dataset": dataset.name, "positive_class": None, "proxy": {"task": "classes", "standardise": True}}
    specs = files.experiments(document | {"dataset": dataset.name}, str(spec or "the demo's spec"))
    stack = Stack(
        out / "state", [data.resolve() if data.is_dir() else data.resolve().parent] if data else [], None, aside.print
    )
    with until_told(stack) as told:
        try:
            aside.print(f"starting coordinator, sampler and trainer; their state: {stack.state_dir}")
            stack.start()
            with Client(stack.url) as client:
                report = _run(client, stack, dataset, specs, told.is_set)
            if report is None:
                aside.print(f"stopped; run it again to go on, or delete {out} to begin anew")
                raise typer.Exit(130)
            written = write(report, out)
        finally:
            stack.stop()
    if json:
        print_json(report)
    else:
        _close(report, written, stack.state_dir)
    if any(experiment["status"] != "completed" for experiment in report["experiments"]):
        raise typer.Exit(1)


def _run(client: Client, stack: Stack, dataset: DatasetSpec, specs: list[ExperimentSpec], told: Any) -> Json | None:
    """Ingest, begin, follow. None when told to stop."""
    console.print(f"API: {client.url}/docs  dataset: {dataset.name}", soft_wrap=True)
    client.create_dataset(dataset, idempotency_key=_fingerprint(dataset))
    view = ingest(client, dataset.name)
    console.print(
        f"{dataset.name}: {view['samples']:,} patches of {view['image_size']} pixels, {len(view['classes'])} classes"
    )
    ids = [begin(client, [spec], once=_fingerprint(spec))[0]["id"] for spec in specs]

    def tick() -> bool:
        stack.look()
        return not told()

    follow(client, ids, tick=tick)
    return None if told() else gather(client, ids)


def _tissue(document: Json) -> DatasetSpec:
    tissue = yaml.safe_load(TISSUE)
    return files.parse(DatasetSpec, tissue | {"name": document.get("dataset", tissue["name"])}, "the demo's tissue")


def _dataset_of(data: Path, name: str) -> DatasetSpec:
    """A dataset of one's own patches. Where no roles are given, some patches are held out and some labelled."""
    source = files.source_of(str(data), {}, {})
    whole = files.parse(DatasetSpec, {"name": name, "sources": [source]}, str(data))
    listing = list_sources(whole, allow=lambda path: None)
    found = [entry.role for entry in listing.entries]
    side = _side_of(listing.pictures())
    aside.print(f"{data}: {len(found):,} patches, packed at {side} pixels; columns: {source.get('columns') or 'none'}")
    draws: list[Json] = []
    if Role.TEST not in found:
        draws.append({"role": "test", "count": max(round(len(found) * TEST_SHARE), 1)})
    if Role.LABELLED not in found:
        draws.append({"count": max(min(round(len(found) * LABELLED_SHARE), MOST_LABELLED), 1), "by": "stratum"})
    for draw in draws:
        aside.print(f"no role {draw.get('role', 'labelled')} in {data}: {draw['count']} patches are drawn for it")
    document = files.body_of(whole) | {"draws": draws, "image_size": side}
    checked = files.parse(DatasetSpec, document, str(data))
    datasets.check(checked, lambda path: None)
    return checked


def _side_of(pictures: Iterable[Picture]) -> int:
    """The longest side of the first patches that can be read, in pixels: small patches are not blown up."""
    sides = [LEAST_SIDE]
    for picture in islice(pictures, 20):
        try:
            width, _, height = (picture.read(LEAST_SIDE).resized or "0x0").partition("x")
        except Unreadable:
            continue  # ingesting names it
        sides.append(max(int(width), int(height)))
    return min(max(sides), MOST_SIDE)


def _fingerprint(spec: DatasetSpec | ExperimentSpec) -> str:
    """The same spec in the same state directory is the same work: it is found again, not begun anew."""
    return "demo-" + hashlib.sha256(formats.dumps(files.body_of(spec), sort_keys=True).encode()).hexdigest()[:24]


def _close(report: Json, written: list[Path], state_dir: Path) -> None:
    console.print()
    show(report)
    console.print("\n[bold]Where to look next[/bold]")
    for path in written:
        console.print(f"  {path}", soft_wrap=True)
    console.print(
        f"  winnow up --state-dir {state_dir}    the same stack again, for REST and the command line", soft_wrap=True
    )
    console.print("  examples/small.yaml, docs/spec.md    your own experiment: make demo DATA=DIR SPEC=FILE")
