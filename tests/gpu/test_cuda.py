"""What only a GPU can show: `benchmarks/on_gpu` runs these with the benchmarks; elsewhere they are skipped."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from library.arrays import ArrayImages, tissue
from library.team_member import train as train_together
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from winnow.domain import EncoderSpec, ExperimentSpec
from winnow.simclr import Rig, TrainedRound, checkpoint, embed, load_encoder, train_round, untrained_encoder
from winnow.simclr.determinism import deterministic
from winnow.simclr.feed import ResidentFeed
from winnow.simclr.optimisers import make_optimiser
from winnow.simclr.pooling import MaxPool2d

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("default"),  # looking for waits is a prototype, as torch says once
]

INDICES = np.arange(150, dtype=np.int64)  # with batches of 64 the last one is a partial one
GIB = 2**30


@pytest.fixture(scope="module")
def images() -> ArrayImages:
    return tissue(160, 64)[0]


def spec(**simclr: Any) -> ExperimentSpec:
    settings = {"epochs": 2, "batch_size": 64, "precision": "fp32", **simclr}
    return ExperimentSpec.model_validate(
        {"name": "t", "dataset": "t", "positive_class": "TUM", "budget": 5, "simclr": settings}
    )


def train(images: ArrayImages, workspace: Path, rig: Rig, **changes: Any) -> TrainedRound:
    arguments = {"spec": spec(), "number": 0, "start": None, **changes}
    return train_round(images, INDICES, workspace=workspace, rig=rig, **arguments)


def weights(trained: TrainedRound) -> dict[str, torch.Tensor]:
    return load_file(trained.state / checkpoint.WEIGHTS)


def same(a: TrainedRound, b: TrainedRound) -> bool:
    return all(torch.equal(value, weights(b)[name]) for name, value in weights(a).items())


def graphs() -> int:
    """How many torch.compile has made."""
    return counters["stats"]["unique_graphs"]


def plain() -> Rig:
    return Rig("cuda", compiled="off")


def test_fp32_repeats_bit_for_bit_warm_or_cold(images: ArrayImages, tmp_path: Path) -> None:
    rig = plain()
    cold, warm, other = (train(images, tmp_path / name, r) for name, r in (("a", rig), ("b", rig), ("c", plain())))
    assert same(cold, warm) and same(cold, other)


@pytest.mark.parametrize("compiled", ["off", "on"])
def test_two_processes_make_the_same_bits(tmp_path: Path, compiled: Any) -> None:
    """With layers whose widths Inductor would pad, or not, by how fast either is."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as others:
        one, other = (others.submit(train_oddly, tmp_path / name, compiled).result() for name in "ab")
    assert same(one, other) and not one.notes


def train_oddly(folder: Path, compiled: Any) -> TrainedRound:
    for one in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):  # what was timed elsewhere must not be found again
        os.environ[one] = str(folder / one.lower())
    images, wanted = tissue(160, 64)[0], spec(batch_size=75).model_copy(update={"encoder": EncoderSpec(head=(127, 33))})
    return train(images, folder, Rig("cuda", compiled=compiled), spec=wanted)


def train_in_both(folder: Path) -> list[list[float]]:
    """The losses in bf16, and of another round in fp32 after it."""
    images, rig = tissue(160, 64)[0], plain()
    return [train(images, folder / one, rig, spec=spec(precision=one, epochs=1)).losses for one in ("bf16", "fp32")]


