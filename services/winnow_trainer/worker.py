"""The worker: hears bells, looks for work by itself, and works on one thing at a time."""

import os
import socket
import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import OperationalError

from winnow import __version__
from winnow.artefacts import DirectoryStore
from winnow.errors import WrongSchema
from winnow.failpoints import Failpoint, reach
from winnow.settings import Settings
from winnow.store import Database, claims, workers
from winnow.store.claims import INGEST, TRAIN, Claimed, Work
from winnow.store.tables import Dataset
from winnow.telemetry import logger
from winnow_trainer import scratch
from winnow_trainer.assignments import Assignment, Ingest, Train
from winnow_trainer.devices import CPU, Device, Devices
from winnow_trainer.lease import Lease
from winnow_trainer.standby import Standby
from winnow_trainer.supervisor import Supervisor

_log = logger("trainer.worker")


class Worker:
    """One trainer process. `attend` and `poll` may be called from different threads; one of them works at a time.

    Args:
        standby: the training process to work with, which whoever made it closes; by default one of this worker's own.
    """

    def __init__(self, settings: Settings, standby: Standby | None = None) -> None:
        self.settings = settings
        self.database = Database(settings.database_url)
        self.store = DirectoryStore(settings.artefact_dir)
        self.host = socket.gethostname()
        self.id = f"{self.host}:{os.getpid()}"
        self.leaving = threading.Event()
        self._devices = Devices(settings, self.database, self.id)
        self._standby = standby or Standby(settings.idle_seconds)
        self._owns_standby = standby is None
        self._at_work = threading.Lock()
        self._busy_with: str | None = None
        self._device: Device | None = None
        self._threads = [
            threading.Thread(target=loop, name=loop.__name__, daemon=True) for loop in (self._poll, self._report)
        ]

    def start(self) -> None:
        """Begin to look for work and to say that this worker lives."""
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """Ask whatever runs to stop at the next step and give its claim back. Returns at once."""
        self.leaving.set()

    def close(self) -> None:
        """Wait until nothing runs, and take this worker's row along."""
        self.leaving.set()
        with self._at_work:
            pass
        if self._owns_standby:
            self._standby.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(10)
        try:
            with self.database.begin() as session:
                workers.forget(session, self.id)
        except OperationalError as error:
            _log.warning("worker.unforgotten", reason=str(error.orig), next="it ages out")
        self.database.close()

    def attend(self, work: Work, id: str | None = None) -> bool:
        """Claim the row `id` (or the longest-waiting one) and work on it; False when there was nothing to claim.

        Raises nothing: whoever calls it, a bell or the poll, must hear the next one.
        """
        with self._at_work:
            try:
                return not self.leaving.is_set() and self._attend(work, id)
            except OperationalError as error:
                _log.warning("database.down", reason=str(error.orig), next="looked for work again later")
            except WrongSchema as error:
                _log.error("schema.differs", reason=str(error), next="nothing is begun; looked for work again later")
            except Exception as error:
                _log.exception("worker.stumbled", reason=str(error), next="looked for work again later")
            return False

    def _attend(self, work: Work, id: str | None) -> bool:
        ready = self._standby.device
        # An ingest's process computes on no GPU, and waits for none.
        device = CPU if work is INGEST else self._devices.take(ready.uuids if ready else ())
        if device is None:
            _log.info("devices.busy", resting=self._devices.resting, next="looked for again")
            return False
        reach(Failpoint.DEVICE_TAKEN)
        lease = Lease(self.settings.lease_seconds, time.monotonic())
        with self.database.begin() as session:
            row = claims.claim(session, work, self.id, self.settings.lease_seconds, id=id)
        if row is None:
            return False
        reach(Failpoint.WORK_CLAIMED)
        self._busy_with, self._device = row.id, device
        try:
            self._supervise(row, lease, device)
        finally:
            self._busy_with, self._device = None, None
        return True

    def _supervise(self, row: Claimed, lease: Lease, device: Device) -> None:
        supervisor = Supervisor(
            self._assignment(row),
            lease=lease,
            settings=self.settings,
            database=self.database,
            store=self.store,
            leaving=self.leaving,
            device=device,
            standby=self._standby,
        )
        supervisor.run()
        if supervisor.device_worked is not None:
            self._devices.judge(device, worked=supervisor.device_worked)

    def _assignment(self, row: Claimed) -> Assignment:
        if isinstance(row, Dataset):
            return Ingest(row, self.settings)
        return Train(row, self.settings, self.store)

    def _poll(self) -> None:
        """Look for work that no bell told of."""
        self._survive(lambda: scratch.sweep(self.settings.scratch_dir, self.database))
        while not self.leaving.wait(self.settings.poll_seconds):
            while any(self.attend(work) for work in (INGEST, TRAIN)):
                pass

    def _report(self) -> None:
        """Say that this worker lives, and keep its device."""
        while True:
            self._survive(self._say_alive)
            self._survive(self._standby.age)
            self._survive(self._keep_devices)
            if self.leaving.wait(self.settings.renew_seconds):
                return

    def _keep_devices(self) -> None:
        """Of the work under way, and of the process that waits, which ends where another worker has its device."""
        if (device := self._device) is not None:
            self._devices.keep(device)
        if (waiting := self._standby.device) is not None and not self._devices.keep(waiting):
            self._standby.let_go(waiting)

    def _survive(self, duty: Callable[[], None]) -> None:
        try:
            duty()
        except Exception as error:  # the thread must outlive a database that is down and a defect alike
            _log.warning("duty.failed", reason=str(error), next="tried again later")

    def _say_alive(self) -> None:
        devices = [{"uuid": uuid, "name": name} for uuid, name in self._devices.gpus] or [{"name": "cpu"}]
        with self.database.begin() as session:
            workers.report(
                session,
                self.id,
                host=self.host,
                pid=os.getpid(),
                devices=devices,
                version=__version__,
                busy_with=self._busy_with,
            )
