"""Bells ring after commit, never after a rollback, and a dead broker stops nobody."""

from pathlib import Path

import pytest
from celery import Celery
from conftest import free_port

from winnow.queue import TRAIN_TASK, Bells, make_app
from winnow.settings import Settings
from winnow.store import Database


@pytest.fixture(params=["filesystem", "redis"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    broker = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    return Settings(state_dir=tmp_path, broker_url=broker)


def heard(app: Celery) -> list[list[str]]:
    """Arguments of the messages that wait, taken off the queue."""
    with app.connection_for_read() as connection, connection.channel() as channel:
        queue = connection.SimpleQueue("winnow", channel=channel)
        messages: list[list[str]] = []
        while True:
            try:
                message = queue.get(block=False)
            except queue.Empty:
                return messages
            messages.append(message.payload[0])
            message.ack()


def test_a_bell_rings_after_commit_only(settings: Settings) -> None:
    app = make_app(settings)
    database = Database(settings.database_url)
    database.migrate()
    bells = Bells(app)
    with database.begin() as session:
        bells.ring(session, TRAIN_TASK, "round-1")
        bells.ring(session, TRAIN_TASK, "round-2")
        assert heard(app) == []
    assert heard(app) == [["round-1"], ["round-2"]]
    with pytest.raises(RuntimeError), database.begin() as session:
        bells.ring(session, TRAIN_TASK, "round-3")
        raise RuntimeError
    assert heard(app) == []
    database.close()
    app.close()


def test_a_dead_broker_costs_the_bell_and_nothing_else(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, broker_url=f"redis://127.0.0.1:{free_port()}/0")
    database = Database(settings.database_url)
    app = make_app(settings)
    with database.begin() as session:
        Bells(app).ring(session, TRAIN_TASK, "round-1")
    database.close()
    app.close()
