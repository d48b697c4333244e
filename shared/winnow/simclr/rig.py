"""What stays ready from round to round: the network, its compiled step, and the patches on the device.

A round that finds all of it warm gives the same weights, bit for bit on one processor, as one that starts cold: the
network is filled anew each time.
"""

import gc
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from winnow.domain import ExperimentSpec, SimclrSpec, derive_seed
from winnow.errors import BeginAnew, TrainingFailed, is_out_of_memory
from winnow.simclr import checkpoint, determinism
from winnow.simclr.feed import RESIDENT_SHARE, Feed, HostFeed, ResidentFeed, StreamedFeed, resident_rows
from winnow.simclr.model import Images, SimclrModel, build, unfilled
from winnow.simclr.step import Step
from winnow.simclr.team import Team
from winnow.simclr.views import Views

SMALLEST_CHUNK = 16


@dataclass(frozen=True)
class Limits:
    """What this machine was found to bear; None where no limit was met.

    patches: on the device. chunk: images a pass. uncompiled: why torch.compile gave up in a process of a team.
    """

    patches: int | None = None
    chunk: int | None = None
    uncompiled: str | None = None


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
        self._lasting: list[str] = []
        self._passing: list[str] = []
        self._on_gpu = device.startswith("cuda")
        if self._on_gpu:
            determinism.configure()
        self._compiled = compiled == "on" or (compiled == "auto" and self._on_gpu)
        self._allowed = self._share = resident_share
        self._limits = Limits()
        self._has_full = True
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
        limits: Limits | None = None,
    ) -> None:
        """Fill `model` with the weights in `origin` (or random ones), and make `step` for this spec.

        Args:
            number: the round's. count: its images.
            limits: those that a rig before this one met; the rig keeps to them until another step is asked for.
        """
        settings = spec.simclr
        its_step = settings.batch_size, settings.chunk, settings.temperature, settings.precision
        key = (spec.encoder, spec.views, images.image_size, *its_step)
        if key != self._key:
            self._build(spec, images.image_size)
            self._key = key
        self._passing.clear()
        if self._images is not None and images is not self._images:
            self._limits = replace(self._limits, patches=None)  # others may be fewer
        if limits is not None:
            self._keep_to(limits, settings)
        self.views.seed = derive_seed(spec.seed, "views", number)
        if origin is None:
            self.model.load_state_dict(build(spec.encoder, derive_seed(spec.seed, "weights")).state_dict())
        else:
            checkpoint.load_weights(self.model, origin)
        self.model.train()
        self.step.has_full = self._has_full = count >= settings.batch_size
        if not self._has_full:
            without = ", without torch.compile" if self._compiled else ""
            self.note(
                f"{count} images make no full batch of {settings.batch_size}: they run as one of {count}{without}"
            )

    def _build(self, spec: ExperimentSpec, image_size: int) -> None:
        self._lasting.clear()
        self._require_precision(spec)
        self.model: SimclrModel = unfilled(spec.encoder, self.device)
        self.network: nn.Module = self.team.wrap(self.model)
        self.views = Views(spec.views, image_size, 0)
        self._limits, self._batch_size = Limits(), spec.simclr.batch_size
        self._make_step(spec.simclr)

    def _make_step(self, settings: SimclrSpec) -> None:
        """Within the limits; where one was met without CUDA graphs, which keep what memory they use for themselves."""
        if self._compiled:
            torch.compiler.reset()  # what was compiled before holds memory, and counts against a limit of torch's
        self.step = Step(
            self.network,
            self.views,
            settings.model_copy(update={"chunk": self._limits.chunk or settings.chunk}),
            self.team,
            compiled=self._compiled and self._limits.uncompiled is None,
            graphs=self._limits == Limits(),
            note=self._note_for_good,
            give_up=self._give_up_compiling,
        )
        self.step.has_full = self._has_full

    def _give_up_compiling(self, reason: str) -> None:
        if self.team.size > 1:  # the others' collectives come in another order
            raise BeginAnew(asdict(replace(self._limits, uncompiled=reason)))
        self._note_for_good(reason)

    def _require_precision(self, spec: ExperimentSpec) -> None:
        if (
            spec.simclr.precision == "bf16"
            and self._on_gpu
            and not torch.cuda.is_bf16_supported(including_emulation=False)
        ):
            name = torch.cuda.get_device_name(self.device)
            self._note_for_good(f"{name} has no bf16: it is emulated, and slower than fp32 would be")

    @property
    def notes(self) -> list[str]:
        """Choices that were made by themselves, with their reasons: those that still hold, then this round's."""
        return [*self._lasting, *self._met(), *self._passing]

    def note(self, text: str) -> None:
        """Keep such a choice for the report of this round."""
        if text not in self._passing:
            self._passing.append(text)

    def _note_for_good(self, text: str) -> None:
        if text not in self._lasting:
            self._lasting.append(text)

    def feed(self, images: Images, indices: NDArray[np.int64], *, once: bool = False) -> Feed:
        """Where these samples come from: the device if all of them fit, else the host, ahead of time.

        Those that are read `once` push nothing off the device that will be read again.
        """
        if not self._on_gpu:
            return HostFeed(images)
        if images is not self._images:
            self._images, self._resident, self._share = images, None, self._allowed
            torch.cuda.empty_cache()  # what torch keeps of the ones before counts as taken
        if self._resident is None and self._share > 0 and self._limits.patches != 0:
            free, _ = torch.cuda.mem_get_info(self.device)
            rows = resident_rows(images, max(len(indices), _length(images)), free, share=self._share)
            self._resident = self._make_resident(images, min(rows, self._limits.patches or rows))
        if self._resident is not None and self._resident.hold(indices, displace=not once):
            return self._resident
        if not once:
            self._resident, self._share = None, 0.0
        self.note(f"{len(indices)} patches of {images.image_size} pixels do not fit on the device: they are streamed")
        return StreamedFeed(images, self.device)

    def _make_resident(self, images: Images, rows: int) -> ResidentFeed | None:
        """With room for half as many, or a quarter, where somebody else took what seemed free, or may not be taken."""
        while rows:
            try:
                return ResidentFeed(images, rows, self.device)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            rows //= 2
        return None

    def make_room(self, spec: ExperimentSpec, images: Images, reason: str) -> None:
        """Give up something after memory ran out: half of the patches that lie on the device, then half a chunk.

        Raises:
            TrainingFailed: nothing is left to give up; with the sizes.
            BeginAnew: in a team, whose others wait for this one's step.
        """
        settings, held = spec.simclr, self._resident.rows if self._resident else 0
        share = max(self.team.sizes(settings.batch_size))
        chunk = min(self.step.chunk or share, share)
        if held:
            limits = replace(self._limits, patches=held // 2 if held > settings.batch_size else 0)
        elif chunk > SMALLEST_CHUNK:
            limits = replace(self._limits, chunk=max(chunk // 2, SMALLEST_CHUNK))
        else:
            raise TrainingFailed(
                f"out of memory with batches of {settings.batch_size} at {images.image_size} pixels, {chunk} images a "
                f"pass and {held} patches on the device ({reason.splitlines()[0]}); lower simclr.batch_size or chunk, "
                "use a smaller image_size, or set simclr.precision to bf16"
            )
        if self.team.size > 1:
            raise BeginAnew(asdict(limits))
        self._resident = None
        self._keep_to(limits, settings)
        self.model.zero_grad(set_to_none=True)  # what a half-done backward left
        gc.collect()
        torch.cuda.empty_cache()

    def _keep_to(self, limits: Limits, settings: SimclrSpec) -> None:
        before, self._limits = self._limits, limits
        if before == Limits() or replace(before, patches=None) != replace(limits, patches=None):
            self._make_step(settings)

    def _met(self) -> list[str]:
        """The limits, for a person."""
        met: list[str] = []
        if self._limits.patches is not None:
            met.append(f"out of memory: on the device may lie {self._limits.patches} patches")
        if self._limits.chunk is not None:
            met.append(f"out of memory: batches of {self._batch_size} now pass in chunks of {self._limits.chunk}")
        if self._limits.uncompiled is not None:
            met.append(f"{self._limits.uncompiled} (in one of {self.team.size} processes, so in none of them)")
        return met


def _length(images: Images) -> int:
    return len(images) if hasattr(images, "__len__") else 0  # type: ignore[arg-type]
