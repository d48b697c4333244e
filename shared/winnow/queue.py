"""The doorbell: Celery carries one id, after commit, and whoever hears it must claim the row.

A bell may be lost, late or doubled. The steward rings again for rows that wait too long, and workers look for
work themselves, so a broker that is down costs seconds and loses nothing. Nobody who commits waits for the broker.
"""

import queue
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery import Celery
from sqlalchemy import event
from sqlalchemy.orm import Session

from winnow.failpoints import Failpoint, reach
from winnow.settings import Settings
from winnow.telemetry import logger

TRAIN_TASK = "winnow.train"
INGEST_TASK = "winnow.ingest"
WAITING = 100
"""Bells that may wait for the broker; the steward rings anew for what is dropped beyond."""
CLOSE_SECONDS = 2.0
"""How long a process that ends waits for its last bells."""
_BELLS = "winnow.bells"
_AGAIN = "the steward rings again"
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
        worker_enable_remote_control=False,  # who reaches the broker may ring, and order nobody about
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
    places = {"data_folder_in": str(folder), "data_folder_out": str(folder), "control_folder": str(folder / "control")}
    return {
        "broker_url": "filesystem://localhost",
        "broker_transport": "winnow.folder_broker:Transport",
        "broker_transport_options": {**places, "polling_interval": 0.2},
    }


class Bells:
    """Rings after commit; a rollback throws the bells away.

    A thread of its own sends them, one after the other: a broker that accepts connections and does not answer takes
    ten seconds for each, and neither a request nor the steward has them.
    """

    def __init__(self, app: Celery, *, waiting: int = WAITING) -> None:
        self._app = app
        self._waiting: queue.Queue[tuple[str, str] | None] = queue.Queue(waiting)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="bells", daemon=True)
        self._thread.start()

    def ring(self, session: Session, task: str, id: str) -> None:
        """Ring for row `id` once the session's transaction is committed."""
        if _BELLS not in session.info:
            session.info[_BELLS] = []
            event.listen(session, "after_commit", self._enqueue)
            event.listen(session, "after_rollback", self._throw_away)
        session.info[_BELLS].append((task, id))

    def close(self) -> None:
        """Send what waits, and end; a broker that does not answer is not waited for."""
        with suppress(queue.Full):
            self._waiting.put(None, timeout=CLOSE_SECONDS)
            self._thread.join(CLOSE_SECONDS)
        self._closed.set()
        if self._thread.is_alive():
            _log.warning("bells.left", count=self._waiting.qsize(), next=_AGAIN)

    def _throw_away(self, session: Session) -> None:
        if not session.in_nested_transaction():
            session.info[_BELLS].clear()

    def _enqueue(self, session: Session) -> None:
        if session.in_nested_transaction():  # the end of a savepoint, which SQLAlchemy calls a commit as well
            return
        bells, session.info[_BELLS] = session.info[_BELLS], []
        for task, id in bells:
            try:
                self._waiting.put_nowait((task, id))
            except queue.Full:
                _log.warning("bell.dropped", task=task, id=id, reason="the broker is slow", next=_AGAIN)

    def _send_all(self) -> None:
        while not self._closed.is_set() and (bell := self._waiting.get()) is not None:
            self._send(*bell)

    def _send(self, task: str, id: str) -> None:
        reach(Failpoint.BELL_DUE)
        try:
            self._app.send_task(task, args=[id], retry=False, ignore_result=True)
            reach(Failpoint.BELL_RUNG)
        except Exception as error:  # whatever a broker raises, the next bell is rung
            _log.warning("bell.unheard", task=task, id=id, reason=str(error), next=_AGAIN)
