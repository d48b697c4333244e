"""Secrets: from files, never shown, and nobody listens to strangers without one."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from processes import free_port
from pydantic import ValidationError
from services.conftest import Winnow

from winnow.secret_files import with_password
from winnow.settings import SECRETS, Settings
from winnow.store import Database, keys

LONG = "0123456789abcdef01234567"


@pytest.mark.parametrize("name", SECRETS)
def test_each_secret_may_come_from_a_file(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    value = "redis://127.0.0.1/0" if name.endswith("_url") else LONG
    file = tmp_path / "secret"
    file.write_text(f"{value}\n")
    monkeypatch.setenv(f"WINNOW_{name.upper()}_FILE", str(file))
    found = getattr(Settings(state_dir=tmp_path), name)
    assert getattr(found, "get_secret_value", lambda: found)() == value
    monkeypatch.setenv(f"WINNOW_{name.upper()}", "redis://other/0")
    found = getattr(Settings(state_dir=tmp_path), name)
    assert getattr(found, "get_secret_value", lambda: found)() == "redis://other/0", "what is said outright stands"


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), (b"", "is empty"), (b"\xff\xfe", "UTF-8")])
def test_a_secret_that_is_not_in_its_file_is_no_secret_left_out(
    content: bytes | None, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("WINNOW_SAMPLER_TOKEN_FILE", str(file))
    with pytest.raises(ValidationError, match=f"WINNOW_SAMPLER_TOKEN_FILE: .*{reason}"):
        Settings(state_dir=tmp_path)


def test_passwords_are_put_into_addresses_that_have_none() -> None:
    assert with_password("postgresql+psycopg://w@db:5432/winnow", "a/b@c") == (
        "postgresql+psycopg://w:a%2Fb%40c@db:5432/winnow"
    )
    assert with_password("redis://cache:6379/0", "p") == "redis://:p@cache:6379/0"
    for url in ("redis://:own@cache/0", "sqlite:////var/x.sqlite3", "filesystem:///var/broker"):
        assert with_password(url, "p") == url
    settings = Settings(database_url="postgresql+psycopg://w@db/winnow", database_password=LONG)
    assert settings.database_url == f"postgresql+psycopg://w:{LONG}@db/winnow"


def test_settings_are_shown_without_their_secrets() -> None:
    given = {name: f"redis://:{LONG}-{name}@host/0" for name in SECRETS}
    assert LONG not in repr(Settings(**given)) and LONG not in str(Settings(**given))
    with pytest.raises(ValidationError) as refused:
        Settings(**given, lease_seconds=1, renew_seconds=1)
    assert LONG not in str(refused.value)


def _start(module: str, state: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    named = {f"WINNOW_{name.upper()}": value for name, value in variables.items()}
    environment = os.environ | {"WINNOW_STATE_DIR": str(state), **named}
    command = [sys.executable, "-m", module]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("key", ["", "short"])
def test_the_coordinator_does_not_listen_off_loopback_without_a_key(key: str, tmp_path: Path) -> None:
    with closing(Database(f"sqlite:///{tmp_path / 'winnow.sqlite3'}")) as database:
        database.migrate()
    place = {"coordinator_host": "0.0.0.0", "coordinator_port": str(free_port())}
    ended = _start("winnow_coordinator", tmp_path, bootstrap_key=key, **place)
    assert ended.returncode == 1 and "WINNOW_BOOTSTRAP_KEY" in ended.stderr and "openssl" in ended.stderr


def test_an_admin_key_in_the_database_is_one(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'winnow.sqlite3'}")
    database.migrate()
    with database.begin() as session:
        assert not keys.any_admin(session)
        row, _ = keys.create(session, "n", ["run"])
        assert not keys.any_admin(session)
        row, _ = keys.create(session, "n", ["admin"])
        assert keys.any_admin(session)
        keys.revoke(session, row.id)
        assert not keys.any_admin(session)
    database.close()


@pytest.mark.parametrize("token", ["", "short"])
def test_the_sampler_does_not_listen_off_loopback_without_a_token(token: str, tmp_path: Path) -> None:
    place = {"sampler_host": "0.0.0.0", "sampler_port": str(free_port())}
    ended = _start("winnow_sampler", tmp_path, sampler_token=token, **place)
    assert ended.returncode == 1 and "WINNOW_SAMPLER_TOKEN" in ended.stderr


def test_the_command_line_reads_its_key_from_a_file(
    winnow: Winnow, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WINNOW_API_KEY_FILE", str(tmp_path / "key"))
    assert "WINNOW_API_KEY_FILE" in winnow("list").err
    (tmp_path / "key").write_text("wnw_wrong\n")
    assert "unknown or revoked" in winnow("list").err, "the coordinator was sent what the file holds"
