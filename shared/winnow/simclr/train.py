"""One round of contrastive training (the paper's Algorithm 2, line 5)."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from winnow.domain import ExperimentSpec, SimclrSpec, derive_seed
from winnow.errors import InvalidInput, TrainingFailed, is_out_of_memory
from winnow.failpoints import Failpoint, reach
from winnow.simclr import checkpoint
from winnow.simclr.checkpoint import Counters
from winnow.simclr.determinism import deterministic
from winnow.simclr.feed import to_device
from winnow.simclr.model import Images
from winnow.simclr.optimisers import learning_rate, make_optimiser
from winnow.simclr.rig import Limits, Rig
from winnow.simclr.team import Team

LOSSES_AT_ONCE = 20
"""Steps whose losses are read together on a GPU: a read waits for the device, which then waits for the next step."""
CHECKPOINTS_APART = 20
"""Times what a checkpoint took, before the next: on a GPU an epoch of few patches is over before one is written."""
PROFILED = {"skip_first": 2, "wait": 0, "warmup": 2, "active": 6, "repeat": 1}
PROFILED_STEPS = 10
"""Steps that a round must have for a trace of the last six of them."""


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
    """The directory of the final state, image visits of this round, seconds by phase, mean loss by epoch.

    Visits that are given up, fewer than processes, count. `notes` are choices made by themselves, with their reasons:
    what was compiled, streamed or cut into chunks.
    """

    state: Path
    visits: int
    seconds: dict[str, float]
    losses: list[float]
    notes: list[str] = field(default_factory=list[str])

    @property
    def images_per_second(self) -> float:
        """Pairs of views trained on, a second, over the round; 0 where nothing was trained."""
        return self.visits / self._spent if self._spent else 0.0

    @property
    def waiting_share(self) -> float:
        """The part of the time that was spent waiting for patches."""
        return self.seconds["load"] / self._spent if self._spent else 0.0

    @property
    def _spent(self) -> float:
        return self.seconds["load"] + self.seconds["train"]


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
    rig: Rig | None = None,
    epochs: int | None = None,
    visits_before: int = 0,
    limits: Limits | None = None,
    profile: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_checkpoint: Callable[[Path], object] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainedRound:
    """Train g∘f on the images of S^t, from the weights of the round before.

    A checkpoint of this round in `workspace` is gone on from, to the same weights (bit for bit on one CPU machine) as
    without the interruption: order and views are pure functions of (seed, round, epoch, sample).

    Args:
        images: packed patches. indices: (n,) sample indices of S^t.
        workspace: directory for checkpoints and the final `state`.
        start: state directory of round `number - 1`; None for random weights.
        rig: the device, and what stays ready between rounds; by default a new one on the CPU.
        epochs: epochs of this round (by default the spec's). visits_before: image visits of the rounds before.
        limits: of the BeginAnew that ended this round before.
        profile: where to write a torch profiler trace of a few steps, .json or .json.gz.
        on_checkpoint: called with each checkpoint's directory once it is safely written.

    In a team every process calls this with the same arguments; the leader alone writes, reports and is asked to stop.

    Raises:
        InvalidInput: fewer than two images, or, of the round or of a batch, fewer than processes.
        TrainingFailed: the loss is not finite, or memory ran out and no smaller chunk is left to try.
        BeginAnew: memory ran out, or torch.compile gave up, in one process of a team.
        TrainingStopped: `should_stop` said so; a checkpoint was written.
    """
    rig = rig or Rig()
    team, settings = rig.team, spec.simclr
    _require_enough(len(indices), settings, team)
    workspace.mkdir(parents=True, exist_ok=True)
    epochs = settings.epochs if epochs is None else epochs
    resumed = checkpoint.newest(workspace, number)
    counters = checkpoint.load_counters(resumed) if resumed else Counters(round=number)
    origin = resumed or start
    rig.prepare(spec, images, number, origin, count=len(indices), limits=limits)
    model = rig.model
    optimizer = make_optimiser(settings, model.parameters())
    if origin and (resumed or not spec.resets_optimizer):
        checkpoint.load_optimizer(optimizer, origin)
    team.meet()  # the leader may soon remove what was read
    steps = len(_batches(indices, settings, team.fewest))
    before, span = spec.schedule_span(number)
    clock = _Clock(total=epochs * steps, done=counters.epoch * steps + counters.step)
    losses = _Losses(counters)
    pace = _Pace(settings.checkpoint_every)

    def left() -> int:
        return sys.maxsize if spec.visits is None else spec.visits - visits_before - counters.visits

    def keep() -> Path:
        losses.read()  # a state that training cannot go on from is not kept
        with pace.counted(counters):
            return _keep(workspace, model, optimizer, counters, on_checkpoint) if team.leads else workspace

    # The loop is long on purpose: it reads top to bottom, and everything it changes is in `counters`.
    with deterministic(rig.device, settings.precision), _profiled(profile if team.leads else None) as count_step:
        while counters.epoch < epochs and left() >= team.fewest:
            order = np.random.default_rng(derive_seed(spec.seed, f"order-{number}", counters.epoch)).permutation(
                indices
            )
            batches = _batches(order, settings, team.fewest)[counters.step :]
            batches = _affordable(batches, left(), team.fewest)
            shares = [team.share(batch) for batch in batches]
            keys = to_device(rig.views.keys(counters.epoch), rig.device)  # (2,)
            fetched, at = rig.feed(images, indices).batches(shares), 0
            while at < len(batches):
                if team.agree(should_stop is not None and should_stop()):
                    raise TrainingStopped(keep())
                began = time.perf_counter()
                rate = learning_rate(settings, before + counters.epoch + counters.step / steps, span, 1 / steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss, loaded, short = None, began, ""
                try:
                    x, samples = next(fetched)  # (n, H, W, 3), (n,)
                    loaded = time.perf_counter()
                    optimizer.zero_grad(set_to_none=True)
                    loss = rig.step(x, samples, keys, len(batches[at]))
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    loss, short = None, str(error) or type(error).__name__
                if loss is None:  # out here the error's frames no longer hold the tensors it met
                    fetched = iter(())  # the feed holds on to the patches on the device
                    rig.make_room(spec, images, short)
                    fetched = rig.feed(images, indices).batches(shares[at:])
                    continue  # BatchNorms before the place where memory ended learn from this minibatch twice
                optimizer.step()
                batch = batches[at]
                losses.add(loss, len(batch), rate)
                at += 1
                if rig.device == "cpu" or losses.waiting == LOSSES_AT_ONCE or at == len(batches):
                    losses.read()
                counters.visits += len(batch)
                counters.step += 1
                counters.seconds["load"] += loaded - began
                counters.seconds["train"] += time.perf_counter() - loaded
                count_step()
                if on_progress is not None:
                    on_progress(clock.tick(counters, epochs, steps, len(batch), losses.last))
            counters.losses.append(counters.loss_sum / max(counters.loss_images, 1))
            counters.epoch, counters.step, counters.loss_sum, counters.loss_images = counters.epoch + 1, 0, 0.0, 0
            if counters.epoch < epochs and pace.is_due(counters.epoch):
                keep()

    if not spec.is_spent(visits_before + counters.visits) and (rest := left()) < team.fewest:
        rig.note(f"the last {rest} image visits are not one for each of {team.size} processes: given up")
        counters.visits += rest  # or the experiment would wait for them
    with pace.counted(counters):
        state = checkpoint.save(workspace / "state", model, optimizer, counters) if team.leads else workspace
    return TrainedRound(state, counters.visits, counters.seconds, counters.losses, list(rig.notes))


class _Losses:
    """The losses of an epoch, added to the counters when they are read; until then they lie on the device."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._unread: list[tuple[torch.Tensor, int, str]] = []
        self.last: float | None = None

    @property
    def waiting(self) -> int:
        """Steps whose losses were not read."""
        return len(self._unread)

    def add(self, loss: torch.Tensor, images: int, rate: float) -> None:
        """Keep the loss of the step under way, a mean over so many images."""
        where = f"epoch {self._counters.epoch}, step {self._counters.step}, learning rate {rate:g}"
        self._unread.append((loss, images, where))

    def read(self) -> None:
        """Raises TrainingFailed if one of them is not finite."""
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        for loss, (_, images, where) in zip(torch.stack([one for one, *_ in unread]).tolist(), unread, strict=True):
            if not math.isfinite(loss):
                raise TrainingFailed(
                    f"the loss became {loss} (round {self._counters.round}, {where}); lower simclr.learning_rate, "
                    "raise simclr.temperature, or set simclr.precision to fp32"
                )
            self.last = loss
            self._counters.loss_sum += loss * images
            self._counters.loss_images += images


class _Pace:
    """At the end of which epochs a checkpoint is left, and what they take."""

    def __init__(self, every: int | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._every, self._clock = every, clock
        self._took, self._ended = 0.0, clock()

    def is_due(self, epochs: int) -> bool:
        """After so many epochs. The first one's end is, so that nothing is lost while what one takes is not known."""
        if self._every is not None:
            return epochs % self._every == 0
        return self._clock() - self._ended >= CHECKPOINTS_APART * self._took

    @contextmanager
    def counted(self, counters: Counters) -> Iterator[None]:
        """Take the time of a checkpoint."""
        began = self._clock()
        yield
        self._ended = self._clock()
        self._took = self._ended - began
        counters.seconds["checkpoint"] += self._took


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


def _require_enough(count: int, settings: SimclrSpec, team: Team) -> None:
    if count < team.fewest:
        needed = f"needs 2, and one for each of {team.size} processes; got {count}"
        raise InvalidInput("budget", f"SimCLR contrasts images with each other and {needed}")
    if settings.batch_size < team.size:
        needed = f"an image for each of {team.size} processes; raise it, or lower the worker's WINNOW_DEVICES"
        raise InvalidInput("simclr.batch_size", f"a batch of {settings.batch_size} lacks {needed}")


def _batches(order: NDArray[np.int64], settings: SimclrSpec, fewest: int) -> list[NDArray[np.int64]]:
    """Batches of one epoch. A last one of a lone image, or that leaves a process without one, is left out."""
    size = settings.batch_size
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    smallest = size if settings.drop_last and len(order) >= size else fewest
    return [batch for batch in batches if len(batch) >= smallest]


def _affordable(batches: Sequence[NDArray[np.int64]], left: int, fewest: int) -> list[NDArray[np.int64]]:
    """The batches that this many image visits pay for, the last one cut short."""
    kept: list[NDArray[np.int64]] = []
    for batch in batches:
        if left < fewest:
            break
        kept.append(batch[:left])
        left -= len(kept[-1])
    return kept


@contextmanager
def _profiled(trace: Path | None) -> Iterator[Callable[[], None]]:
    """Record a few steps of what is within it, in the format that chrome://tracing and Perfetto read."""
    if trace is None:
        yield lambda: None
        return
    from torch.profiler import profile, schedule

    with profile(
        schedule=schedule(**PROFILED), on_trace_ready=lambda made: made.export_chrome_trace(str(trace))
    ) as made:
        yield made.step


def _keep(
    workspace: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    counters: Counters,
    on_checkpoint: Callable[[Path], object] | None,
) -> Path:
    """Write a checkpoint, tell, and only then remove the ones before it."""
    written = checkpoint.save(workspace / checkpoint.name_of(counters), model, optimizer, counters)
    if on_checkpoint is not None:
        on_checkpoint(written)
    reach(Failpoint.CHECKPOINT_TOLD)
    for path in workspace.glob("checkpoint-*"):
        if path != written:
            checkpoint.remove(path)
    return written
