"""Which schema the code is written for, and whether the database has it."""

from sqlalchemy import Connection, inspect, text
from sqlalchemy.orm import Session

from winnow.errors import WrongSchema

SCHEMA = "0004"
"""The newest of migrations/versions; a test holds the two together."""


def found(connection: Connection) -> str | None:
    """The revision of the database; None where it has no tables yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(text("SELECT version_num FROM alembic_version"))


def require(session: Session) -> None:
    """Raise WrongSchema unless the database has the schema that this code is written for."""
    if (revision := found(session.connection())) != SCHEMA:
        raise WrongSchema(revision, SCHEMA)


def require_not_newer(connection: Connection) -> None:
    """Raise WrongSchema if newer code has migrated the database."""
    if (revision := found(connection)) is not None and revision > SCHEMA:
        raise WrongSchema(revision, SCHEMA)
