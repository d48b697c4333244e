"""`python -m winnow_coordinator [migrate]`: serve, or bring the database's schema up to date and end."""

import gc
import signal
import sys
from types import FrameType

import uvicorn

from winnow import failpoints, telemetry
from winnow.errors import WrongSchema
from winnow.perimeter import LEAST_SECRET, LIMITS
from winnow.settings import Settings, is_loopback
from winnow.store import Database, keys, roles
from winnow_coordinator.app import make_app
from winnow_coordinator.context import Coordinator

STREAM_SECONDS = 5
"""How long open event streams may take to end once the process is told to stop."""

COLLECTED_AFTER = 10_000
"""Objects made and kept since the last look, by default 700."""


class Server(uvicorn.Server):
    """Tells the event streams that the process stops; uvicorn alone would wait for them."""

    def __init__(self, config: uvicorn.Config, coordinator: Coordinator) -> None:
        super().__init__(config)
        self._coordinator = coordinator

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._coordinator.stopping.set()
        super().handle_exit(sig, frame)


def make_server(coordinator: Coordinator) -> Server:
    """A server for the settings' host and port."""
    settings = coordinator.settings
    config = uvicorn.Config(
        make_app(coordinator),
        host=settings.coordinator_host,
        port=settings.coordinator_port,
        timeout_graceful_shutdown=STREAM_SECONDS,
        **LIMITS,
    )
    return Server(config, coordinator)


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    settings = Settings()
    telemetry.configure(settings, "coordinator")
    failpoints.arm(settings.failpoint)
    if sys.argv[1:] == ["migrate"]:
        migrate(settings)
        return
    for sign in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again once it has shut down in order
        signal.signal(sign, _leave)
    coordinator = Coordinator.open(settings)
    try:
        coordinator.database.require_schema(or_silence=True)
        require_key(coordinator)
        server = make_server(coordinator)
        settle_memory()
        server.run()
    except WrongSchema as error:
        sys.exit(str(error))
    finally:
        coordinator.close()


def migrate(settings: Settings) -> None:
    """Bring the schema up to date, and the roles of services that were given a password. Several at once take turns.

    Raises InvalidInput.
    """
    database = Database(settings.database_url)
    passwords = {roles.COORDINATOR: settings.coordinator_role_password, roles.WORKER: settings.worker_role_password}
    try:
        database.migrate()
        for role, password in passwords.items():
            if text := password.get_secret_value():
                roles.ensure(database, role, text, roles.RIGHTS[role])
    except WrongSchema as error:
        sys.exit(str(error))
    finally:
        database.close()


def require_key(coordinator: Coordinator) -> None:
    """Exit, saying what to do, rather than listen to strangers without a key that is worth one."""
    settings = coordinator.settings
    if is_loopback(settings.coordinator_host):
        return
    first = settings.bootstrap_key.get_secret_value()
    if first and len(first) < LEAST_SECRET:
        sys.exit(f"off loopback WINNOW_BOOTSTRAP_KEY needs {LEAST_SECRET} characters: openssl rand -hex 32")
    if first:
        return
    with coordinator.database.read() as session:
        if not keys.any_admin(session):
            sys.exit(
                "off loopback the coordinator needs a key: set WINNOW_BOOTSTRAP_KEY; openssl rand -hex 32 makes one"
            )


def settle_memory() -> None:
    """What lives as long as the process is not looked through again by the garbage collector, which also comes less
    often: a list of 500 experiments alone makes more objects than Python's default calls for a look at."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECTED_AFTER, *gc.get_threshold()[1:])


def _leave(sign: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    main()
