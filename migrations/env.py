"""Alembic's entry: from the program it gets a connection, from the shell it reads WINNOW_DATABASE_URL."""

from alembic import context

from winnow.settings import Settings
from winnow.store.engine import Database
from winnow.store.tables import Row


def run(connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Row.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with Database(Settings().database_url).migrating() as opened:
        run(opened)
