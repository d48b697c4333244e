"""`winnow sweep`: what lies in the artefact store and is named by nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from winnow.artefacts import DirectoryStore, Lying
from winnow.errors import InvalidInput
from winnow.settings import Settings
from winnow.store import Database, datasets, experiments, removals
from winnow_cli.options import DEFAULT_STATE_DIR, AsJson, StateDir
from winnow_cli.output import aside, console, count, print_json, print_table
from winnow_coordinator import orphans
from winnow_coordinator.orphans import Found

PAGE = 100


@dataclass(frozen=True)
class Heap:
    """Files of one kind."""

    what: str
    files: int
    bytes: int
    then: str


def sweep(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing.")] = False,
    state_dir: StateDir = None,
    json: AsJson = False,
) -> None:
    """Count files that nothing names, and remove what ended attempts and removed experiments left.

    Runs where database and store are. A coordinator does the same by itself, a little at a time.
    """
    settings = Settings(state_dir=state_dir or DEFAULT_STATE_DIR)
    if not settings.artefact_dir.is_dir():
        where = "run it where the services are, with their WINNOW_DATABASE_URL and WINNOW_ARTEFACT_DIR"
        raise InvalidInput("--state-dir", f"there is no artefact store at {settings.artefact_dir}; {where}")
    database, store = Database(settings.database_url), DirectoryStore(settings.artefact_dir)
    try:
        database.require_schema()
        found = list(_look(database, store))
    finally:
        database.close()
    unnamed = [file for one in found for file in one.unnamed]
    if not dry_run:
        for file in unnamed:
            store.remove(file, with_folder=True)
    heaps = [
        _heap("of ended attempts, and of what was removed", unnamed, "would be removed" if dry_run else "removed"),
        _heap("answers of the sampler", orphans.answers(store), f"go after {settings.sweep_seconds:g} s"),
        _heap("of no attempt known here", [file for one in found for file in one.strange], "left alone"),
    ]
    if json:
        print_json([asdict(heap) for heap in heaps])
        return
    print_table(["what", ">files", ">bytes", ""], ([h.what, count(h.files), count(h.bytes), h.then] for h in heaps))
    console.print(f"[dim]{store.root}[/dim]", soft_wrap=True)
    if dry_run and unnamed:
        aside.print("winnow sweep removes them; so does a coordinator, within minutes")


def _look(database: Database, store: DirectoryStore) -> Iterator[Found]:
    """Everything, an experiment or a dataset at a time; also what belongs to none of this database."""
    with database.read() as session:
        known = datasets.ids(session)
    for id in known:
        yield orphans.of_dataset(database, store, id)
    place: str | None = None
    while True:
        with database.read() as session:
            page = experiments.page(session, before=place, limit=PAGE)
        for row in page:
            known.append(row.id)
            yield orphans.of_experiment(database, store, row.id)
        if len(page) < PAGE:
            break
        place = page[-1].id
    others = [file for folder in ("datasets", "experiments") for file in store.lying(folder)]
    others = [file for file in others if file.name.split("/")[1] not in known]
    with database.read() as session:
        removed = removals.places(session, seconds=0)
    yield Found(
        unnamed=[file for file in others if _place(file) in removed],
        strange=[file for file in others if _place(file) not in removed],
    )


def _place(file: Lying) -> str:
    """What a file is of: experiments/ID or datasets/ID."""
    return "/".join(file.name.split("/")[:2])


def _heap(what: str, files: Sequence[Lying], then: str) -> Heap:
    return Heap(what, len(files), sum(file.size for file in files), then)
