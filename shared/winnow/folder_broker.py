"""Celery's broker in a folder, for a stack without Redis: kombu's, made safe for several processes.

kombu 5.7 writes a message under its final name, so a worker may take it while it is empty; the error ends the
worker. Exchange tables are created empty in the same way. Here a message appears whole or not at all, whoever
touches a table holds a lock, and a message that cannot be read (a machine that lost power) is passed over.
"""

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps

from winnow.telemetry import logger

_log = logger("queue")


class Channel(filesystem.Channel):
    """kombu's channel, with the three steps that other processes could see half done."""

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:
        name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
        folder = Path(self.data_folder_out)
        hidden = folder / f".{name}.part"  # readers look for names that end on the queue's
        try:
            hidden.write_text(dumps(payload))
            hidden.replace(folder / name)
        except OSError:
            hidden.unlink(missing_ok=True)
            raise

    def _get(self, queue: str) -> Any:
        while True:
            try:
                return super()._get(queue)
            except ValueError as error:  # kombu took the file away before it read it: the next call sees the next one
                _log.warning("bell.unreadable", reason=str(error), next="the steward rings again")

    def get_table(self, exchange: str) -> Any:
        with self._alone():
            return super().get_table(exchange)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str | None, queue: str) -> None:
        with self._alone():
            super()._queue_bind(exchange, routing_key, pattern, queue)

    def _delete(self, *args: Any, **kwargs: Any) -> None:
        with self._alone():
            super()._delete(*args, **kwargs)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the exchange tables; nobody who holds them calls another of these."""
        descriptor = os.open(self.control_folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class Transport(filesystem.Transport):
    """Named in Celery's `broker_transport`."""

    Channel = Channel
