"""`winnow demo`: the whole loop in one command, on synthetic tissue or on one's own patches."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from winnow.client import Client
from winnow.datasets import check
from winnow.domain import DatasetSpec, ExperimentSpec, Role
from winnow.errors import InvalidInput
from winnow_cli import files
from winnow_cli.commands.datasets import SPEC_FILES, count_skipped, ingest, tell, warn_of_leaks
from winnow_cli.commands.results import show, write
from winnow_cli.live import follow
from winnow_cli.naming import there
from winnow_cli.options import AsJson, Profile
from winnow_cli.output import aside, console, count, note, plain, print_json, say
from winnow_cli.own_data import dataset_of
from winnow_cli.report import gather
from winnow_cli.resuming import find_or_add_dataset, find_or_begin
from winnow_cli.stack import Stack, until_told

Json = dict[str, Any]
SHOWN = 10

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
        Path | None,
        typer.Option(help="Your own patches: folder of class folders, manifest, .npz, or a dataset's spec file."),
    ] = None,
    spec: Annotated[Path | None, typer.Option(help="Your own experiments; examples/small.yaml is a start.")] = None,
    out: Annotated[Path, typer.Option(help="Where results and the stack's state go.")] = Path("winnow-demo"),
    profile: Profile = None,
    json: AsJson = False,
) -> None:
    """Start the stack, run every arm, end with the table, a picture and report.json. Run again, it goes on."""
    document = files.read(spec) if spec else yaml.safe_load(SPEC)
    dataset = _dataset(data)
    if data and not spec:  # nobody said which class matters
        document |= {"positive_class": None, "proxy": {"task": "classes", "standardise": True}}
    source = str(spec or "the demo's spec")
    specs = files.experiments(document | {"dataset": dataset.name}, source)
    _require_room(dataset, specs, source)
    roots = [Path(one.path) for one in dataset.sources if one.path]
    stack = Stack(out / "state", roots, None, say, profile=profile)
    with until_told(stack) as told:
        try:
            aside.print(f"starting coordinator, sampler and trainer; their state: {stack.state_dir}")
            stack.start()
            with stack.watched(), Client(stack.url, on_silence=note) as client:
                report = _run(client, dataset, specs, told.is_set, quiet=json)
            if report is None:
                _say_stopped(out, json)
                raise typer.Exit(130)
            written = write(report, out)
        finally:
            stack.stop()
    if json:
        print_json(report)
    else:
        _close(report, written, stack.state_dir)
    if any(experiment["status"] != "completed" for experiment in report["experiments"]):
        aside.print(f"once the reason is mended, run it again to go on; or delete {out} to begin anew", soft_wrap=True)
        raise typer.Exit(1)


def _dataset(data: Path | None) -> DatasetSpec:
    """Synthetic tissue, or what was given."""
    if data is None:
        return files.parse(DatasetSpec, yaml.safe_load(TISSUE), "the demo's tissue")
    if data.suffix in SPEC_FILES and data.is_file():
        return files.dataset(files.read(data), str(data))
    return dataset_of(data, tell)


def _require_room(dataset: DatasetSpec, specs: list[ExperimentSpec], source: str) -> None:
    """Refuse what can be known before minutes of decoding: sources that are unfit, and a pool too small for a spec."""
    from winnow_coordinator.fitness import require_pool  # takes longer to import than most commands take to run

    pool = check(dataset, lambda path: None)[Role.POOL]
    for spec in specs:
        try:
            require_pool(spec, dataset.name, pool)
        except InvalidInput as error:
            raise InvalidInput(source, f"{spec.name}: {error}") from None


def _run(
    client: Client, dataset: DatasetSpec, specs: list[ExperimentSpec], told: Callable[[], bool], *, quiet: bool
) -> Json | None:
    """Ingest, begin, follow. None when told to stop. Standard output is the answer's alone where programs read it."""
    screen = aside if quiet else console
    screen.print(f"API: {client.url}/docs", soft_wrap=True)
    name = find_or_add_dataset(client, dataset)["name"]
    view = ingest(client, name, quiet=quiet, ended=told)
    if told():
        return None
    size, classes = view["image_size"], len(view["classes"])
    screen.print(f"{name}: {view['samples']:,} patches of {size} pixels, {classes} classes", soft_wrap=True)
    _say_skipped(view)
    warn_of_leaks(view)
    ids = [find_or_begin(client, spec.model_copy(update={"dataset": name}))["id"] for spec in specs]
    follow(client, ids, ended=told, screen=screen)
    return None if told() else gather(client, [view["id"] for view in there(client, ids)])


def _say_skipped(view: Json) -> None:
    skipped: list[Json] = view["report"].get("skipped", [])
    for one in skipped[:SHOWN]:
        aside.print(f"[yellow]skipped:[/yellow] {plain(one['path'])}: {plain(one['reason'])}", soft_wrap=True)
    if (number := count_skipped(view["report"])) > SHOWN:
        words = f"{count(number - SHOWN)} more; winnow dataset skipped {plain(view['name'])} lists them all"
        aside.print(f"[yellow]skipped:[/yellow] {words}", soft_wrap=True)


def _say_stopped(out: Path, json: bool) -> None:
    words = f"stopped; run it again to go on, or delete {out} to begin anew"
    print_json({"code": "stopped", "detail": words}) if json else aside.print(words)


def _close(report: Json, written: list[Path], state_dir: Path) -> None:
    console.print()
    show(report)
    console.print("\n[bold]Where to look next[/bold]")
    for path in written:
        console.print(f"  {path}", soft_wrap=True)
    program = "winnow" if shutil.which("winnow") else str(Path(sys.executable).with_name("winnow"))
    again = f"{program} up --state-dir {state_dir}"
    console.print(f"  {again}    the same stack again, for REST and the command line", soft_wrap=True)
    console.print("  examples/small.yaml, docs/spec.md    your own experiment: make demo DATA=DIR SPEC=FILE")
