"""Postgres roles: what a trainer's and a coordinator's own password open, and what they do not."""

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import errors, sql
from services.conftest import serving
from services.trainer_parts import add_dataset, add_round, read_round
from sqlalchemy import make_url

from winnow.errors import InvalidInput
from winnow.settings import Settings
from winnow.store import Database, keys, roles
from winnow.store.claims import TRAIN
from winnow_coordinator.app import make_app
from winnow_coordinator.context import Coordinator
from winnow_trainer.worker import Worker

FORBIDDEN = [
    "SELECT digest FROM api_key",
    "SELECT body FROM idempotency_key",
    "SELECT rolpassword FROM pg_authid",
    "INSERT INTO api_key SELECT * FROM api_key",
    "INSERT INTO experiment SELECT * FROM experiment",
    "INSERT INTO pick SELECT * FROM pick",
    "INSERT INTO round SELECT * FROM round",
    "UPDATE dataset SET spec = '{}'",
    "UPDATE experiment SET spec = '{}'",
    "UPDATE experiment SET dataset_id = ''",
    "UPDATE round SET samples = 0",
    "UPDATE round SET experiment_id = ''",
    "UPDATE pick SET score = 0",
    "UPDATE sample SET label = 'TUM'",
    "UPDATE artefact SET sha256 = ''",
    "UPDATE event SET data = '{}'",
    "DELETE FROM dataset",
    "DELETE FROM event",
    "DELETE FROM experiment",
    "DELETE FROM pick",
    "DELETE FROM round",
    "TRUNCATE event",
    "DROP TABLE pick",
    "CREATE TABLE mine (id int)",
    "CREATE ROLE friend LOGIN",
    "COPY event TO PROGRAM 'cat'",
    "SET ROLE postgres",
]


@pytest.fixture
def owner(postgres_url: str) -> Iterator[Database]:
    opened = Database(postgres_url)
    opened.migrate()
    yield opened
    opened.close()


@contextmanager
def role_of(owner: Database, rights: tuple[roles.Right, ...]) -> Iterator[str]:
    """The database's address for a new role with these rights. Roles belong to the server: each test has its own."""
    name = f"winnow_{uuid.uuid4().hex[:12]}"
    roles.ensure(owner, name, "first", rights)
    url = make_url(owner.url).set(username=name, password="first")
    try:
        yield url.render_as_string(hide_password=False)
    finally:
        with _driver(owner) as connection:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture
def worker_url(owner: Database) -> Iterator[str]:
    with role_of(owner, roles.RIGHTS[roles.WORKER]) as url:
        yield url


def _driver(owner: Database) -> psycopg.Connection[Any]:
    return psycopg.connect(_address(owner.url), autocommit=True)


def _is_allowed(url: str, statement: str) -> bool:
    with psycopg.connect(_address(url)) as connection:
        try:
            connection.execute(statement.encode())
        except errors.InsufficientPrivilege:
            return False
    return True


def _address(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")


def test_the_workers_role_reads_no_key_and_writes_only_what_is_its_own(worker_url: str) -> None:
    assert not [statement for statement in FORBIDDEN if _is_allowed(worker_url, statement)]


def test_a_trainer_lives_with_the_workers_role(owner: Database, worker_url: str, tmp_path: Path) -> None:
    quick: dict[str, Any] = {"lease_seconds": 20, "renew_seconds": 0.2, "retry_seconds": 0, "threads": 1}
    worker = Worker(Settings(state_dir=tmp_path, database_url=worker_url, device="cpu", **quick))
    both: Any = SimpleNamespace(database=owner, attend=worker.attend)  # the coordinator inserts, the trainer works
    worker.start()
    try:
        assert add_dataset(both).status == "ready"
        trained = add_round(both)
        assert worker.attend(TRAIN, trained.id)
        assert read_round(both, trained).status == "trained"
        poisoned = add_round(both, rounds=1, simclr={"learning_rate": 1e30})
        assert worker.attend(TRAIN, poisoned.id)
        ended = read_round(both, poisoned)
        assert ended.status == "failed" and "nan" in str(ended.error)
    finally:
        worker.leave()
        worker.close()


def test_a_coordinator_lives_with_its_role_and_changes_no_table(owner: Database, tmp_path: Path) -> None:
    with role_of(owner, roles.RIGHTS[roles.COORDINATOR]) as url:
        coordinator = Coordinator.open(Settings(state_dir=tmp_path, database_url=url))
        with serving(make_app(coordinator)) as address, httpx.Client(base_url=f"{address}/api/v1") as api:
            body = {"name": "n", "sources": [{"kind": "synthetic"}]}
            assert api.post("/datasets", json=body, headers={"Idempotency-Key": "k"}).status_code == 202
            assert api.post("/keys", json={"name": "n", "scopes": ["read"]}).status_code == 201
            assert httpx.get(f"{address}/metrics").is_success
        coordinator.database.migrate()  # up to date: nothing to change, and nothing that needs a right to
        coordinator.close()
        beyond = ("DROP TABLE pick", "CREATE TABLE mine (id int)", "TRUNCATE event", "COPY event TO PROGRAM 'cat'")
        assert not [statement for statement in beyond if _is_allowed(url, statement)]


def test_migrating_again_changes_the_password_and_takes_back_what_is_too_much(owner: Database, worker_url: str) -> None:
    name = str(make_url(worker_url).username)
    with _driver(owner) as connection:
        connection.execute(sql.SQL("GRANT SELECT ON api_key TO {}").format(sql.Identifier(name)))
        verifiers = [_verifier(connection, name)]
        roles.ensure(owner, name, "second", roles.RIGHTS[roles.WORKER])
        verifiers.append(_verifier(connection, name))
    assert verifiers[0] != verifiers[1] and all(one.startswith("SCRAM-SHA-256$") for one in verifiers)
    assert not _is_allowed(worker_url, "SELECT 1 FROM api_key")


def _verifier(connection: psycopg.Connection[Any], name: str) -> str:
    found = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", [name]).fetchone()
    assert found is not None
    return found[0]


def test_a_superuser_is_no_role_of_a_service(owner: Database) -> None:
    name = str(make_url(owner.url).username)
    with pytest.raises(InvalidInput, match="superuser"):
        roles.ensure(owner, name, "x", roles.RIGHTS[roles.WORKER])


def test_sqlite_has_no_roles(tmp_path: Path) -> None:
    with closing(Database(f"sqlite:///{tmp_path / 'x'}")) as owner, pytest.raises(InvalidInput, match="needs Postgres"):
        roles.ensure(owner, roles.WORKER, "x", roles.RIGHTS[roles.WORKER])


def test_a_refused_statement_is_logged_without_its_values(owner: Database) -> None:
    with pytest.raises(Exception, match="hide_parameters") as failed, owner.begin() as session:
        keys.create(session, "x" * 65, ["read"], key="wnw_told-to-nobody")
    assert keys.digest_of("wnw_told-to-nobody") not in str(failed.value)
