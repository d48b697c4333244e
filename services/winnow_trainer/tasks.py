"""The tasks that bells call. Each takes one id: claim or return, work, finish."""

from celery import Celery

from winnow.failpoints import Failpoint, reach
from winnow.queue import INGEST_TASK, TRAIN_TASK
from winnow.store.claims import INGEST, TRAIN, Work
from winnow_trainer.worker import Worker


def register(app: Celery, worker: Worker) -> None:
    """Make `worker` answer the bells of `app`."""

    def hear(work: Work, id: str) -> None:
        reach(Failpoint.BELL_HEARD)
        worker.attend(work, id)

    @app.task(name=TRAIN_TASK)
    def train(id: str) -> None:
        hear(TRAIN, id)

    @app.task(name=INGEST_TASK)
    def ingest(id: str) -> None:
        hear(INGEST, id)
