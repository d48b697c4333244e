"""A step in chunks equals the plain one; what the compiler cannot do is done without it."""

from typing import Any

import pytest
import torch
from library.arrays import tissue
from torch import Tensor, nn

from winnow.domain import EncoderSpec, SimclrSpec, ViewsSpec
from winnow.simclr.loss import nt_xent
from winnow.simclr.model import build
from winnow.simclr.step import Compiled, Step
from winnow.simclr.team import Team
from winnow.simclr.views import Views

SIZE, IMAGES = 16, 10


def without_norms() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16))


def run(network: nn.Module, chunk: int | None, **changes: Any) -> tuple[Tensor, list[Tensor]]:
    settings = SimclrSpec.model_validate({"batch_size": IMAGES, "chunk": chunk, **changes})
    step = Step(network, Views(ViewsSpec(), SIZE, 3), settings, Team(), compiled=False, note=pytest.fail)
    x = torch.from_numpy(tissue(IMAGES, SIZE)[0].array)
    network.zero_grad()
    loss = step(x, torch.arange(IMAGES), Views(ViewsSpec(), SIZE, 3).keys(0), IMAGES)
    return loss, [p.grad.clone() for p in network.parameters() if p.grad is not None]


def test_views_in_bf16_are_what_autocast_makes_of_them() -> None:
    network, views, met = without_norms(), Views(ViewsSpec(), SIZE, 3), list[torch.dtype]()
    hook = network.register_forward_pre_hook(lambda _, given: met.append(given[0].dtype))
    loss, slopes = run(network, None, precision="bf16")
    hook.remove()
    x = torch.from_numpy(tissue(IMAGES, SIZE)[0].array)
    both = torch.cat([views(x, torch.arange(IMAGES), epoch=0, view=view) for view in (0, 1)])
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        z0, z1 = network(both.contiguous(memory_format=torch.channels_last)).chunk(2)
    expected = nt_xent(z0, z1, SimclrSpec().temperature)
    expected.backward()
    assert (met, both.dtype) == ([torch.bfloat16], torch.float32)
    assert torch.equal(loss, expected)
    assert slopes and all(torch.equal(p.grad, slope) for p, slope in zip(network.parameters(), slopes, strict=True))


@pytest.mark.parametrize("chunk", [2, 3, 5, 9])
def test_gradients_in_chunks_are_those_of_the_whole_batch(chunk: int) -> None:
    network = without_norms()
    whole_loss, whole = run(network, None)
    loss, parts = run(network, chunk)
    assert loss.item() == pytest.approx(whole_loss.item(), abs=1e-6)
    assert whole and len(whole) == len(parts)
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-4)


def test_one_chunk_is_the_plain_step() -> None:
    network = without_norms()
    for a, b in zip(run(network, None)[1], run(network, IMAGES)[1], strict=True):
        assert torch.equal(a, b)


def test_batch_norm_learns_from_each_chunk_once() -> None:
    network = build(EncoderSpec(), 0).train()
    run(network, 5)
    tracked = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    assert set(map(int, tracked.values())) == {2}
    assert all(norm.track_running_stats for norm in network.modules() if isinstance(norm, nn.BatchNorm2d))


def test_a_function_that_does_not_compile_runs_as_it_is_and_the_reason_is_noted() -> None:
    import torch._inductor.config as inductor

    def double(x: Tensor) -> Tensor:
        return torch.sin(x) * 2

    notes: list[str] = []
    compiled = Compiled(double, "network", notes.append, graphs=False, repeats=True)
    x = torch.linspace(0, 1, 1000)
    try:
        with inductor.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
            assert torch.equal(compiled(x), double(x))
            assert torch.equal(compiled(x), double(x))
    finally:
        torch._dynamo.reset()
    (note,) = notes
    assert "torch.compile gave up on the network" in note


def test_a_gradient_that_does_not_compile_is_made_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.backends.common import aot_autograd

    def fail(*_: Any) -> Any:
        raise RuntimeError("no kernel for it")

    backend = aot_autograd(fw_compiler=lambda graph, _: graph.forward, bw_compiler=fail)
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda plain, **_: compile_(plain, backend=backend))
    notes: list[str] = []
    network = without_norms()
    compiled = Compiled(network, "network", notes.append, graphs=False, repeats=True)
    x = torch.rand(IMAGES, 3, SIZE, SIZE)
    try:
        for _ in range(2):
            network.zero_grad()
            compiled(x).square().sum().backward()
    finally:
        torch._dynamo.reset()
    (note,) = notes
    assert "no kernel for it" in note
    made = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    network(x).square().sum().backward()
    assert made and all(torch.equal(a, p.grad) for a, p in zip(made, network.parameters(), strict=True))


def test_memory_that_ends_while_compiling_is_no_reason_to_give_up_on_it() -> None:
    from torch._dynamo.exc import TorchDynamoException

    def fail(_: Tensor) -> Tensor:
        raise TorchDynamoException("backend='inductor' raised: OutOfMemoryError: CUDA out of memory.")

    compiled = Compiled(fail, "network", pytest.fail, graphs=False, repeats=True)
    compiled._fast = fail
    with pytest.raises(TorchDynamoException):
        compiled(torch.zeros(3))


