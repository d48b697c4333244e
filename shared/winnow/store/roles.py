"""Postgres roles with the rights that a service needs, and no others. SQLite knows no roles.

The owner of the tables migrates and grants, and serves nothing. A coordinator reads and writes rows. A trainer claims
work and says how it went: it can neither read keys, nor begin an experiment, nor change a spec, a pick or an event.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import LiteralString, cast

import psycopg
from psycopg import sql
from sqlalchemy import Connection, text

from winnow.errors import InvalidInput
from winnow.store.engine import Database
from winnow.store.tables import (
    Artefact,
    Claimable,
    Dataset,
    DeviceLease,
    Event,
    Experiment,
    Pick,
    Round,
    Row,
    Sample,
    Worker,
)

COORDINATOR, WORKER = "winnow_coordinator", "winnow_worker"
_CLAIM = tuple(Claimable.__annotations__)
_ALL = ("SELECT", "INSERT", "UPDATE", "DELETE")


@dataclass(frozen=True)
class Right:
    """What may be done to a table; `columns` narrows an UPDATE."""

    table: type[Row]
    actions: tuple[LiteralString, ...]
    columns: tuple[str, ...] = ()


RIGHTS: dict[str, tuple[Right, ...]] = {
    COORDINATOR: tuple(Right(mapper.class_, _ALL) for mapper in Row.registry.mappers),
    WORKER: (
        *(Right(table, ("SELECT",)) for table in (Dataset, Experiment, Round, Pick)),
        Right(Dataset, ("UPDATE",), (*_CLAIM, "status", "classes", "counts", "report", "location")),
        Right(Round, ("UPDATE",), (*_CLAIM, "status", "visits", "seconds", "metrics", "report", "ended_at")),
        Right(Experiment, ("UPDATE",), ("status", "error", "events", "ended_at")),
        *(Right(table, ("SELECT", "INSERT", "DELETE")) for table in (Sample, Artefact)),
        Right(Event, ("SELECT", "INSERT")),
        *(Right(table, _ALL) for table in (Worker, DeviceLease)),
    ),
}


def ensure(database: Database, role: str, password: str, rights: tuple[Right, ...]) -> None:
    """Make `role` log in with `password` and have `rights`, whatever it had before. Run by the owner of the tables.

    Raises InvalidInput for a database without roles, and for a role that is a superuser's.
    """
    if database.engine.dialect.name != "postgresql":
        raise InvalidInput("database_url", f"the role {role} needs Postgres; leave its password out")
    with database.migrating() as connection:
        driver = cast("psycopg.Connection", connection.connection.driver_connection)
        verb = "ALTER" if _exists(connection, role) else "CREATE"
        for statement in _statements(verb, role, _verifier(driver, role, password), rights):
            driver.execute(statement)


def _exists(connection: Connection, role: str) -> bool:
    found = connection.execute(text("SELECT rolsuper FROM pg_roles WHERE rolname = :role"), {"role": role}).first()
    if found is not None and found.rolsuper:
        raise InvalidInput("database_url", f"{role} is a superuser, whom no grant holds; give it NOSUPERUSER first")
    return found is not None


def _verifier(driver: psycopg.Connection, role: str, password: str) -> str:
    """What the server stores of a password. Sent in its place, so that no log of statements has the password."""
    return driver.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()


def _statements(verb: LiteralString, role: str, verifier: str, rights: tuple[Right, ...]) -> Iterator[sql.Composed]:
    name = sql.Identifier(role)
    yield sql.SQL("{} ROLE {} LOGIN NOINHERIT PASSWORD {}").format(sql.SQL(verb), name, sql.Literal(verifier))
    yield sql.SQL("REVOKE CREATE ON SCHEMA public FROM PUBLIC, {}").format(name)
    yield sql.SQL("GRANT USAGE ON SCHEMA public TO {}").format(name)
    yield sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {}").format(name)
    yield sql.SQL("GRANT SELECT ON alembic_version TO {}").format(name)
    for right in rights:
        actions = sql.SQL(", ").join(map(sql.SQL, right.actions))
        if right.columns:
            narrowed = sql.SQL(", ").join(map(sql.Identifier, right.columns))
            actions = sql.SQL("{} ({})").format(actions, narrowed)
        yield sql.SQL("GRANT {} ON {} TO {}").format(actions, sql.Identifier(right.table.__tablename__), name)
