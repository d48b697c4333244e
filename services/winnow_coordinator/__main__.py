"""`python -m winnow_coordinator [migrate]`: serve, or bring the database's schema up to date and end."""

import signal
import sys
from types import FrameType

import uvicorn

from winnow import telemetry
from winnow.errors import WrongSchema
from winnow.settings import Settings
from winnow.store import Database
from winnow_coordinator.app import make_app
from winnow_coordinator.context import Coordinator

STREAM_SECONDS = 5
"""How long open event streams may take to end once the process is told to stop."""


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
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STREAM_SECONDS,
    )
    return Server(config, coordinator)


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    settings = Settings()
    telemetry.configure(settings, "coordinator")
    if sys.argv[1:] == ["migrate"]:
        migrate(settings)
        return
    for sign in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again once it has shut down in order
        signal.signal(sign, _leave)
    coordinator = Coordinator.open(settings)
    try:
        coordinator.database.require_schema(or_silence=True)
        make_server(coordinator).run()
    except WrongSchema as error:
        sys.exit(str(error))
    finally:
        coordinator.close()


def migrate(settings: Settings) -> None:
    """Bring the schema up to date. Several at once take turns."""
    database = Database(settings.database_url)
    try:
        database.migrate()
    except WrongSchema as error:
        sys.exit(str(error))
    finally:
        database.close()


def _leave(sign: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    main()
