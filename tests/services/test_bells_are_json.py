"""What a trainer does with a message that is no bell: a pickle is not opened, an order is not followed."""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from conftest import wait_until

from winnow.queue import TRAIN_TASK, make_app
from winnow.settings import Settings


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def app(redis_url: str, tmp_path: Path) -> Iterator[Celery]:
    made = make_app(Settings(state_dir=tmp_path, broker_url=redis_url))
    made.conf.update(task_default_queue=f"winnow-{os.getpid()}")  # a trainer of another test shares the server
    yield made
    made.close()


@contextmanager
def hearing(app: Celery) -> Iterator[list[str]]:
    """Ids of the bells that a worker with the program's settings hears."""
    heard: list[str] = []

    @app.task(name=TRAIN_TASK, shared=False)
    def train(id: str) -> None:
        heard.append(id)

    with start_worker(app, pool="threads", concurrency=1, perform_ping_check=False, shutdown_timeout=30):
        yield heard


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_pickle_in_the_queue_is_thrown_away_unopened(app: Celery, tmp_path: Path) -> None:
    mark = tmp_path / "opened"
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists(), "the payload works"
    mark.unlink()
    with hearing(app) as heard:
        with app.connection_for_write() as connection, connection.Producer() as producer:
            headers = {"task": TRAIN_TASK, "id": "x", "lang": "py"}
            kind = {"content_type": "application/x-python-serialize", "content_encoding": "binary"}
            body = pickle.dumps(((Payload(mark),), {}, {}))
            producer.publish(body, routing_key=app.conf.task_default_queue, headers=headers, **kind)
        app.send_task(TRAIN_TASK, args=["round-1"], ignore_result=True)
        wait_until(lambda: heard, 30, "the bell behind the pickle")
    assert heard == ["round-1"] and not mark.exists()


def test_nobody_orders_a_trainer_about_through_the_broker(app: Celery) -> None:
    with hearing(app) as heard:
        app.control.shutdown()
        app.send_task(TRAIN_TASK, args=["round-1"], ignore_result=True)
        wait_until(lambda: heard, 30, "a bell after the order to shut down")
        assert app.control.ping(timeout=0.5) == []
