"""A database that does not answer is given up before a lease is over."""

import socket
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from winnow.settings import Settings
from winnow.store import Database


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
