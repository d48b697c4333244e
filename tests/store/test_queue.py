"""Bells ring after commit, never after a rollback, and a dead broker stops nobody."""

import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from celery import Celery
from conftest import wait_until
from processes import free_port
from sqlalchemy import text

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


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'winnow.sqlite3'}")
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def silent_broker() -> Iterator[socket.socket]:
    """A broker that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener
    wait_until(lambda: "bells" not in {thread.name for thread in threading.enumerate()}, 60, "the bells to give up")


def ring(database: Database, bells: Bells, *ids: str) -> None:
    with database.begin() as session:
        for id in ids:
            bells.ring(session, TRAIN_TASK, id)


def test_a_bell_rings_after_commit_only(settings: Settings, database: Database) -> None:
    app = make_app(settings)
    with closing(Bells(app)) as bells:
        with database.begin() as session:
            bells.ring(session, TRAIN_TASK, "committed")
            with session.begin_nested():  # to SQLAlchemy the end of a savepoint is a commit as well, or a rollback
                session.execute(text("SELECT 1"))
            with pytest.raises(RuntimeError), session.begin_nested():
                raise RuntimeError
            with database.read() as sooner:  # bells ring in order: had the first one rung, it would be heard here
                bells.ring(sooner, TRAIN_TASK, "sooner")
                sooner.commit()
            assert wait_until(lambda: heard(app), 60, "a bell") == [["sooner"]]
        with pytest.raises(RuntimeError), database.begin() as session:
            bells.ring(session, TRAIN_TASK, "rolled back")
            raise RuntimeError
    assert heard(app) == [["committed"]]
    app.close()


def test_bells_that_wait_are_rung_before_the_end(settings: Settings, database: Database) -> None:
    app = make_app(settings)
    bells = Bells(app)
    names = [f"round-{n}" for n in range(20)]
    ring(database, bells, *names)
    bells.close()
    assert sorted(heard(app)) == sorted([name] for name in names)  # a folder does not keep their order
    app.close()


def test_a_dead_broker_costs_the_bell_and_nothing_else(tmp_path: Path, database: Database) -> None:
    app = make_app(Settings(state_dir=tmp_path, broker_url=f"redis://127.0.0.1:{free_port()}/0"))
    bells = Bells(app)
    ring(database, bells, "round-1")
    bells.close()
    app.close()


def test_a_silent_broker_is_waited_for_by_nobody(
    tmp_path: Path, database: Database, silent_broker: socket.socket
) -> None:
    app = make_app(Settings(state_dir=tmp_path, broker_url=f"redis://127.0.0.1:{silent_broker.getsockname()[1]}/0"))
    bells = Bells(app, waiting=1)
    ring(database, bells, "round-0")
    wait_until(lambda: select.select([silent_broker], [], [], 0)[0], 60, "the first bell to be under way")
    began = time.monotonic()
    ring(database, bells, *(f"round-{n}" for n in range(1, 10)))  # more than may wait: the rest is dropped
    assert time.monotonic() - began < 1
    bells.close()
    assert time.monotonic() - began < 6
    app.close()


def test_a_message_in_a_folder_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    app = make_app(Settings(state_dir=tmp_path))
    early: list[Path] = []

    class Body:
        """Looks, while it is being written, for what a worker would take."""

        def __json__(self) -> str:
            early.extend((tmp_path / "broker").glob("*.msg"))
            return "whole"

    with app.connection_for_write() as connection, connection.channel() as channel:
        channel._put("winnow", {"body": Body()})
        assert channel._get("winnow") == {"body": "whole"}
    assert not early
    app.close()


def test_a_message_in_a_folder_that_cannot_be_read_is_passed_over(tmp_path: Path, database: Database) -> None:
    settings = Settings(state_dir=tmp_path)
    app = make_app(settings)
    (tmp_path / "broker" / "0_torn.winnow.msg").touch()
    with closing(Bells(app)) as bells:
        ring(database, bells, "round-1")
    assert heard(app) == [["round-1"]]
    app.close()


def test_queues_in_a_folder_are_declared_side_by_side(tmp_path: Path) -> None:
    app = make_app(Settings(state_dir=tmp_path))
    names = [f"queue-{number}" for number in range(8)]
    ready = threading.Barrier(len(names))

    def declare(name: str) -> None:
        with app.connection_for_write() as connection, connection.channel() as channel:
            ready.wait()
            for turn in range(20):
                channel._queue_bind(f"exchange-{turn}", name, None, name)

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(declare, names))
    with app.connection_for_read() as connection, connection.channel() as channel:
        for turn in range(20):
            assert sorted(row.queue for row in channel.get_table(f"exchange-{turn}")) == names
    app.close()
