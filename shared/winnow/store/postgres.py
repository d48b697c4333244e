"""Connections to Postgres that no frozen server can hold up for ever.

A server that vanished is noticed by TCP. One that is frozen (a stopped process, a paused machine) still acknowledges
what it is sent, so only the client's own clock tells: a statement that gets no answer closes its connection. A server
that is merely slow ends the statement itself, before the client gives up.
"""

from typing import Any, cast

import psycopg
from sqlalchemy import Connection, Engine, event, text

SILENCE_SECONDS = 60.0
"""How long a statement may go without its answer."""
STATEMENT_SECONDS = 55
"""How long the server works on one statement."""
LIMITS = f"-c statement_timeout={STATEMENT_SECONDS}s"
"""As the `options` of a connection."""


class PatientConnection(psycopg.Connection[Any]):
    """A connection whose every wait for the server ends. `silence`: seconds, or None to wait as long as it takes."""

    silence: float | None = SILENCE_SECONDS

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("timeout", self.silence)
        try:
            return super().wait(*args, **kwargs)
        except psycopg.OperationalError as error:
            if self.closed or type(error) is not psycopg.errors._WaitTimeout:  # pyright: ignore[reportPrivateUsage]
                raise
            self.close()
            raise psycopg.OperationalError(f"the server gave no answer within {kwargs['timeout']:g} s") from error


def limit(engine: Engine, silence: float) -> None:
    """Have no connection of a Postgres engine wait for longer than `silence` seconds. SQLite needs nothing."""
    if engine.dialect.name != "postgresql":
        return

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> PatientConnection:
        opened = PatientConnection.connect(*arguments, **options)
        opened.silence = silence
        return opened


def wait_for_lock(connection: Connection, id: int) -> None:
    """Hold the advisory lock `id` until the transaction ends. It, and what follows in it, may take any time."""
    driver = cast("PatientConnection", connection.connection.driver_connection)
    before, driver.silence = driver.silence, None

    @event.listens_for(connection, "commit")
    @event.listens_for(connection, "rollback")
    def limit_again(_: Connection) -> None:
        driver.silence = before

    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": id})
