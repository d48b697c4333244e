"""Postgres: its engine, and connections that neither a frozen server nor a frozen client can hold up for ever.

A server that vanished is noticed by TCP. One that is frozen (a stopped process, a paused machine) still acknowledges
what it is sent, so only the client's own clock tells: a statement that gets no answer closes its connection. A server
that is merely slow ends the statement itself, before the client gives up.
"""

import time
from collections.abc import Callable
from typing import Any, cast

import psycopg
from pydantic_core import from_json
from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, make_url, text
from sqlalchemy.exc import DisconnectionError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

SILENCE_SECONDS = 60.0
"""How long a statement may go without its answer."""
STATEMENT_SECONDS = 55
"""How long the server works on one statement."""
LIMITS = f"-c statement_timeout={STATEMENT_SECONDS}s"
"""As the `options` of a connection."""
PATIENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,  # milliseconds
    "options": LIMITS,
}
"""A Postgres server that vanished without a word is given up within 20 s. An address may say otherwise. A server that
is frozen still acknowledges, and is given up by `PatientConnection`."""
RESTED_SECONDS = 1.0
"""A connection unused for this long is asked whether it still works."""
IDLE_SECONDS = 20.0
"""How long Postgres bears a transaction whose client says nothing. A machine that vanished or stands still in mid-write
holds its rows' locks until then; less than a lease, so that its work is taken back when the lease is over."""


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


def make_engine(url: str, silence: float) -> Engine:
    """An engine whose connections end every wait. `silence`: seconds that the server may take for one answer."""
    engine = create_engine(
        _patient(make_url(url)),
        hide_parameters=True,  # an error that is logged must not tell specs and digests of keys
        isolation_level="READ COMMITTED",
        pool_size=20,  # kept once they were needed; those beyond are made for one transaction, which costs more than it
        max_overflow=10,
        pool_use_lifo=True,  # few connections stay warm, with their prepared statements; the others rest
        json_deserializer=from_json,
    )
    event.listen(engine, "do_connect", _connect_with(silence))
    event.listen(engine, "checkin", _note_rest)
    event.listen(engine, "checkout", _wake)
    event.listen(engine, "connect", _bound_session)
    event.listen(engine, "handle_error", _name_the_loss, retval=True)
    return engine


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


def _note_rest(connection: Any, record: ConnectionPoolEntry) -> None:
    record.info["rests_since"] = time.monotonic()


def _wake(connection: Any, record: ConnectionPoolEntry, _: Any) -> None:
    """One that rested may be dead: ask, and let the pool make another. Asked each time, it would cost every transaction
    one more trip to the server; one that broke during the last second fails its transaction, as it would in mid-use.
    """
    if time.monotonic() - record.info.get("rests_since", time.monotonic()) < RESTED_SECONDS:
        return
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        connection.rollback()
    except psycopg.Error as error:
        raise DisconnectionError from error


def _bound_session(connection: Any, _: Any) -> None:
    """Have the server give up on this client as this client does on the server; by itself it waits two hours."""
    limits = {f"tcp_{name}": value for name, value in PATIENCE.items() if name.startswith("keepalives")}
    limits["idle_in_transaction_session_timeout"] = round(IDLE_SECONDS * 1000)
    settings = ", ".join(["set_config(%s, %s, false)"] * len(limits))
    connection.execute(f"SELECT {settings}", [str(part) for pair in limits.items() for part in pair])
    connection.commit()


def _name_the_loss(context: ExceptionContext) -> BaseException | None:
    """The driver files a session that the server ended under other errors than a connection that broke."""
    error = context.original_exception
    if not isinstance(error, psycopg.errors.IdleInTransactionSessionTimeout):
        return None
    context.is_disconnect = True
    return OperationalError(context.statement, context.parameters, error)


def _patient(url: URL) -> URL:
    given = {name: str(value) for name, value in PATIENCE.items() if name not in url.query}
    return url.update_query_dict(given)


def _connect_with(silence: float) -> Callable[..., PatientConnection]:
    def connect(dialect: Any, record: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> PatientConnection:
        opened = PatientConnection.connect(*arguments, **options)
        opened.silence = silence
        return opened

    return connect
