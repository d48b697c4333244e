"""The doorbell: Celery carries one id, after commit, and whoever hears it must claim the row.

A bell may be lost, late or doubled. The steward rings again for rows that wait too long, and workers look for
work themselves, so a broker that is down costs seconds and loses nothing.
"""

from pathlib import Path
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy import event
from sqlalchemy.orm import Session

from winnow.settings import Settings
from winnow.telemetry import logger

TRAIN_TASK = "winnow.train"
INGEST_TASK = "winnow.ingest"
_BELLS = "winnow.bells"
_log = logger("queue")


def make_app(settings: Settings) -> Celery:
    """Celery as docs/architecture.md argues: JSON only, no results, early ack, one message at a time."""
    app = Celery("winnow", set_as_current=False)
    app.conf.update(
        **_transport(settings.broker_url),
        task_default_queue="winnow",
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=settings.broker_url.startswith("redis"),
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=5,
    )
    return app


def _transport(url: str) -> dict[str, Any]:
    if not url.startswith("filesystem://"):
        patience = {
            "visibility_timeout": 3600,
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
        }
        return {"broker_url": url, "broker_transport_options": patience}
    folder = Path(url.removeprefix("filesystem://"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "control").mkdir(exist_ok=True)
    both = {"data_folder_in": str(folder), "data_folder_out": str(folder), "control_folder": str(folder / "control")}
    return {"broker_url": "filesystem://localhost", "broker_transport_options": both}


class Bells:
    """Rings after commit; a rollback throws the bells away."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def ring(self, session: Session, task: str, id: str) -> None:
        """Ring for row `id` once the session's transaction is committed."""
        if _BELLS not in session.info:
            session.info[_BELLS] = []
            event.listen(session, "after_commit", self._ring_all)
            event.listen(session, "after_rollback", lambda s: s.info[_BELLS].clear())
        session.info[_BELLS].append((task, id))

    def _ring_all(self, session: Session) -> None:
        bells, session.info[_BELLS] = session.info[_BELLS], []
        for task, id in bells:
            self._send(task, id)

    def _send(self, task: str, id: str) -> None:
        try:
            self._app.send_task(task, args=[id], retry=False, ignore_result=True)
        except (OperationalError, OSError) as error:
            _log.warning("bell.unheard", task=task, id=id, reason=str(error), next="the steward rings again")
