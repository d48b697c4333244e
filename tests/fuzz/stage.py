"""Both services behind real HTTP, with something in them, and a trainer that plays: what a campaign attacks."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from processes import free_port
from services.conftest import Driver, add_dataset, experiment_body, serving

from winnow.errors import Fenced
from winnow.settings import Settings
from winnow.store import claims, keys, rounds
from winnow.store.tables import Round
from winnow_coordinator import experiments
from winnow_coordinator.app import make_app as make_coordinator
from winnow_coordinator.context import Coordinator
from winnow_sampler.app import make_app as make_sampler

TOKEN = "the sampler's own"


@dataclass
class Stage:
    """Where the services are, the text of a key for each scope, and the ids of what is there to be found."""

    coordinator: str
    sampler: str
    keys: dict[str, str]
    own_ids: set[str]
    ids: list[str]
    stumbled: list[Exception] = field(default_factory=list[Exception])


@contextmanager
def staged(folder: Path, database_url: str, *, outside: bool) -> Iterator[Stage]:
    """The services, as if bound off loopback where `outside`: then each request needs a key."""
    (folder / "data").mkdir()
    port = free_port()
    settings = Settings(
        state_dir=folder / "state",
        database_url=database_url,
        data_roots=(folder / "data",),
        coordinator_host="0.0.0.0" if outside else "127.0.0.1",
        sampler_url=f"http://127.0.0.1:{port}",
        sampler_token=TOKEN if outside else "",
        sampler_memory_gib=1,
        uploads_gib=0.01,
        renew_seconds=0.2,
        steward_seconds=0.5,
        retry_seconds=0.1,
    )
    with ExitStack() as opened:
        sampler = opened.enter_context(serving(make_sampler(settings), port=port))
        coordinator = Coordinator.open(settings)
        opened.callback(coordinator.close)
        coordinator.database.migrate()
        found = _furnish(coordinator)
        opened.enter_context(_playing(coordinator, found))
        found.sampler = sampler
        found.coordinator = opened.enter_context(serving(make_coordinator(coordinator)))
        yield found
    assert not found.stumbled, found.stumbled


def _furnish(coordinator: Coordinator) -> Stage:
    dataset = add_dataset(coordinator)
    spec = experiments.parse(experiments.ExperimentRequest(experiment_body(rounds=2, arm="k_center")))
    made: dict[str, tuple[str, str]] = {}
    with coordinator.database.begin() as session:
        for scope in keys.SCOPES:
            row, text = keys.create(session, scope, [scope])
            made[scope] = (row.id, text)
        spare = keys.create(session, "spare", ["read"])[0].id
    planned = experiments.plan(coordinator, spec)
    with coordinator.database.begin() as session:
        begun = [experiments.begin(coordinator, session, planned).id for _ in range(2)]
    own = {id for id, _ in made.values()}
    return Stage("", "", {scope: text for scope, (_, text) in made.items()}, own, [*begun, dataset.id, "tissue", spare])


@contextmanager
def _playing(coordinator: Coordinator, stage: Stage) -> Iterator[None]:
    """A trainer that trains whatever waits, with made-up arrays."""
    leaving = threading.Event()
    driver = Driver(coordinator)

    def train() -> bool:
        with coordinator.database.begin() as session:
            row = claims.claim(session, claims.TRAIN, "player", 30)
            if row is None:
                return False
            assert isinstance(row, Round)
            rounds.start(session, row, 30)
        driver.finish(row)
        return True

    def play() -> None:
        while not leaving.is_set():
            try:
                if not train():
                    leaving.wait(0.1)
            except Fenced:
                continue
            except Exception as error:
                stage.stumbled.append(error)
                return

    player = threading.Thread(target=play)
    player.start()
    try:
        yield
    finally:
        leaving.set()
        player.join(30)
