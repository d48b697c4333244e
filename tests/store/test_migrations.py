"""One set of migrations makes what the tables say, on both engines, and copes with several callers at once."""

from concurrent.futures import ThreadPoolExecutor

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect

from winnow.store import Database
from winnow.store.tables import Row


def test_migrations_build_exactly_the_tables(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Row.metadata) == []
        assert {"dataset", "round", "pick", "event"} <= set(inspect(connection).get_table_names())


def test_migrating_twice_changes_nothing(database: Database) -> None:
    database.migrate()
    database.ping()


def test_several_coordinators_may_start_at_once(database_url: str) -> None:
    opened = [Database(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Database.migrate, opened))
    for database in opened:
        database.ping()
        database.close()
