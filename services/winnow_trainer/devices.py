"""Which device a child computes on: the one that is set, else a free GPU of this host, else the CPU."""

import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from winnow.settings import Settings
from winnow.store import Database, workers
from winnow.telemetry import logger

_log = logger("trainer.devices")


@dataclass(frozen=True)
class Device:
    """`name` as torch knows it in the child, and the child's environment."""

    name: str
    environment: dict[str, str]
    uuid: str | None = None


CPU = Device("cpu", {"CUDA_VISIBLE_DEVICES": ""})


def find_gpus() -> list[tuple[str, str]]:
    """(uuid, name) of this host's GPUs, by nvidia-smi; none where it is not there. torch is not loaded for this."""
    command = ["nvidia-smi", "--query-gpu=uuid,name", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    pairs = (line.partition(", ") for line in listed.stdout.splitlines() if line)
    return [(uuid.strip(), name.strip()) for uuid, _, name in pairs]


def find_machine() -> str:
    """What tells this machine from others. Containers on it have a hostname each and would share a GPU unawares."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


class Devices:
    """The GPUs that this worker may use. A GPU is leased in the database by (host, uuid)."""

    def __init__(self, settings: Settings, database: Database, owner: str) -> None:
        self._settings, self._database, self._owner = settings, database, owner
        self._host = find_machine()
        self.gpus = [] if settings.device == "cpu" else find_gpus()
        if settings.device.startswith("cuda") and not self.gpus:
            raise SystemExit(
                f"WINNOW_DEVICE={settings.device}, but nvidia-smi shows no GPU here; set it to auto or cpu"
            )
        _log.info("devices.found", setting=settings.device, gpus=[name for _, name in self.gpus] or "none: CPU")

    def take(self) -> Device | None:
        """Lease a device; None while others hold every GPU."""
        if not self.gpus:
            return CPU
        wanted = self.gpus
        if ":" in self._settings.device:
            wanted = [self.gpus[int(self._settings.device.partition(":")[2])]]
        for uuid, _ in wanted:
            if self._lease(uuid):
                return Device("cuda", {"CUDA_VISIBLE_DEVICES": uuid}, uuid)
        return None

    def keep(self, device: Device) -> None:
        """Renew the lease of a device in use."""
        if device.uuid is not None:
            self._lease(device.uuid)

    def _lease(self, uuid: str) -> bool:
        with self._database.begin() as session:
            return workers.lease_device(session, self._host, uuid, self._owner, 2 * self._settings.lease_seconds)
