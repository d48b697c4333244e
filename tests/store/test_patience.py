"""A database that does not answer is given up before a lease is over."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from winnow.settings import Settings
from winnow.store import Database, postgres
from winnow.store.postgres import SILENCE_SECONDS, STATEMENT_SECONDS


def test_sqlite_waits_less_than_a_lease(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'x.sqlite3'}")
    with database.read() as session:
        (busy,) = session.execute(text("PRAGMA busy_timeout")).one()
    assert 2 * busy / 1000 + Settings().renew_seconds < 0.9 * Settings().lease_seconds
    database.close()


def parameters(url: str) -> dict[str, str]:
    database = Database(url)
    with database.engine.connect() as connection:
        found = connection.connection.driver_connection.info.get_parameters()
    database.close()
    return found


def test_a_postgres_server_that_vanishes_is_noticed(postgres_url: str) -> None:
    assert int(parameters(postgres_url)["tcp_user_timeout"]) / 1000 < Settings().lease_seconds
    assert parameters(f"{postgres_url}&tcp_user_timeout=5000")["tcp_user_timeout"] == "5000"


def test_a_server_that_accepts_and_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        database = Database(f"postgresql://winnow@127.0.0.1:{port}/winnow?connect_timeout=2")
        with pytest.raises(OperationalError, match="timeout"):
            database.ping()
        database.close()


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A server process that is stopped; the kernel goes on acknowledging what it is sent."""
    try:
        os.kill(pid, signal.SIGSTOP)
    except OSError as error:
        pytest.skip(f"the server's processes are not this user's to stop: {error}")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_server_that_is_frozen_in_mid_transaction_is_given_up(postgres_url: str) -> None:
    database = Database(postgres_url, silence=1.0)
    with ExitStack() as until_the_end:
        with pytest.raises(OperationalError, match="gave no answer within 1 s"), database.begin() as session:
            pid = session.scalar(text("SELECT pg_backend_pid()"))
            until_the_end.enter_context(frozen(pid))
            session.execute(text("SELECT 1"))
        with database.begin() as session:
            assert session.scalar(text("SELECT pg_backend_pid()")) != pid
    database.close()


def test_a_pooled_connection_that_froze_is_replaced_without_an_error(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "RESTED_SECONDS", 0.0)
    database = Database(postgres_url, silence=1.0)
    with database.begin() as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
    with frozen(pid), database.begin() as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) != pid
    database.close()


def test_a_server_ends_what_is_slow_before_its_client_gives_up(postgres_url: str) -> None:
    assert STATEMENT_SECONDS < SILENCE_SECONDS
    database = Database(postgres_url)
    with database.read() as session:
        assert session.scalar(text("SHOW statement_timeout")) == f"{STATEMENT_SECONDS}s"
    database.close()


def test_a_migration_may_take_longer_than_a_statement(postgres_url: str) -> None:
    database = Database(f"{postgres_url}&options=-c%20statement_timeout%3D200ms", silence=0.5)
    with database.migrating() as connection:
        connection.execute(text("SELECT pg_sleep(1)"))
    with pytest.raises(OperationalError), database.begin() as session:
        session.execute(text("SELECT pg_sleep(1)"))
    database.close()


def test_a_writer_that_stands_still_keeps_its_rows_for_less_than_a_lease(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings().lease_seconds - Settings().renew_seconds > postgres.IDLE_SECONDS
    monkeypatch.setattr(postgres, "IDLE_SECONDS", 0.5)
    database = Database(postgres_url)
    with database.begin() as session:
        session.execute(text("CREATE TABLE row AS SELECT 1 AS attempt"))
    with pytest.raises(OperationalError), database.begin() as still:
        still.execute(text("UPDATE row SET attempt = 2"))
        with database.begin() as next_one:
            next_one.execute(text("UPDATE row SET attempt = 3"))  # waits for the lock
        still.execute(text("UPDATE row SET attempt = 4"))
    with database.read() as session:
        assert session.execute(text("SELECT attempt FROM row")).scalar_one() == 3
    database.close()
