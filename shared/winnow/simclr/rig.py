"""What stays ready from round to round: the network, its compiled step, and the patches on the device.

A round that finds all of it warm gives the same weights, bit for bit on one processor, as one that starts cold: the
network is filled anew each time.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from winnow.domain import ExperimentSpec, SimclrSpec, derive_seed
from winnow.errors import OutOfRoom, TrainingFailed
from winnow.simclr import checkpoint, determinism
from winnow.simclr.feed import RESIDENT_SHARE, Feed, HostFeed, ResidentFeed, StreamedFeed, resident_rows
from winnow.simclr.model import Images, SimclrModel, build, unfilled
from winnow.simclr.step import Step
from winnow.simclr.team import Team
from winnow.simclr.views import Views

SMALLEST_CHUNK = 16


@dataclass(frozen=True)
class Room:
    """What memory is known to hold since it ran out: patches on the device, images a pass. None: nothing is known."""

    patches: int | None = None
    chunk: int | None = None


class Rig:
    """One process's training equipment.

    Args:
        device: cpu, cuda or cuda:N. team: the processes that share each minibatch.
        compiled: `auto` compiles on a GPU and nowhere else.
        resident_share: of the GPU's free memory, what patches may take; 0 streams them all.
    """

    def __init__(
        self,
        device: str = "cpu",
        *,
        team: Team | None = None,
        compiled: Literal["auto", "on", "off"] = "auto",
        resident_share: float = RESIDENT_SHARE,
    ) -> None:
        self.device = (
            f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device
        )  # threads start on the first
        self.team = team or Team()
        self.notes: list[str] = []
        self._on_gpu = device.startswith("cuda")
        if self._on_gpu:
            determinism.configure()
        self._compiled = compiled == "on" or (compiled == "auto" and self._on_gpu)
        self._allowed = self._share = resident_share
        self._room = Room()
        self._key: object = None
        self._images: Images | None = None
        self._resident: ResidentFeed | None = None

    def prepare(
        self,
        spec: ExperimentSpec,
        images: Images,
        number: int,
        origin: Path | None,
        *,
        count: int,
        room: Room | None = None,
    ) -> None:
        """Fill `model` with the weights in `origin` (or random ones), and make `step` for this spec.

        Args:
            number: the round's. count: its images.
            room: what a rig before this one was left with; the rig keeps to it until the spec is another.
        """
        key = (spec.encoder, spec.views, spec.simclr, images.image_size)
        if key != self._key:
            self._build(spec, images.image_size)
            self._key = key
        if self._images is not None and images is not self._images:
            self._room = replace(self._room, patches=None)  # others may be fewer
        if room is not None:
            self._keep_to(room, spec.simclr)
        self.views.seed = derive_seed(spec.seed, "views", number)
        if origin is None:
            self.model.load_state_dict(build(spec.encoder, derive_seed(spec.seed, "weights")).state_dict())
        else:
            checkpoint.load_weights(self.model, origin)
        self.model.train()
        if self._compiled and count < spec.simclr.batch_size:
            self.note(f"{count} images make no full batch of {spec.simclr.batch_size}: they run without torch.compile")

    def _build(self, spec: ExperimentSpec, image_size: int) -> None:
        self.notes.clear()
        self._require_precision(spec)
        self.model: SimclrModel = unfilled(spec.encoder, self.device)
        self.network: nn.Module = self.team.wrap(self.model)
        self.views = Views(spec.views, image_size, 0)
        self._room = Room()
        self._take_step(spec.simclr)

    def _take_step(self, settings: SimclrSpec) -> None:
        if self._compiled:
            torch.compiler.reset()  # what was compiled before holds memory, and counts against a limit of torch's
        self.step = Step(self.network, self.views, settings, self.team, compiled=self._compiled, note=self.note)

    def _require_precision(self, spec: ExperimentSpec) -> None:
        if spec.simclr.precision == "bf16" and self._on_gpu and not torch.cuda.is_bf16_supported():
            self.note(f"{torch.cuda.get_device_name()} has no bf16: it is emulated, and slower than fp32 would be")

    def note(self, text: str) -> None:
        """Keep a choice that was made by itself, with its reason, for the round's report."""
        if text not in self.notes:
            self.notes.append(text)

    def feed(self, images: Images, indices: NDArray[np.int64], *, once: bool = False) -> Feed:
        """Where these samples come from: the device if all of them fit, else the host, ahead of time.

        Those that are read `once` push nothing off the device that will be read again.
        """
        if not self._on_gpu:
            return HostFeed(images)
        if images is not self._images:
            self._images, self._resident, self._share = images, None, self._allowed
        if self._resident is None and self._share > 0 and self._room.patches != 0:
            free, _ = torch.cuda.mem_get_info()
            rows = resident_rows(images, max(len(indices), _length(images)), free, share=self._share)
            self._resident = ResidentFeed(images, min(rows, self._room.patches or rows), self.device)
        if self._resident is not None and self._resident.hold(indices, displace=not once):
            return self._resident
        if not once:
            self._resident, self._share = None, 0.0
        self.note(f"{len(indices)} patches of {images.image_size} pixels do not fit on the device: they are streamed")
        return StreamedFeed(images, self.device)

    def make_room(self, spec: ExperimentSpec, images: Images, reason: str) -> None:
        """Give up something after memory ran out: half of the patches that lie on the device, then half a chunk.

        Raises:
            TrainingFailed: nothing is left to give up; with the sizes.
            OutOfRoom: in a team, whose others wait for this one's step.
        """
        settings, held = spec.simclr, self._resident.rows if self._resident else 0
        share = max(self.team.sizes(settings.batch_size))
        chunk = min(self.step.chunk or share, share)
        if held:
            room = replace(self._room, patches=held // 2 if held > settings.batch_size else 0)
        elif chunk > SMALLEST_CHUNK:
            room = replace(self._room, chunk=max(chunk // 2, SMALLEST_CHUNK))
        else:
            raise TrainingFailed(
                f"out of memory with batches of {settings.batch_size} at {images.image_size} pixels, {chunk} images a "
                f"pass and {held} patches on the device ({reason.splitlines()[0]}); lower simclr.batch_size or chunk, "
                "use a smaller image_size, or set simclr.precision to bf16"
            )
        if self.team.size > 1:
            raise OutOfRoom(asdict(room))
        self._resident = None
        torch.cuda.empty_cache()
        self._keep_to(room, settings)

    def _keep_to(self, room: Room, settings: SimclrSpec) -> None:
        if room.patches is not None:
            self.note(f"out of memory: on the device may lie {room.patches} patches")
        if room.chunk is not None and room.chunk != self._room.chunk:
            self._take_step(settings.model_copy(update={"chunk": room.chunk}))
            self.note(f"out of memory: batches of {settings.batch_size} now pass in chunks of {room.chunk}")
        self._room = room


def _length(images: Images) -> int:
    return len(images) if hasattr(images, "__len__") else 0  # type: ignore[arg-type]
