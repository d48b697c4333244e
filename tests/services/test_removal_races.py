"""Removing on Postgres while others are at the same rows: whoever is second waits, and then sees what was done."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import is_blocked, wait_until
from services.conftest import add_dataset, experiment_body, move
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from winnow.domain import ExperimentSpec, ExperimentStatus
from winnow.errors import NotFound, WinnowError
from winnow.settings import Settings
from winnow.store import artefacts, claims, rounds
from winnow.store import datasets as store
from winnow.store.claims import TRAIN
from winnow.store.tables import Experiment, Round
from winnow_coordinator import datasets, experiments, samples
from winnow_coordinator.context import Coordinator
from winnow_coordinator.fitness import DatasetNotReady
from winnow_coordinator.tidying import Tidier

OVER = (ExperimentStatus.CANCELLING, ExperimentStatus.CANCELLED)


@pytest.fixture
def here(tmp_path: Path, postgres_url: str) -> Iterator[Coordinator]:
    opened = Coordinator.open(Settings(state_dir=tmp_path / "state", database_url=postgres_url))
    opened.database.migrate()
    add_dataset(opened)
    yield opened
    opened.close()


@contextmanager
def first(here: Coordinator, act: Callable[[], object]) -> Iterator[tuple[Session, Callable[[], None], list[str]]]:
    """A transaction, what to call in it to have `act` begin and wait for it, and what `act` raised once all is over."""
    raised: list[str] = []

    def run() -> None:
        try:
            act()
        except WinnowError as error:
            raised.append(f"{error.code}: {error}")

    person = threading.Thread(target=run)

    def let_wait() -> None:
        person.start()
        wait_until(lambda: is_blocked(here.database), 20, "the second to wait")

    with here.database.begin() as session:
        yield session, let_wait, raised
    person.join(30)
    assert not person.is_alive()


def plan(here: Coordinator) -> experiments.Plan:
    return experiments.plan(here, ExperimentSpec.model_validate(experiment_body()))


def begin(here: Coordinator) -> str:
    planned = plan(here)
    with here.database.begin() as session:
        return experiments.begin(here, session, planned).id


def remove(here: Coordinator, id: str) -> None:
    with here.database.begin() as session:
        experiments.remove(session, id)


def remove_dataset(here: Coordinator) -> None:
    datasets.remove(here, "tissue")


def fail(here: Coordinator) -> None:
    """The round that waits, and with it its experiment."""
    with here.database.begin() as session:
        row = claims.claim(session, TRAIN, "w", 30)
        assert isinstance(row, Round)
    with here.database.begin() as session:
        rounds.give_back(session, TRAIN, row.id, row.attempt, "rejected", "why", here.patience)


def test_no_experiment_begins_on_a_dataset_that_is_being_removed(here: Coordinator) -> None:
    with first(here, lambda: begin(here)) as (session, let_wait, raised):
        store.begin_removal(session, store.lock(session, "tissue"), 30)
        let_wait()
    assert raised == [
        "wrong-state: dataset tissue is removing, an experiment needs it ready: somebody removes it; "
        "add it again once it is gone"
    ]


def test_no_experiment_begins_on_a_dataset_that_went_since_it_was_planned(here: Coordinator) -> None:
    planned = plan(here)
    remove_dataset(here)
    with pytest.raises(NotFound), here.database.begin() as session:
        experiments.begin(here, session, planned)


def test_a_dataset_stays_on_which_an_experiment_has_just_begun(here: Coordinator) -> None:
    planned = plan(here)
    with first(here, lambda: remove_dataset(here)) as (session, let_wait, raised):
        id = experiments.begin(here, session, planned).id
        let_wait()
    assert len(raised) == 1 and raised[0].startswith(f"in-use: dataset tissue is in use by experiments: {id}")


@pytest.mark.parametrize("initial", ["random", "stratum"])
def test_no_start_is_drawn_from_what_is_left_of_a_pool(here: Coordinator, initial: str) -> None:
    waiting = [here]

    def act_once(*_: object) -> None:
        if waiting:
            remove_dataset(waiting.pop())

    event.listen(here.database._reads, "loaded_as_persistent", act_once)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(NotFound):
        experiments.plan(here, ExperimentSpec.model_validate(experiment_body(initial=initial)))
    assert not waiting


def begin_removal(here: Coordinator) -> None:
    with here.database.begin() as session:
        store.begin_removal(session, store.lock(session, "tissue"), 30)


@pytest.mark.parametrize(
    ("removal", "told", "words"),
    [
        (begin_removal, DatasetNotReady, "removing, its samples show when it is ready"),
        (remove_dataset, NotFound, "no dataset"),
    ],
)
def test_a_removal_while_samples_are_read_is_told(
    here: Coordinator, removal: Callable[[Coordinator], None], told: type[Exception], words: str
) -> None:
    waiting = [here]

    def act_once(*_: object) -> None:  # after the look at the dataset, before its samples are read
        if waiting:
            removal(waiting.pop())

    with here.database.read() as session:
        event.listen(session, "loaded_as_persistent", act_once)
        with pytest.raises(told, match=words):
            samples.page(session, "tissue", None, None, 100)
    assert not waiting


def test_one_that_is_resumed_first_is_not_removed(here: Coordinator) -> None:
    """Both take the newest round and then the experiment, so that neither waits for the other in a ring."""
    id = begin(here)
    fail(here)
    with first(here, lambda: remove(here, id)) as (session, let_wait, raised):
        rounds.newest(session, id, hold=True)
        let_wait()
        experiments.resume(here, session, id)
    assert raised == [f"wrong-state: e ({id}) is running and cannot be removed; cancel it first"]


def test_states_that_are_trimmed_are_waited_for(here: Coordinator) -> None:
    """The trimmer and the remover delete the same rows, each in an order of its own."""
    id = begin(here)
    move(here, id, *OVER)
    with first(here, lambda: remove(here, id)) as (session, let_wait, raised):
        artefacts.trim(session, id, keep=1)
        let_wait()
    assert not raised
    with here.database.read() as session:
        assert session.scalars(select(Experiment.id)).all() == []


def test_a_list_lives_with_a_removal_between_its_ids_and_its_rows(here: Coordinator) -> None:
    goes, stays = begin(here), begin(here)
    move(here, goes, *OVER)

    waiting = [goes]

    def remove_once(*_: object) -> None:
        if waiting:
            remove(here, waiting.pop())

    with here.database.read() as session:
        event.listen(here.database.engine, "after_cursor_execute", remove_once)
        page = experiments.page(session, here.final_views, None, None, None, 50)
    assert [view["id"] for view in json.loads(page)["items"]] == [stays]


def test_a_tidier_that_finds_one_removed_settles_the_others(here: Coordinator) -> None:
    ids = [begin(here) for _ in range(3)]
    for id in ids:
        move(here, id, OVER[0])
    with first(here, Tidier(here).settle) as (session, let_wait, raised):
        session.execute(select(Experiment.id).where(Experiment.id == ids[0]).with_for_update())
        let_wait()
        move(here, ids[1], OVER[1])  # another coordinator settles it, and a person removes it
        remove(here, ids[1])
    assert not raised
    with here.database.read() as session:
        left = dict(session.execute(select(Experiment.id, Experiment.status)).all())
    assert left == {ids[0]: "cancelled", ids[2]: "cancelled"}
