"""Which device a child computes on: the one that is set, else a free GPU of this host, else the CPU."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy.orm import Session

from winnow.settings import Settings
from winnow.store import Database, workers
from winnow.telemetry import logger

SMI_SECONDS = 120
"""Without persistence mode, the driver is loaded for each of many GPUs first."""
REST_SECONDS = 60.0
LONGEST_REST = 600.0
_log = logger("trainer.devices")


@dataclass(frozen=True)
class Device:
    """`name` as torch knows it in the child, the child's environment, and how many processes share the work."""

    name: str
    environment: dict[str, str]
    uuids: tuple[str, ...] = ()
    count: int = 1


CPU = Device("cpu", {"CUDA_VISIBLE_DEVICES": ""})


def find_gpus() -> list[tuple[str, str]]:
    """(uuid, name) of the GPUs this process was given: of CUDA_VISIBLE_DEVICES, in its order, where it is set."""
    found, visible = _list_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    given: list[tuple[str, str]] = []
    for word in map(str.strip, visible.split(",")):
        gpu = _find(found, word)
        if gpu is None:
            return given  # as CUDA reads it: nothing behind a word that names no GPU
        given.append(gpu)
    return given


def _find(gpus: list[tuple[str, str]], word: str) -> tuple[str, str] | None:
    """The GPU that `word` means: a number, or the beginning of one uuid."""
    if word.startswith("MIG-"):
        return word, "MIG instance"  # CUDA knows it, nvidia-smi's list of GPUs does not
    if word.isdigit():
        return gpus[int(word)] if int(word) < len(gpus) else None
    named = [gpu for gpu in gpus if word and gpu[0].startswith(word)]
    return named[0] if len(named) == 1 else None


def _list_gpus() -> list[tuple[str, str]]:
    """This host's GPUs, by nvidia-smi; none where it is not there. torch is not loaded for this.

    Where one of several is lost, nvidia-smi fails and lists the others all the same.
    """
    command = ["nvidia-smi", "--query-gpu=uuid,name", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=False)
    except FileNotFoundError:
        return []
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("nvidia-smi.failed", reason=str(error), next="goes on as if there were no GPU")
        return []
    if listed.returncode:
        reason = " ".join((listed.stderr + listed.stdout).split())
        _log.warning("nvidia-smi.failed", reason=reason[:500], next="goes on with the GPUs that it lists")
    pairs = (line.partition(", ") for line in listed.stdout.splitlines() if line.startswith("GPU-"))
    return [(uuid.strip(), name.strip()) for uuid, _, name in pairs]


def find_machine() -> str:
    """What tells this machine from others. Containers on it have a hostname each and would share a GPU unawares."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


class Devices:
    """The GPUs that this worker may use. A GPU is leased in the database by (host, uuid)."""

    def __init__(
        self, settings: Settings, database: Database, owner: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._database, self._owner, self._clock = settings, database, owner, clock
        self._rests: dict[str, tuple[int, float]] = {}  # by uuid: failures in a row, and until when it rests
        self._host = find_machine()
        self.gpus = [] if settings.device == "cpu" else find_gpus()
        if settings.device.startswith("cuda") and not self.gpus:
            raise SystemExit(
                f"WINNOW_DEVICE={settings.device}, but there is no GPU here (nvidia-smi and CUDA_VISIBLE_DEVICES say "
                "which there are); set it to auto or cpu"
            )
        if ":" in settings.device:
            self.gpus = self.gpus[_number(settings.device, len(self.gpus)) :][:1]
        if self.gpus and len(self.gpus) < settings.devices:
            raise SystemExit(
                f"WINNOW_DEVICES={settings.devices}, but GPUs to use here are {len(self.gpus)}; set it to that or less"
            )
        _log.info("devices.found", setting=settings.device, gpus=[name for _, name in self.gpus] or "none: CPU")

    def take(self, ready: Sequence[str] = ()) -> Device | None:
        """Lease as many devices as share a round; None while others hold too many of them.

        Those that are `ready` come first: a process of ours waits on them, and holds their memory.
        """
        count = self._settings.devices
        if not self.gpus:
            return replace(CPU, count=count)
        resting = self.resting
        well = [uuid for uuid, _ in self.gpus if uuid not in resting]
        wanted = sorted(well, key=lambda uuid: ready.index(uuid) if uuid in ready else len(ready))
        with self._database.begin() as session:
            leased = {uuid for uuid in sorted(well) if self._lease(session, uuid)}  # two that wait, wait in one order
            mine = [uuid for uuid in wanted if uuid in leased][:count]
            if len(mine) < count:  # whoever waits for the same ones must not wait for these
                workers.release_devices(session, self._host, self._owner, but=resting)
                return None
            workers.release_devices(session, self._host, self._owner, but=[*mine, *resting])
        return Device("cuda", {"CUDA_VISIBLE_DEVICES": ",".join(mine)}, tuple(mine), count)

    def keep(self, device: Device) -> bool:
        """Renew the leases of a device; whether they are ours still."""
        with self._database.begin() as session:
            renewed = [self._lease(session, uuid) for uuid in sorted(device.uuids)]
        return all(renewed)

    @property
    def resting(self) -> list[str]:
        """Those that are not to be used for now. They stay leased: no other worker of this host is to find out."""
        return [uuid for uuid, (_, until) in self._rests.items() if self._clock() < until]

    def judge(self, device: Device, *, worked: bool) -> None:
        """Have a device that ended its work rest, twice as long each time; one that did its work is well."""
        for uuid in device.uuids:
            if worked:
                self._rests.pop(uuid, None)
                continue
            failures = self._rests.get(uuid, (0, 0.0))[0] + 1
            seconds = min(REST_SECONDS * 2 ** (failures - 1), LONGEST_REST)
            self._rests[uuid] = failures, self._clock() + seconds
            _log.error("device.rests", uuid=uuid, failures=failures, seconds=seconds, next="is tried again after that")
            with self._database.begin() as session:
                workers.lease_device(session, self._host, uuid, self._owner, seconds)

    def _lease(self, session: Session, uuid: str) -> bool:
        return workers.lease_device(session, self._host, uuid, self._owner, 2 * self._settings.lease_seconds)


def _number(device: str, count: int) -> int:
    number = int(device.partition(":")[2])
    if number >= count:
        raise SystemExit(f"WINNOW_DEVICE={device}, but the GPUs here are cuda:0 to cuda:{count - 1}; choose one")
    return number
