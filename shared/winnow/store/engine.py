"""The engine and the session: where SQLite and Postgres differ (winnow.store.postgres has its part), and nowhere else.

Isolation is pinned. Postgres: READ COMMITTED, because every write that matters is one guarded UPDATE whose row count
is read, and a stricter level would only turn a lost race into an exception. SQLite: BEGIN IMMEDIATE, because a
deferred transaction that reads first and writes later fails at once, without waiting, when another wrote in between.
"""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import psycopg
from alembic import command
from alembic.config import Config
from psycopg import sql
from sqlalchemy import Connection, Engine, Float, create_engine, event, insert, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.functions import FunctionElement

from winnow.failpoints import Failpoint, reach
from winnow.store import postgres, schema
from winnow.store.tables import Row

MIGRATION_LOCK = 0x57494E4E  # "WINN"
MIGRATION_SECONDS = 3600
"""How long SQLite waits for another process that migrates."""
BUSY_SECONDS = 10
"""How long SQLite waits for another writer: two waits and a renewal between them fit into a lease of 28 s."""
_PAUSE = 0.01
_TURN = 0.1
_HERE = Path(__file__).resolve()


class now(FunctionElement[float]):  # noqa: N801 - reads as the SQL function it is
    """Seconds since the epoch by the database's clock, so that no two machines' clocks are ever compared."""

    type = Float(53)
    inherit_cache = True


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: Any, **_: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


class Database:
    """One engine and its sessions.

    Args:
        url: `sqlite:///FILE` or `postgresql+psycopg://…`; plain `postgresql://` is read as psycopg 3.
        silence: seconds that a Postgres server may take for one answer; then the call raises OperationalError.
    """

    def __init__(self, url: str, *, silence: float = postgres.SILENCE_SECONDS) -> None:
        self.url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        is_postgres = self.url.startswith("postgresql")
        self.engine = postgres.make_engine(self.url, silence) if is_postgres else _sqlite(self.url)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._reads = sessionmaker(_for_reads(self.engine), expire_on_commit=False)

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        with self._sessions() as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Only reads: on SQLite one transaction, which waits for no writer; on Postgres each statement by itself."""
        with self._reads() as session:  # closed, not committed: there is nothing to keep
            yield session

    def migrate(self) -> None:
        """Bring the schema up to date. Several processes may call it at once: one migrates, the others wait.

        Raises WrongSchema for a database that newer code has migrated.
        """
        with self.migrating() as connection:
            schema.require_not_newer(connection)
            command.upgrade(alembic_config(connection), "head")
            reach(Failpoint.SCHEMA_CHANGED)
        reach(Failpoint.SCHEMA_MIGRATED)

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """The migration lock, and the one transaction in which the schema changes: all of it or nothing."""
        engine = self.engine.execution_options(may_wait=True)
        with engine.connect() as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                postgres.wait_for_lock(connection, MIGRATION_LOCK)
            yield connection  # on SQLite BEGIN IMMEDIATE is the lock

    def require_schema(self, *, or_silence: bool = False) -> None:
        """Raise WrongSchema unless the database has the schema of this code.

        `or_silence`: one that does not answer will do for a process that starts; every claim looks again.
        """
        try:
            with self.read() as session:
                schema.require(session)
        except OperationalError:
            if not or_silence:
                raise

    def ping(self) -> None:
        """Raise OperationalError unless the database answers."""
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    @property
    def turn(self) -> float:
        """Seconds that many transactions in a row leave to others between two: SQLite hands its lock to nobody, and who
        waits for it looks every tenth of a second. On Postgres those who wait are next."""
        return _TURN if self.engine.dialect.name == "sqlite" else 0.0

    def close(self) -> None:
        self.engine.dispose()


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration for `connection`, from a wheel or from a checkout."""
    packaged = _HERE.parent / "migrations"
    config = Config()
    config.set_main_option("script_location", str(packaged if packaged.is_dir() else _HERE.parents[3] / "migrations"))
    config.attributes["connection"] = connection
    return config


def insert_rows(session: Session, table: type[Row], rows: Sequence[dict[str, Any]]) -> None:
    """Insert many rows, their values as the driver takes them: COPY on Postgres (a statement there takes 65,535
    parameters at most), executemany on SQLite, where building statements would cost four times what inserting does.
    """
    if not rows:
        return
    connection = session.connection()
    columns = {table.__mapper__.columns[name].name: name for name in rows[0]}
    if connection.dialect.name != "postgresql":
        statement = insert(table).compile(dialect=connection.dialect, column_keys=columns)
        in_order = itemgetter(*(columns[name] for name in statement.positiontup or ()))
        connection.exec_driver_sql(str(statement), [in_order(row) for row in rows])
        return
    target = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table.__tablename__), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    driver = cast("psycopg.Connection", connection.connection.driver_connection)
    with driver.cursor() as cursor, cursor.copy(target) as copy:
        for row in rows:
            copy.write_row(list(row.values()))


def _for_reads(engine: Engine) -> Engine:
    """The same connections for reads. At READ COMMITTED a transaction shows several statements no more of one moment
    than they see without one; it only costs two more trips to the server.
    """
    level = {"isolation_level": "AUTOCOMMIT"} if engine.dialect.name == "postgresql" else {}
    return engine.execution_options(reads_only=True, **level)


def _sqlite(url: str) -> Engine:
    file = make_url(url).database
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        url,
        hide_parameters=True,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        poolclass=NullPool,  # the last connection to close leaves all in the one file, which people copy
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own
    _switch_to_wal(connection)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Nothing is left to do for any but the first connections to a new file. While several of them are at it, all but
    one are told at once that the file is locked: SQLite's own waiting does not cover this pragma.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # the low byte; the rest says of which kind
            if not is_busy or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)  # nothing to wait on: SQLite tells nobody when a lock is free


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get("may_wait", False):  # others may migrate for minutes
        connection.exec_driver_sql(f"PRAGMA busy_timeout={MIGRATION_SECONDS * 1000}")
    reads_only = options.get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")