def test_fp32_follows_bf16_in_one_process(tmp_path: Path) -> None:
    """Whether cuBLAS repeats itself, torch looks up once in a process: here in one that has not looked."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as others:
        bf16, fp32 = others.submit(train_in_both, tmp_path).result()
    assert bf16 == pytest.approx(fp32, rel=0.05)


def test_a_round_that_was_cut_off_ends_in_the_same_weights(images: ArrayImages, tmp_path: Path) -> None:
    whole = train(images, tmp_path / "whole", plain())
    train(images, tmp_path / "cut", plain(), epochs=1)
    (tmp_path / "cut" / "state").rename(tmp_path / "cut" / "checkpoint-000001-00000000")
    assert same(train(images, tmp_path / "cut", plain()), whole)


def test_patches_on_the_device_and_streamed_ones_train_alike(images: ArrayImages, tmp_path: Path) -> None:
    streaming = Rig("cuda", compiled="off", resident_share=0)
    streamed = train(images, tmp_path / "s", streaming)
    assert same(streamed, train(images, tmp_path / "r", plain()))
    assert any("streamed" in note for note in streaming.notes)


def test_it_learns_what_a_processor_learns(images: ArrayImages, tmp_path: Path) -> None:
    one = {"epochs": 1}
    on_gpu, on_cpu = train(images, tmp_path / "g", plain(), **one), train(images, tmp_path / "c", Rig(), **one)
    assert on_gpu.losses == pytest.approx(on_cpu.losses, rel=0.02)


@pytest.mark.parametrize("batch", [100, 300])
def test_compiled_steps_fall_back_nowhere_and_change_little(tmp_path: Path, batch: int) -> None:
    """CUDA graphs, and batches of 100 with a partial one after them; 300 are compiled without graphs."""
    images, indices = tissue(320, 64)[0], np.arange(320, dtype=np.int64)
    wanted = {"spec": spec(batch_size=batch, precision="bf16", epochs=4), "number": 0, "start": None}
    before, skipped = graphs(), counters["inductor"]["cudagraph_skips"]
    compiled = Rig("cuda", compiled="on")
    fast, slow = (
        train_round(images, indices, workspace=tmp_path / name, rig=rig, **wanted)
        for name, rig in (("f", compiled), ("s", plain()))
    )
    assert not compiled.notes and graphs() > before
    assert counters["inductor"]["cudagraph_skips"] == skipped
    assert fast.losses == pytest.approx(slow.losses, rel=0.05)
    assert fast.losses[-1] < fast.losses[0]


@pytest.mark.parametrize(
    ("compiled", "settings"),
    [
        ("off", {}),
        ("off", {"optimizer": "lars"}),
        ("off", {"chunk": 16}),
        ("on", {"precision": "bf16"}),
        ("on", {"precision": "bf16", "chunk": 16}),
    ],
)
def test_a_step_waits_for_nothing(images: ArrayImages, compiled: Any, settings: dict[str, Any]) -> None:
    rig, wanted = Rig("cuda", compiled=compiled), spec(**settings)
    rig.prepare(wanted, images, 0, None, count=len(INDICES))
    optimizer = make_optimiser(wanted.simclr, rig.model.parameters())
    keys = rig.views.keys(0).to(rig.device)
    warm_up = 6  # what is compiled, recorded and found out the first times waits
    order = [INDICES[:64]] * (warm_up + 2)
    try:
        with deterministic(rig.device, wanted.simclr.precision):
            for number, (x, samples) in enumerate(rig.feed(images, INDICES).batches(order)):
                if number == warm_up:
                    torch.cuda.set_sync_debug_mode("error")
                optimizer.zero_grad(set_to_none=True)
                rig.step(x, samples, keys, len(x))
                optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not rig.notes


def test_rounds_of_other_sizes_compile_nothing_anew(images: ArrayImages, tmp_path: Path) -> None:
    rig, compiled = Rig("cuda", compiled="on"), [graphs()]
    for size in (150, 149, 141, 130):
        arguments = {"spec": spec(precision="bf16"), "number": 0, "start": None, "rig": rig}
        train_round(images, INDICES[:size], workspace=tmp_path / str(size), **arguments)
        compiled.append(graphs())
    assert compiled[0] < compiled[1] and len(set(compiled[1:])) == 1 and not rig.notes


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("chunks", [None, (10, 5)])
def test_two_gpus_equal_one(tmp_path: Path, chunks: tuple[int, int] | None) -> None:
    """In float64, compiled. The chunks of both together are those of the one: tests/library/test_team.py."""
    one, two = (
        train_together(
            tmp_path / str(number),
            processes=number,
            device="cuda",
            simclr={"chunk": chunks and chunks[number - 1]},
        )
        for number in (1, 2)
    )
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert two["picks"] == one["picks"] and not two["notes"] and not one["notes"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_max_pooling_and_its_gradient_are_torchs(dtype: torch.dtype) -> None:
    """Of whole numbers, of which many are the same, and whose sums are without rounding."""
    x = torch.randint(-3, 3, (4, 64, 31, 32), device="cuda").to(dtype, memory_format=torch.channels_last)
    made: list[tuple[torch.Tensor, torch.Tensor]] = []
    for pool in (torch.compile(MaxPool2d(), dynamic=False), torch.nn.MaxPool2d(3, stride=2, padding=1)):
        given = x.clone().requires_grad_()
        y = pool(given)
        y.backward(torch.arange(y.numel(), device="cuda").remainder(8).view_as(y).to(dtype))
        assert given.grad is not None
        made.append((y.detach(), given.grad))
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_embedding_waits_for_no_batch_but_the_one_before(images: ArrayImages) -> None:
    rig, encoder = plain(), untrained_encoder(spec().encoder, 0, "cuda")
    embed(encoder, images, INDICES, rig=rig, batch_size=32)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = embed(encoder, images, INDICES, rig=rig, batch_size=32)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = embed(untrained_encoder(spec().encoder, 0, "cpu"), images, INDICES)
    assert np.allclose(found, expected, rtol=0.01, atol=0.01 * np.abs(expected).max())


@pytest.mark.parametrize("compiled", ["off", "on"])
def test_chunks_train_like_the_whole_batch(images: ArrayImages, tmp_path: Path, compiled: Any) -> None:
    """BatchNorm sees a chunk at a time, so losses are near and not equal."""
    whole = train(images, tmp_path / "w", plain(), spec=spec(epochs=3))
    chunks = train(images, tmp_path / "c", Rig("cuda", compiled=compiled), spec=spec(epochs=3, chunk=32))
    assert chunks.losses == pytest.approx(whole.losses, rel=0.1)


def test_embeddings_are_a_processors(images: ArrayImages, tmp_path: Path) -> None:
    trained = train(images, tmp_path / "t", plain(), epochs=1)
    h = {
        device: embed(load_encoder(spec().encoder, trained.state, device), images, INDICES, rig=Rig(device))
        for device in ("cuda", "cpu")
    }
    error = np.linalg.norm(h["cuda"] - h["cpu"], axis=1) / np.linalg.norm(h["cpu"], axis=1)
    assert error.max() < 0.01


def test_embedding_displaces_no_patch_that_is_trained_on(images: ArrayImages, tmp_path: Path) -> None:
    rig = plain()
    trained = train(images, tmp_path / "t", rig, epochs=1)
    held = rig.feed(images, INDICES)
    embed(load_encoder(spec().encoder, trained.state, "cuda"), images, np.arange(160), rig=rig)
    assert rig.feed(images, INDICES) is held


class Numbered:
    """More patches than an array could hold, each with its number in its first four pixels and all others the same."""

    image_size = 224

    def __len__(self) -> int:
        return 14_500  # more than 2³¹ bytes

    def take(self, indices: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        made = np.empty((len(indices), 224, 224, 3), np.uint8) if out is None else out
        made[:] = (indices % 251).astype(np.uint8)[:, None, None, None]
        made.reshape(len(indices), -1)[:, :8] = indices.astype("<i8").view(np.uint8).reshape(-1, 8)
        return made


def test_more_than_31_bits_count_lie_on_the_device() -> None:
    images, wanted = Numbered(), np.arange(14_500, dtype=np.int64)
    feed = Rig("cuda", compiled="off").feed(images, wanted)
    assert isinstance(feed, ResidentFeed)
    order = [wanted[-3:], wanted[:2], wanted[14_260:14_270]]
    for (x, samples), batch in zip(feed.batches(order), order, strict=True):
        assert samples.tolist() == batch.tolist()
        assert np.array_equal(x.cpu().numpy(), images.take(batch))


def test_patches_take_half_of_what_may_not_be_taken() -> None:
    """Free memory that this process is kept from, or that another one takes in between."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 1.5 * GIB) / total))
    try:
        rig = Rig("cuda", compiled="off")
        few = rig.feed(Numbered(), np.arange(100))
        assert isinstance(few, ResidentFeed) and few.rows == 7_250
        assert not isinstance(rig.feed(few._images, np.arange(8_000)), ResidentFeed)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.timeout(500)  # it compiles several times
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_a_gpu_that_is_too_small_gives_up_patches_then_halves_chunks(tmp_path: Path, compiled: Any) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    large = tissue(256, 224)[0]
    rig = Rig("cuda", compiled=compiled)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 3 * GIB) / total))
    try:
        wanted = spec(batch_size=256, epochs=1)
        trained = train_round(large, np.arange(256), spec=wanted, number=0, workspace=tmp_path, start=None, rig=rig)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert trained.visits == 256 and np.isfinite(trained.losses).all()
    assert any("chunks of" in note for note in rig.notes), rig.notes
