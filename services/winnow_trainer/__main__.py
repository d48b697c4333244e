"""`python -m winnow_trainer`: a Celery worker with a pool of one thread (docs/architecture.md says why)."""

import sys
from typing import Any

from celery import signals

from winnow import failpoints, telemetry
from winnow.errors import WrongSchema
from winnow.queue import make_app
from winnow.settings import Settings
from winnow_trainer import tasks
from winnow_trainer.worker import Worker

FLAGS = [
    "--quiet",  # no banner in the log
    "worker",
    *["--pool", "threads", "--concurrency", "1", "--loglevel", "WARNING", "--without-gossip", "--without-mingle"],
]


def main() -> None:
    """Work until SIGTERM, which leaves with a checkpoint."""
    settings = Settings()
    telemetry.configure(settings, "trainer")
    failpoints.arm(settings.failpoint)
    app = make_app(settings)
    worker = Worker(settings)
    tasks.register(app, worker)

    def leave(**_: Any) -> None:
        worker.leave()

    signals.worker_shutting_down.connect(leave)
    try:
        worker.database.require_schema(or_silence=True)
        worker.start()
        app.worker_main([*FLAGS, "--hostname", f"trainer-{worker.id.replace(':', '-')}@{worker.host}"])
    except WrongSchema as error:
        sys.exit(str(error))
    finally:
        worker.close()


if __name__ == "__main__":
    main()
