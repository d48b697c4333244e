"""Experiments and rounds in any order of events, on SQLite and on Postgres."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz.life import Life
from fuzz.scale import played, report, scaled
from hypothesis.stateful import run_state_machine_as_test
from services.conftest import add_dataset

from winnow.settings import Settings
from winnow_coordinator.context import Coordinator


@pytest.fixture
def coordinator(database_url: str, tmp_path: Path) -> Iterator[Coordinator]:
    patience = {"max_losses": 3, "max_failures": 2, "retry_seconds": 0}
    opened = Coordinator.open(Settings(state_dir=tmp_path / "state", database_url=database_url, **patience))
    opened.database.migrate()
    yield opened
    opened.close()


def test_rounds_live_by_the_table_whatever_happens(coordinator: Coordinator) -> None:
    dataset = add_dataset(coordinator)
    Life.steps = 0
    run_state_machine_as_test(lambda: Life(coordinator, dataset), settings=played(10, stateful_step_count=40))
    report(f"experiments on {coordinator.database.engine.dialect.name}", cases=scaled(10), steps=Life.steps)
