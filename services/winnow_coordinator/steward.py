"""The steward: threads that look after leases and bells, that pick, and that sweep. None holds up the others."""

import os
import socket
import threading
from collections.abc import Callable
from functools import partial

from sqlalchemy.exc import OperationalError

from winnow.errors import WrongSchema
from winnow.telemetry import logger
from winnow_coordinator.context import Coordinator
from winnow_coordinator.housekeeping import Housekeeper
from winnow_coordinator.picking import Picker
from winnow_coordinator.tidying import Tidier

PICKERS = 2
PICK_SECONDS = 0.25
"""Between looks for a trained round: until it is picked for, nothing trains."""
DIFFERENT_SECONDS = 30.0
"""Between tries on a database whose schema is another version's."""
_log = logger("coordinator.steward")


class Steward:
    """One thread that tidies, one that sweeps and a few that pick, from `start` to `stop`."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._pickers: list[Picker] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        host = socket.gethostname()
        self._pickers = [Picker(self._coordinator, f"steward-{host}-{os.getpid()}-{n}") for n in range(PICKERS)]
        tidier, pause = Tidier(self._coordinator), self._coordinator.settings.steward_seconds
        self._run("tidier", tidier.tidy, pause)
        self._run("housekeeper", Housekeeper(self._coordinator).step, pause)
        for n, picker in enumerate(self._pickers):
            pick = partial(_pick_all, self._coordinator, picker)
            self._run(f"picker-{n}", pick, min(pause, PICK_SECONDS))

    def stop(self) -> None:
        """End the threads; a pick in flight is given back."""
        self._coordinator.stopping.set()
        for thread in self._threads:
            thread.join()
        for picker in self._pickers:
            picker.close()

    def _run(self, name: str, work: Callable[[], None], pause: float) -> None:
        thread = threading.Thread(target=self._repeat, args=(name, work, pause), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _repeat(self, name: str, work: Callable[[], None], pause: float) -> None:
        wait = pause
        while not self._coordinator.stopping.is_set():
            try:
                work()
                wait = pause
            except WrongSchema as error:
                _log.error("schema.differs", thread=name, reason=str(error), next="nothing is begun")
                wait = DIFFERENT_SECONDS
            except OperationalError as error:
                _log.error("database.down", thread=name, reason=str(error.orig), next="tried again in a moment")
                wait = self._coordinator.settings.steward_seconds
            except Exception as error:  # the thread must outlive a defect
                _log.exception("steward.stumbled", thread=name, reason=str(error), next="goes on in a moment")
                wait = self._coordinator.settings.steward_seconds
            self._coordinator.stopping.wait(wait)


def _pick_all(coordinator: Coordinator, picker: Picker) -> None:
    while not coordinator.stopping.is_set() and picker.pick_next():
        pass
