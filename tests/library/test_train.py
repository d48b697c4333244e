"""A round: learns, resumes to the same weights, stops in time, and says why it cannot go on."""

import json
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from library.arrays import ArrayImages, tissue
from safetensors.torch import load_file

from winnow.domain import Arm, ExperimentSpec
from winnow.errors import InvalidInput, TrainingFailed
from winnow.simclr import Images, Limits, Progress, Rig, TrainedRound, TrainingStopped, checkpoint, train_round
from winnow.simclr.checkpoint import Counters
from winnow.simclr.feed import Batch, Feed, HostFeed
from winnow.simclr.optimisers import learning_rate
from winnow.simclr.team import Team
from winnow.simclr.train import _Losses, _Pace

INDICES = np.arange(22, dtype=np.int64)


@pytest.fixture(scope="module")
def images() -> ArrayImages:
    return tissue(22, 32)[0]


def spec(**simclr: Any) -> ExperimentSpec:
    settings = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "checkpoint_every": 1, **simclr}
    return ExperimentSpec.model_validate(
        {"name": "t", "dataset": "t", "positive_class": "TUM", "budget": 5, "simclr": settings}
    )


def train(images: ArrayImages, workspace: Path, **changes: Any) -> TrainedRound:
    arguments = {"spec": spec(), "number": 0, "start": None, "workspace": workspace, **changes}
    return train_round(images, INDICES, **arguments)


def same(a: Path, b: Path) -> bool:
    pairs = [(load_file(a / name), load_file(b / name)) for name in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER)]
    return all(torch.equal(x, theirs[key]) for ours, theirs in pairs for key, x in ours.items())


