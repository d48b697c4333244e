"""One set of migrations makes what the tables say, on both engines, and copes with several callers at once."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from store.conftest import add_dataset, add_experiment

from winnow.errors import Fenced, WrongSchema
from winnow.store import Database, claims, rounds
from winnow.store.claims import TRAIN
from winnow.store.engine import alembic_config
from winnow.store.schema import SCHEMA
from winnow.store.tables import Row

MIGRATE = [sys.executable, "-m", "winnow_coordinator", "migrate"]


def set_revision(database: Database, revision: str | None) -> None:
    with database.begin() as session:
        session.execute(text("DELETE FROM alembic_version"))
        if revision is not None:
            session.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": revision})


def test_migrations_build_exactly_the_tables(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Row.metadata) == []
        assert {"dataset", "round", "pick", "event"} <= set(inspect(connection).get_table_names())
        assert ScriptDirectory.from_config(alembic_config(connection)).get_heads() == [SCHEMA]


def test_migrating_twice_changes_nothing(database: Database) -> None:
    database.migrate()
    database.require_schema()


def test_several_coordinators_may_start_at_once(database_url: str) -> None:
    opened = [Database(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Database.migrate, opened))
    for database in opened:
        database.require_schema()
        database.close()


def test_the_first_connections_to_a_new_file_may_all_come_at_once(tmp_path: Path) -> None:
    for number in range(20):
        opened = [Database(f"sqlite:///{tmp_path / f'{number}.sqlite3'}") for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(Database.ping, opened))
        for database in opened:
            database.close()


def environment(url: str) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), "WINNOW_DATABASE_URL": url}


def migrate_in_processes(url: str, count: int) -> list[subprocess.CompletedProcess[str]]:
    def run(_: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(MIGRATE, env=environment(url), capture_output=True, text=True, timeout=300, check=False)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_processes_that_migrate_at_once_take_turns(database_url: str) -> None:
    ended = migrate_in_processes(database_url, 5)
    assert [one.returncode for one in ended] == [0] * 5, [one.stderr for one in ended]
    database = Database(database_url)
    database.require_schema()
    with database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM alembic_version")) == 1
    database.close()


def test_whoever_comes_while_another_migrates_waits_for_its_end(database_url: str) -> None:
    first, second = Database(database_url), Database(database_url)
    with ThreadPoolExecutor(1) as pool:
        with first.migrating() as connection:
            waiting = pool.submit(second.migrate)
            connection.execute(text("CREATE TABLE half_done (id INTEGER)"))
            with pytest.raises(TimeoutError):
                waiting.result(0.5)
            connection.rollback()  # it dies half-way
        waiting.result(60)
    second.require_schema()
    with second.engine.connect() as connection:
        assert "half_done" not in inspect(connection).get_table_names()
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        ("9999", f"has schema 9999, and this program is written for schema {SCHEMA}: update this program"),
        ("0000", "has schema 0000, .* migrate` of this version first"),
        (None, "has no tables, .* migrate` of this version first"),
    ],
)
def test_another_schema_is_told_with_what_to_do(database: Database, revision: str | None, said: str) -> None:
    set_revision(database, revision)
    with pytest.raises(WrongSchema, match=said):
        database.require_schema()


def test_a_database_that_was_never_migrated_is_told(database_url: str) -> None:
    database = Database(database_url)
    with pytest.raises(WrongSchema, match="has no tables"):
        database.require_schema()
    database.close()


def test_older_code_neither_migrates_nor_serves(database: Database, database_url: str, tmp_path: Path) -> None:
    set_revision(database, "9999")
    (ended,) = migrate_in_processes(database_url, 1)
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1].endswith("update this program")
    for module in ("winnow_coordinator", "winnow_trainer"):
        mine = environment(database_url) | {"WINNOW_STATE_DIR": str(tmp_path / "state")}
        command = [sys.executable, "-m", module]
        said = subprocess.run(command, env=mine, capture_output=True, text=True, timeout=120, check=False)
        assert said.returncode == 1 and "update this program" in said.stderr


def test_a_round_in_flight_across_an_upgrade_finishes_and_none_is_begun(database: Database) -> None:
    dataset = add_dataset(database)
    for _ in range(2):
        add_experiment(database, dataset)
    with database.begin() as session:
        row = claims.claim(session, TRAIN, "w", 30)
        assert row is not None
    set_revision(database, "9999")
    with database.begin() as session:
        claims.renew(session, TRAIN, row.id, 1, 30, {"epoch": 1})
    with pytest.raises(WrongSchema), database.begin() as session:
        claims.claim(session, TRAIN, "w", 30)
    with database.begin() as session:
        result = {"visits": 1, "seconds": {}, "metrics": {}, "report": {}}
        rounds.complete_training(session, row.id, 1, result=result, rows=[])
    with database.read() as session:
        assert {one.status for one in claims.expired(session, TRAIN)} == set()
    set_revision(database, SCHEMA)
    with database.begin() as session:
        second = claims.claim(session, TRAIN, "w", 30)
        assert second is not None and (second.attempt, second.id != row.id) == (1, True), "a refused claim left no mark"
    with pytest.raises(Fenced), database.begin() as session:
        claims.renew(session, TRAIN, row.id, 1, 30, None)


def test_a_database_that_is_away_does_not_keep_a_process_from_starting() -> None:
    away = Database("postgresql://winnow@127.0.0.1:1/winnow?connect_timeout=2")
    away.require_schema(or_silence=True)
    away.close()
