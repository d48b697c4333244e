"""How experiments are followed: a table, lines, or events."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from conftest import wait_until
from rich.console import Console
from services.conftest import Driver, Winnow, add_dataset, experiment_body, move
from sqlalchemy import update

from winnow.client import ApiProblem, Client, Event
from winnow.domain import ExperimentStatus
from winnow.store import claims, rounds
from winnow.store.tables import Round
from winnow_cli import live, report
from winnow_cli.hearing import hear
from winnow_cli.output import make_table
from winnow_coordinator.context import Coordinator

PAUSE = (ExperimentStatus.PAUSING, ExperimentStatus.PAUSED)


@pytest.fixture
def client(coordinator: Coordinator, url: str) -> Iterator[Client]:
    add_dataset(coordinator)
    with Client(url) as opened:
        yield opened


def begin(client: Client, name: str = "e") -> str:
    return client.create_experiment(experiment_body(name=name))["id"]


@contextmanager
def followed(client: Client, id: str, *, terminal: bool = False, columns: int = 200) -> Iterator[io.StringIO]:
    """What `winnow watch` writes meanwhile."""
    text, told = io.StringIO(), threading.Event()
    screen = Console(file=text, force_terminal=terminal, width=columns, no_color=True)
    with ThreadPoolExecutor(1) as pool:
        views = pool.submit(live.follow, client, [id], ended=told.is_set, screen=screen)
        try:
            yield text
        finally:
            told.set()
        views.result(60)


def test_several_are_heard_at_once_until_all_rest(coordinator: Coordinator, client: Client, winnow: Winnow) -> None:
    heard: list[tuple[str, Event]] = []
    first, second = begin(client, "one"), begin(client, "other")
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(lambda: heard.extend(hear(client, [first, second])))
        try:
            wait_until(lambda: {id for id, _ in heard} == {first, second}, 60, "both to be heard of while both go on")
            move(coordinator, first, *PAUSE, ExperimentStatus.RUNNING)
            wait_until(lambda: "experiment.running" in of(first, heard), 60, "one to be heard of once it is resumed")
        finally:
            move(coordinator, second, ExperimentStatus.FAILED, error="no luck")
            move(coordinator, first, *PAUSE)
        ended.result(60)
    assert of(first, heard)[-1] == "experiment.paused" and of(second, heard)[-1] == "experiment.failed"
    said = winnow("watch", "one", second, "--json")
    assert said.code == 1 and "other failed: no luck" in said.err
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line["type"] for line in lines if line["experiment"] == first] == of(first, heard)
    assert f"winnow resume {first}\n" in winnow("watch", "one").out


def of(id: str, heard: list[tuple[str, Event]]) -> list[str]:
    """The types of the events of one experiment."""
    return [event.type for one, event in heard if one == id]


def test_what_one_stream_cannot_hear_ends_all(client: Client) -> None:
    with pytest.raises(ApiProblem, match="no experiment 'nobody'"):
        list(hear(client, [begin(client), "nobody"]))


@pytest.mark.parametrize(("terminal", "columns"), [(False, 200), (True, 80), (True, 200)])
def test_a_round_that_waits_long_is_told(
    client: Client, monkeypatch: pytest.MonkeyPatch, terminal: bool, columns: int
) -> None:
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.01)
    with followed(client, begin(client), terminal=terminal, columns=columns) as text:
        wait_until(lambda: "round 0 waits for a trainer" in text.getvalue(), 60, "the wait to be told")
        assert ("images/s" in text.getvalue()) == (terminal and columns == 200), "a narrow terminal has no room"
    if not terminal:
        first, *others = text.getvalue().splitlines()
        assert first == "e: created, 0 of 3 rounds done"
        assert others == [f"{first}; round 0 waits for a trainer"], "once"


def test_macro_f1_stands_in_where_no_class_is_positive(
    coordinator: Coordinator, winnow: Winnow, run_through: Callable[..., str]
) -> None:
    add_dataset(coordinator)
    id = run_through()
    with coordinator.database.begin() as session:
        session.execute(update(Round).values(metrics={"f1": None, "macro_f1": 0.25}))
    assert "5 samples, 100 visits, F1 0.250\n" in winnow("watch", id).out
    assert "0.250" in winnow("list").out


def test_a_table_cuts_no_number_short_for_a_name() -> None:
    text = io.StringIO()
    screen = Console(file=text, force_terminal=True, width=80, no_color=True)
    row = ["nct-crc-he-least_confidence-of-a-name-that-is-long-0", "completed", "20,000", "2,000,000", "12:03:04"]
    screen.print(make_table(report.COLUMNS, [[*row, "0.901", "0.902", "0.903"]]))
    shown = text.getvalue()
    assert all(cell in shown for cell in (*row[1:], "0.901", "0.902", "0.903", "macro F1", "AUROC"))
    assert row[0] in "".join(line.split(" ")[0] for line in shown.splitlines()[1:]), "the name takes several lines"


def test_a_round_that_was_given_back_waits_for_another_try_and_says_why(
    coordinator: Coordinator, client: Client, driver: Driver
) -> None:
    id, reason = begin(client), " ".join(["no space left in /a/place/of/artefacts;"] * 6)
    row = driver.claim()
    with coordinator.database.begin() as session:
        rounds.give_back(session, claims.TRAIN, row.id, row.attempt, "full", reason, coordinator.patience)
    with followed(client, id, terminal=True, columns=110) as text:
        wait_until(lambda: "artefacts" in text.getvalue(), 60, "the reason to be told")
    shown = " ".join(text.getvalue().split())
    assert "round 0 waits for another try" in shown
    assert shown.count("left in /a/place/of/artefacts") >= 6, "all of it, in several lines"
    assert "rounds" in shown and "0/3" in shown and "running" in shown, "and no other column is cut short for it"