class StopAfter:
    """Says stop once it was asked `calls` times."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self) -> bool:
        self.calls -= 1
        return self.calls < 0


@pytest.fixture(scope="module")
def uninterrupted(images: ArrayImages, tmp_path_factory: pytest.TempPathFactory) -> TrainedRound:
    return train(images, tmp_path_factory.mktemp("whole"), spec=spec(checkpoint_every=3))


def test_a_repeat_is_bit_identical(images: ArrayImages, uninterrupted: TrainedRound, tmp_path: Path) -> None:
    assert same(train(images, tmp_path, spec=spec(checkpoint_every=3)).state, uninterrupted.state)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_resuming_gives_the_weights_of_the_uninterrupted_run(
    images: ArrayImages, uninterrupted: TrainedRound, tmp_path: Path, steps: int
) -> None:
    with pytest.raises(TrainingStopped):
        train(images, tmp_path, should_stop=StopAfter(steps))
    resumed = train(images, tmp_path)
    assert same(resumed.state, uninterrupted.state)
    assert resumed.visits == uninterrupted.visits == 3 * 22
    assert resumed.losses == pytest.approx(uninterrupted.losses)


def test_a_death_between_checkpoints_resumes_from_the_last_epoch(
    images: ArrayImages, uninterrupted: TrainedRound, tmp_path: Path
) -> None:
    class Died(Exception):
        pass

    def die(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (1, 2):
            raise Died

    with pytest.raises(Died):
        train(images, tmp_path, on_progress=die)
    found = checkpoint.newest(tmp_path, 0)
    assert found is not None and checkpoint.load_counters(found).epoch == 1
    assert same(train(images, tmp_path).state, uninterrupted.state)


def test_checkpoints_are_announced_and_only_the_newest_is_kept(images: ArrayImages, tmp_path: Path) -> None:
    seen: list[str] = []
    train(images, tmp_path, on_checkpoint=lambda path: seen.append(path.name))
    assert seen == ["checkpoint-000001-00000000", "checkpoint-000002-00000000"]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == seen[-1:]


def test_a_stop_takes_effect_within_one_step(images: ArrayImages, tmp_path: Path) -> None:
    steps: list[Progress] = []
    with pytest.raises(TrainingStopped) as caught:
        train(images, tmp_path, should_stop=lambda: len(steps) >= 2, on_progress=steps.append)
    assert len(steps) == 2
    assert checkpoint.load_counters(caught.value.checkpoint).step == 2


def test_weights_and_moments_carry_over_unless_reset(
    images: ArrayImages, uninterrupted: TrainedRound, tmp_path: Path
) -> None:
    fresh = train(images, tmp_path / "a", number=1, epochs=1)
    carried = train(images, tmp_path / "b", number=1, epochs=1, start=uninterrupted.state)
    forgot = train(
        images, tmp_path / "c", number=1, epochs=1, start=uninterrupted.state, spec=spec(reset_optimizer=True)
    )
    moments = [load_file(r.state / checkpoint.OPTIMIZER)["0.step"].item() for r in (fresh, carried, forgot)]
    assert moments == [3, 12, 3]
    assert not same(fresh.state, carried.state)
    assert not same(forgot.state, fresh.state)


def test_visits_stop_at_the_limit(images: ArrayImages, tmp_path: Path) -> None:
    limited = spec().model_copy(update={"visits": 130})
    assert train(images, tmp_path, spec=limited, visits_before=100).visits == 30
    assert train(images, tmp_path / "odd", spec=limited, visits_before=107).visits == 22, "a lone image has no other"
    spent = train(images, tmp_path / "spent", spec=limited, visits_before=129)
    assert (spent.visits, spent.images_per_second, spent.waiting_share) == (0, 0.0, 0.0)


def test_partial_batches_are_kept_or_dropped(images: ArrayImages, tmp_path: Path) -> None:
    assert train(images, tmp_path / "keep", epochs=1).visits == 22
    assert train(images, tmp_path / "drop", epochs=1, spec=spec(drop_last=True)).visits == 16
    lone = train_round(images, INDICES[:9], spec=spec(), number=0, workspace=tmp_path / "lone", start=None, epochs=1)
    assert lone.visits == 8


def test_training_lowers_the_loss(images: ArrayImages, tmp_path: Path) -> None:
    losses = train(images, tmp_path, spec=spec(epochs=12, batch_size=11, checkpoint_every=12)).losses
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_an_exploding_loss_says_what_to_do(images: ArrayImages, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match=r"lower simclr\.learning_rate"):
        train(images, tmp_path, spec=spec(learning_rate=1e30))


GROUPED = "cpu:0"
"""The processor by a name that has losses read as on a GPU, several at once."""


def test_losses_read_together_are_those_read_singly(images: ArrayImages, tmp_path: Path) -> None:
    wanted = spec(batch_size=2, epochs=3, checkpoint_every=1)  # 11 steps an epoch
    singly = train(images, tmp_path / "singly", spec=wanted)
    seen: list[float | None] = []
    with pytest.raises(TrainingStopped):
        train(
            images,
            tmp_path / "together",
            spec=wanted,
            rig=Rig(GROUPED),
            should_stop=StopAfter(17),
            on_progress=lambda progress: seen.append(progress.loss),
        )
    together = train(images, tmp_path / "together", spec=wanted, rig=Rig(GROUPED))
    assert seen[:10] == [None] * 10 and seen[10] is not None, "read once an epoch of so few steps"
    assert together.losses == singly.losses and len(singly.losses) == 3
    assert same(together.state, singly.state)


def test_no_checkpoint_is_kept_from_beyond_a_loss_that_is_not_finite(images: ArrayImages, tmp_path: Path) -> None:
    wanted = spec(learning_rate=1e30, batch_size=2)
    with pytest.raises(TrainingFailed, match="step 1,"):
        train(images, tmp_path, spec=wanted, rig=Rig(GROUPED), should_stop=StopAfter(8))
    assert not list(tmp_path.glob("checkpoint-*"))


def test_losses_that_are_read_together_count_by_their_images_and_the_first_bad_one_is_named() -> None:
    counters = Counters(round=2, epoch=5, step=40)
    losses = _Losses(counters)
    losses.read()
    assert losses.last is None
    for loss, images in ((4.0, 128), (2.0, 64)):
        losses.add(torch.tensor(loss), images, 1e-3)
    assert losses.waiting == 2 and counters.loss_images == 0
    losses.read()
    assert (losses.waiting, losses.last, counters.loss_sum, counters.loss_images) == (0, 2.0, 640.0, 192)
    for counters.step, loss in ((41, 3.0), (42, float("nan")), (43, 1.0)):
        losses.add(torch.tensor(loss), 128, 1e-3)
    with pytest.raises(TrainingFailed, match=r"became nan \(round 2, epoch 5, step 42, learning rate 0\.001"):
        losses.read()


def test_too_few_images_are_refused(images: ArrayImages, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"batch_size.*9 processes.*WINNOW_DEVICES"):
        train(images, tmp_path, rig=Rig(team=Team(0, 9)))
    with pytest.raises(InvalidInput, match="one for each of 23 processes; got 22"):
        train(images, tmp_path, rig=Rig(team=Team(0, 23)))
    with pytest.raises(InvalidInput, match="needs 2"):
        train_round(images, INDICES[:1], spec=spec(), number=0, workspace=tmp_path, start=None)


@dataclass(frozen=True)
class Small(Team):
    """A team of one on a device that is out of memory where a pass has more than `most` images."""

    most: int = 0

    def wrap(self, network: torch.nn.Module) -> torch.nn.Module:
        network.register_forward_pre_hook(lambda _, given: self._bear(given[0]))
        return network

    def _bear(self, both: torch.Tensor) -> None:
        if len(both) > 2 * self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more of it")


def test_a_device_that_runs_out_of_memory_trains_on_in_smaller_chunks(images: ArrayImages, tmp_path: Path) -> None:
    whole, rig = spec(batch_size=22), Rig(team=Small(most=16))
    found = [train(images, tmp_path / str(number), spec=whole, rig=rig, number=number) for number in (0, 1)]
    chunks = train(images, tmp_path / "chunks", spec=spec(batch_size=22, chunk=16))
    assert same(found[0].state, chunks.state) and found[1].visits == 3 * 22
    assert found[1].notes == ["out of memory: batches of 22 now pass in chunks of 16"], "the next round begins so"
    anew = train(images, tmp_path / "anew", spec=whole, rig=Rig(team=Small(most=16)), limits=Limits(chunk=16))
    assert same(anew.state, chunks.state) and anew.notes == found[0].notes


class Held(HostFeed):
    """A feed that a minibatch which is waited for keeps alive, as one of patches on a GPU does."""

    def batches(self, order: Any) -> Iterator[Batch]:
        yield from super().batches(order)


def test_patches_that_are_given_up_are_gone_before_the_next_are_brought(images: ArrayImages, tmp_path: Path) -> None:
    """A feed under way holds on to what lies on the device, which has no room for both."""
    held: list[weakref.ref[Held]] = []

    class Narrow(Rig):
        def feed(self, images: Images, *_: Any, **__: Any) -> Feed:
            made = Held(images)
            held.append(weakref.ref(made))
            return made

        def make_room(self, *arguments: Any) -> None:
            assert held and held[-1]() is None
            super().make_room(*arguments)

    trained = train(images, tmp_path, spec=spec(batch_size=22), rig=Narrow(team=Small(most=16)))
    assert trained.visits == 3 * 22 and len(held) == 4


@pytest.mark.parametrize(("every", "kept"), [(1, [1, 2, 3, 4, 5, 6]), (3, [3, 6]), (7, [])])
def test_checkpoints_are_left_after_so_many_epochs(
    images: ArrayImages, tmp_path: Path, every: int, kept: list[int]
) -> None:
    found: list[int] = []
    trained = train(
        images,
        tmp_path,
        spec=spec(epochs=7, batch_size=22, checkpoint_every=every),
        on_checkpoint=lambda path: found.append(checkpoint.load_counters(path).epoch),
    )
    assert found == kept and trained.seconds["checkpoint"] > 0


def test_by_default_twenty_times_what_a_checkpoint_took_goes_by_before_the_next() -> None:
    now, counters = [100.0], Counters(round=0)
    pace = _Pace(None, lambda: now[0])
    assert pace.is_due(1), "nothing is known of what one takes"
    with pace.counted(counters):
        now[0] += 2
    assert not pace.is_due(1)
    now[0] += 39
    assert not pace.is_due(40)
    now[0] += 1
    assert pace.is_due(41)
    with pace.counted(counters):
        now[0] += 0.5
    now[0] += 10
    assert pace.is_due(42) and counters.seconds["checkpoint"] == 2.5


def test_a_device_too_small_for_the_smallest_chunk_says_the_sizes(images: ArrayImages, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match=r"batches of 22 at 32 pixels, 16 images a pass .* 2 GiB\)"):
        train(images, tmp_path, spec=spec(batch_size=22), rig=Rig(team=Small(most=5)))


def test_bf16_trains_too(images: ArrayImages, tmp_path: Path) -> None:
    assert np.isfinite(train(images, tmp_path, epochs=1, spec=spec(precision="bf16")).losses).all()


def test_a_write_that_fails_leaves_the_old_checkpoint(images: ArrayImages, tmp_path: Path) -> None:
    state = train(images, tmp_path, epochs=1).state
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    before = (state / checkpoint.COUNTERS).read_text()

    class Unwritable(checkpoint.Counters):
        def __init__(self) -> None:
            super().__init__(round=0)
            self.losses = [object()]  # type: ignore[list-item]

    with pytest.raises(TypeError):
        checkpoint.save(state, model, optimizer, Unwritable())
    assert (state / checkpoint.COUNTERS).read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_warm_rig_gives_the_weights_of_a_cold_one(
    images: ArrayImages, uninterrupted: TrainedRound, tmp_path: Path
) -> None:
    rig, rarely = Rig(), spec(checkpoint_every=3)
    warm = train(images, tmp_path / "a", rig=rig, spec=rarely)
    assert same(warm.state, uninterrupted.state)
    built = rig.model
    next_warm = train(images, tmp_path / "b", number=1, epochs=1, start=warm.state, rig=rig, spec=rarely)
    assert rig.model is built, "the network is kept, and filled anew"
    next_cold = train(images, tmp_path / "c", number=1, epochs=1, start=warm.state, spec=rarely)
    assert same(next_warm.state, next_cold.state)
    again = train(images, tmp_path / "d", rig=rig, spec=rarely)
    assert same(again.state, uninterrupted.state), "nothing is left of earlier rounds"


def test_full_is_one_run_however_often_it_is_evaluated(images: ArrayImages, tmp_path: Path) -> None:
    whole = full(1 << 10)
    pieces = full(2)
    at_once = train(images, tmp_path / "whole", spec=whole, epochs=whole.epochs_of(0))
    first = train(images, tmp_path / "first", spec=pieces, epochs=pieces.epochs_of(0))
    second = train(images, tmp_path / "second", spec=pieces, number=1, epochs=pieces.epochs_of(1), start=first.state)
    rates = [load_file(round.state / checkpoint.OPTIMIZER)["0.step"].item() for round in (at_once, second)]
    assert rates == [9, 9], "moments are carried on"
    assert [load_rate(pieces, 1, 0), load_rate(whole, 0, 2)] == pytest.approx([load_rate(whole, 0, 2)] * 2)


def full(evaluate_every: int) -> ExperimentSpec:
    """Three epochs of the whole pool, under settings that start each round of other arms anew."""
    return spec(schedule="cosine", reset_optimizer=True, checkpoint_every=3).model_copy(
        update={"arm": Arm.FULL, "full_evaluate_every": evaluate_every}
    )


def load_rate(full: ExperimentSpec, number: int, epoch: int) -> float:
    before, span = full.schedule_span(number)
    return learning_rate(full.simclr, before + epoch, span)


def test_a_trace_is_written_where_it_is_asked_for(images: ArrayImages, tmp_path: Path) -> None:
    train(images, tmp_path / "work", epochs=4, profile=tmp_path / "trace.json", spec=spec(checkpoint_every=4))
    assert "traceEvents" in json.loads((tmp_path / "trace.json").read_text())
