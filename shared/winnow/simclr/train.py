"""One round of contrastive training (the paper's Algorithm 2, line 5)."""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from winnow.domain import ExperimentSpec, SimclrSpec, derive_seed
from winnow.errors import InvalidInput, TrainingFailed
from winnow.simclr import checkpoint
from winnow.simclr.checkpoint import Counters
from winnow.simclr.loss import nt_xent
from winnow.simclr.model import Images, build
from winnow.simclr.views import Views

LOSS_EVERY = 20  # steps between reads of the loss on a GPU: each one waits for the device


@dataclass(frozen=True)
class Progress:
    """Where a phase stands. `step` counts within the epoch; `loss` is the last one read."""

    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float
    loss: float | None
    seconds_left: float | None


@dataclass(frozen=True)
class TrainedRound:
    """The directory of the final state, image visits of this round, seconds by phase, mean loss by epoch."""

    state: Path
    visits: int
    seconds: dict[str, float]
    losses: list[float]


class TrainingStopped(Exception):
    """Training stopped because it was asked to; `checkpoint` is where it goes on from."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(f"stopped; {checkpoint} holds the way on")
        self.checkpoint = checkpoint


def train_round(  # noqa: PLR0915 - the loop reads top to bottom
    images: Images,
    indices: NDArray[np.int64],
    *,
    spec: ExperimentSpec,
    number: int,
    workspace: Path,
    start: Path | None,
    device: str = "cpu",
    epochs: int | None = None,
    max_visits: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_checkpoint: Callable[[Path], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainedRound:
    """Train g∘f on the images of S^t, from the weights of the round before.

    A checkpoint of this round in `workspace` is gone on from, to the same weights (bit for bit on one CPU machine) as
    without the interruption: order and views are pure functions of (seed, round, epoch, sample).

    Args:
        images: packed patches. indices: (n,) sample indices of S^t.
        workspace: directory for checkpoints and the final `state`.
        start: state directory of round `number - 1`; None for random weights.
        epochs: epochs of this round (by default the spec's). max_visits: image visits left to the experiment.
        on_checkpoint: called with each checkpoint's directory once it is safely written.

    Raises:
        InvalidInput: fewer than two images. TrainingFailed: the loss is not finite, or memory ran out.
        TrainingStopped: `should_stop` said so; a checkpoint was written.
    """
    if len(indices) < 2:
        raise InvalidInput("budget", f"SimCLR contrasts images with each other and needs 2, got {len(indices)}")
    workspace.mkdir(parents=True, exist_ok=True)
    settings = spec.simclr
    epochs = settings.epochs if epochs is None else epochs
    model = build(spec.encoder, derive_seed(spec.seed, "weights")).to(device)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
    )
    resumed = checkpoint.newest(workspace, number)
    counters = checkpoint.load_counters(resumed) if resumed else Counters(round=number)
    if origin := resumed or start:
        checkpoint.load_weights(model, origin)
        if resumed or not settings.reset_optimizer:
            checkpoint.load_optimizer(optimizer, origin)
    views = Views(spec.views, images.image_size, derive_seed(spec.seed, "views", number))
    steps = len(_batches(indices, settings))
    clock = _Clock(total=epochs * steps, done=counters.epoch * steps + counters.step)
    loss_read: float | None = None
    model.train()

    # The loop is long on purpose: it reads top to bottom, and everything it changes is in `counters`.
    while counters.epoch < epochs and not _spent(counters, max_visits):
        order = np.random.default_rng(derive_seed(spec.seed, f"order-{number}", counters.epoch)).permutation(indices)
        batches = _batches(order, settings)
        while counters.step < steps and not _spent(counters, max_visits):
            if should_stop is not None and should_stop():
                raise TrainingStopped(_keep(workspace, model, optimizer, counters, on_checkpoint))
            began = time.perf_counter()
            batch = batches[counters.step][: None if max_visits is None else max_visits - counters.visits]
            x = torch.from_numpy(images.take(batch)).to(device)  # (n, H, W, 3)
            samples = torch.from_numpy(batch).to(device)  # (n,)
            loaded = time.perf_counter()
            rate = learning_rate(settings, counters.epoch * steps + counters.step, epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            try:
                both = torch.cat([views(x, samples, epoch=counters.epoch, view=v) for v in (0, 1)])  # (2n, 3, H, W)
                with torch.autocast(x.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                    z = model(both.contiguous(memory_format=torch.channels_last))  # (2n, d)
                z0, z1 = z.chunk(2)  # (n, d) each
                loss = nt_xent(z0, z1, settings.temperature)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            except torch.OutOfMemoryError as error:
                raise _out_of_memory(settings, images.image_size) from error
            if x.device.type == "cpu" or counters.step % LOSS_EVERY == 0 or counters.step == steps - 1:
                loss_read = _finite(loss.item(), counters, rate)
                counters.loss_sum += loss_read * len(batch)
                counters.loss_images += len(batch)
            counters.visits += len(batch)
            counters.step += 1
            counters.seconds["load"] += loaded - began
            counters.seconds["train"] += time.perf_counter() - loaded
            if on_progress is not None:
                on_progress(clock.tick(counters, epochs, steps, len(batch), loss_read))
        counters.losses.append(counters.loss_sum / max(counters.loss_images, 1))
        counters.epoch, counters.step, counters.loss_sum, counters.loss_images = counters.epoch + 1, 0, 0.0, 0
        if counters.epoch % settings.checkpoint_every == 0 and counters.epoch < epochs:
            _keep(workspace, model, optimizer, counters, on_checkpoint)

    state = checkpoint.save(workspace / "state", model, optimizer, counters)
    return TrainedRound(state, counters.visits, counters.seconds, counters.losses)


def learning_rate(settings: SimclrSpec, step: int, steps: int) -> float:
    """The rate at `step` of a round of `steps`: a pure function, so that resuming needs no scheduler state."""
    if settings.schedule == "constant":
        return settings.learning_rate
    share = (1 + math.cos(math.pi * step / steps)) / 2
    return settings.learning_rate_end + (settings.learning_rate - settings.learning_rate_end) * share


class _Clock:
    """Images per second over the last steps, and the time left at that rate."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._done = total, done
        self._last = time.perf_counter()
        self._step_seconds = 0.0

    def tick(self, counters: Counters, epochs: int, steps: int, images: int, loss: float | None) -> Progress:
        now = time.perf_counter()
        took, self._last = now - self._last, now
        self._done += 1
        self._step_seconds = took if self._step_seconds == 0 else 0.9 * self._step_seconds + 0.1 * took
        return Progress(
            phase="train",
            epoch=counters.epoch,
            epochs=epochs,
            step=counters.step,
            steps=steps,
            images_per_second=images / self._step_seconds,
            loss=loss,
            seconds_left=(self._total - self._done) * self._step_seconds,
        )


def _batches(order: NDArray[np.int64], settings: SimclrSpec) -> list[NDArray[np.int64]]:
    """Batches of one epoch. A last batch of one has no negatives and is left out."""
    size = settings.batch_size
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    smallest = size if settings.drop_last and len(order) >= size else 2
    return [batch for batch in batches if len(batch) >= smallest]


def _spent(counters: Counters, max_visits: int | None) -> bool:
    """Whether fewer than two visits are left: a lone image cannot be contrasted."""
    return max_visits is not None and max_visits - counters.visits < 2


def _keep(
    workspace: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    counters: Counters,
    on_checkpoint: Callable[[Path], None] | None,
) -> Path:
    """Write a checkpoint, tell, and only then remove the ones before it."""
    written = checkpoint.save(workspace / checkpoint.name_of(counters), model, optimizer, counters)
    if on_checkpoint is not None:
        on_checkpoint(written)
    for path in workspace.glob("checkpoint-*"):
        if path != written:
            shutil.rmtree(path)
    return written


def _finite(loss: float, counters: Counters, rate: float) -> float:
    if not math.isfinite(loss):
        where = f"round {counters.round}, epoch {counters.epoch}, step {counters.step}"
        raise TrainingFailed(
            f"the loss became {loss} ({where}, learning rate {rate:g}); lower simclr.learning_rate, raise "
            "simclr.temperature, or set simclr.precision to fp32"
        )
    return loss


def _out_of_memory(settings: SimclrSpec, image_size: int) -> TrainingFailed:
    return TrainingFailed(
        f"out of memory with batches of {settings.batch_size} at {image_size} pixels; lower simclr.batch_size, use a "
        "smaller image_size, or set simclr.precision to bf16"
    )