@pytest.mark.parametrize(("chunk", "count"), [(None, IMAGES - 3), (4, 6), (3, 5), (9, 9)])
def test_views_of_a_minibatch_that_is_not_full_are_made_by_what_is_compiled(chunk: int | None, count: int) -> None:
    """By whatever is compiled for those of a full one: nothing is compiled anew, and no other image shows in them."""
    from torch._dynamo.utils import counters

    x, keys = torch.from_numpy(tissue(IMAGES, SIZE)[0].array), Views(ViewsSpec(), SIZE, 3).keys(0)
    met: list[list[Tensor]] = []
    network = without_norms()
    network.register_forward_pre_hook(lambda _, given: met[-1].append(given[0].detach().clone()))
    settings = SimclrSpec.model_validate({"batch_size": IMAGES, "chunk": chunk})
    made: list[int] = []
    torch._dynamo.reset()
    try:
        for is_compiled in (True, False):
            step = Step(network, Views(ViewsSpec(), SIZE, 3), settings, Team(), compiled=False, note=pytest.fail)
            if is_compiled:
                views = Compiled(step._write_views, "views", pytest.fail, graphs=False, repeats=True)
                step._fast = network, step._filled_up(views)
            for images in (IMAGES, count):
                met.append([])
                step(x[:images], torch.arange(images), keys, images)
                made.append(counters["stats"]["unique_graphs"])
    finally:
        torch._dynamo.reset()
    whole, rest, plain_whole, plain_rest = met
    assert made[0] == made[1], "the rest compiled nothing"
    assert [len(one) for one in rest] == [len(one) for one in plain_rest]
    for one, other in zip([*whole, *rest], [*plain_whole, *plain_rest], strict=True):
        assert torch.allclose(one, other, atol=1e-4)
        assert one.is_contiguous(memory_format=torch.channels_last)


def test_errors_of_the_function_itself_are_not_swallowed() -> None:
    def fail(x: Tensor) -> Tensor:
        return x.reshape(7)

    compiled = Compiled(fail, "network", pytest.fail, graphs=False, repeats=True)
    compiled._fast = fail
    with pytest.raises(RuntimeError, match="invalid for input"):
        compiled(torch.zeros(3))


@pytest.mark.parametrize(("chunk", "team"), [(None, Team()), (4, Team()), (None, Team(0, 2)), (None, Team(1, 2))])
def test_full_batches_alone_are_compiled_by_all_processes_or_none(
    monkeypatch: pytest.MonkeyPatch, chunk: int | None, team: Team
) -> None:
    """A round's last batch has another size in each round, and compiling it would take longer than all of them: its
    views are made by what is compiled for a full one.
    """
    taken: list[int] = []

    def compile_(plain: Any, **_: Any) -> Any:
        return lambda *arguments: (taken.append(len(arguments[0])), plain(*arguments))[1]

    monkeypatch.setattr(torch, "compile", compile_)
    views, settings = Views(ViewsSpec(), SIZE, 3), SimclrSpec(batch_size=IMAGES, chunk=chunk)
    step = Step(without_norms(), views, settings, team, compiled=True, note=pytest.fail)
    x = torch.from_numpy(tissue(IMAGES, SIZE)[0].array)
    full = {None: IMAGES // team.size, 4: 4}[chunk]
    for count in range(team.size, IMAGES + 1):
        taken.clear()
        part = x[: team.sizes(count)[team.rank]].tensor_split(step._passes(count))[0]
        step._project(part, torch.arange(len(part)), views.keys(0), count)
        assert taken == [full, full, *([2 * len(part)] if count == IMAGES else [])]  # views twice, the network once
        taken.clear()
        step.has_full = False
        step._project(part, torch.arange(len(part)), views.keys(0), count)
        assert taken == ([2 * len(part)] if count == IMAGES else [])
        step.has_full = True


def test_processes_of_unequal_shares_compile_nothing_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("is compiled"))
    notes: list[str] = []
    views, settings = Views(ViewsSpec(), SIZE, 3), SimclrSpec(batch_size=IMAGES)
    Step(without_norms(), views, settings, Team(0, 3), compiled=True, note=notes.append)
    (note,) = notes
    assert "batches of 10" in note and "3 processes" in note


@pytest.mark.parametrize(
    ("batch", "chunk", "team", "graphs"),
    [(256, None, Team(), True), (257, None, Team(), False), (128, 64, Team(), False), (128, None, Team(0, 2), False)],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_graphs_are_for_small_whole_batches_of_one_process_and_fp32_repeats(
    monkeypatch: pytest.MonkeyPatch, batch: int, chunk: int | None, team: Team, graphs: bool, precision: Any
) -> None:
    taken: list[dict[str, bool]] = []
    monkeypatch.setattr(torch, "compile", lambda plain, *, options, **_: (taken.append(options), plain)[1])
    settings = SimclrSpec(batch_size=batch, chunk=chunk, precision=precision)
    Step(without_norms(), Views(ViewsSpec(), SIZE, 3), settings, team, compiled=True, note=pytest.fail)
    assert [one["triton.cudagraphs"] for one in taken] == [graphs, False]  # the network's, and never the views'
    assert [one["deterministic"] for one in taken] == 2 * [precision == "fp32"]


def test_what_is_compiled_knows_whether_it_must_repeat() -> None:
    from torch._inductor import config

    def double(x: Tensor) -> Tensor:
        return torch.sin(x) * 2

    seen: list[bool] = []
    for repeats in (True, False):
        compiled = Compiled(double, "network", pytest.fail, graphs=False, repeats=repeats)
        with config.patch(post_grad_custom_pre_pass=lambda _: seen.append(config.deterministic)):
            assert torch.allclose(compiled(torch.ones(8)), double(torch.ones(8)))
        torch._dynamo.reset()
    assert seen == [True, False]
