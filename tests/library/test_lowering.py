"""What torch.compile makes of views, BatchNorm over processes and max pooling compiles to a GPU's machine code.

The GPU is imagined and nothing is run on it: operations are traced on a processor, lowered by Inductor for a GPU, and
compiled by Triton.
"""

import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.utils._triton as found
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.device_interface import CudaInterface
from torch._functorch.aot_autograd import make_boxed_func
from torch._guards import TracingContext, tracing
from torch._inductor import compile_fx, config
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import PyCodeCache
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.runtime import triton_helpers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.testing._internal.distributed.fake_pg import FakeStore

from winnow.domain import ViewsSpec
from winnow.simclr.pooling import MaxPool2d
from winnow.simclr.team import SharedBatchNorm, Team
from winnow.simclr.views import Views

triton = pytest.importorskip("triton", reason="Triton is not for this machine")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu asks the GPU itself")

GPU = torch.device("cuda:0")
HOPPER = SimpleNamespace(
    name="imagined",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 * 2**30,
    warp_size=32,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    L2_cache_size=50 * 2**20,
    clock_rate=1980000,
    memory_clock_rate=2619000,
    memory_bus_width=5120,
)


class Driver:
    """What Triton asks of a driver before anything runs."""

    def get_current_target(self) -> Any:
        return triton.backends.compiler.GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return GPU


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """The Triton sources of kernels that were compiled, on a machine that thinks it has a GPU."""
    made: list[str] = []

    def compile_kernel(_: Any, name: str, source: str, device_str: str = "cuda") -> Any:
        kernel = getattr(PyCodeCache.load(source), name)
        kernel.precompile(warm_cache_only=True)  # to machine code, and not onto a device
        made.append(source)
        return kernel

    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    for name, value in {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": HOPPER,
        "get_device_capability": (9, 0),
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "synchronize": None,
        "_lazy_init": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, functools.partial(lambda known, *_, **__: known, value))
    for holder in (CudaInterface, CudaInterface.Worker):
        monkeypatch.setattr(holder, "get_device_properties", staticmethod(lambda *_: HOPPER))
    monkeypatch.setattr(CudaInterface, "get_compute_capability", staticmethod(lambda *_: 90))
    monkeypatch.setattr("torch._subclasses.fake_tensor.init_gpu_context", lambda *_: None)
    monkeypatch.setattr(triton_helpers, "set_driver_to_gpu", lambda: None)
    monkeypatch.setattr(AsyncCompile, "triton", compile_kernel)
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    forget()
    with config.patch({"fx_graph_cache": False, "compile_threads": 1}):
        yield made
    forget()


def forget() -> None:
    """What torch remembers of the machine."""
    for one in vars(found).values():
        if hasattr(one, "cache_clear"):
            one.cache_clear()
    torch._dynamo.reset()


def trace(function: Any, *arguments: Tensor) -> list[torch.fx.GraphModule]:
    """The operations that torch.compile would lower: forward, then, where there is one, the gradient."""
    traced: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        traced.append(copy.deepcopy(graph))
        return make_boxed_func(graph.forward)

    way = {"decompositions": select_decomp_table(), "partition_fn": compile_fx.partition_fn}
    backend = aot_autograd(fw_compiler=keep, **way)
    made = torch.compile(function, backend=backend, dynamic=False, fullgraph=True)(*arguments)
    if made.requires_grad:
        made.sum().backward()
    return traced


def lower(graph: torch.fx.GraphModule) -> None:
    """Have Inductor and Triton compile a traced graph for the imagined GPU."""
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": GPU}
    graph.recompile()
    mode = FakeTensorMode()
    shapes = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    with mode:
        there = [torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device=GPU) for one in shapes]
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*there)
    with mode, tracing(TracingContext(mode)):
        compile_fx.compile_fx_inner(graph, there)


@pytest.fixture
def views() -> list[torch.fx.GraphModule]:
    size, count = 64, 32
    views = Views(ViewsSpec(), size, 0)
    return trace(
        views.make, torch.zeros(count, size, size, 3, dtype=torch.uint8), torch.arange(count), views.keys(0)[0]
    )


def test_views_compile_for_a_gpu(views: list[torch.fx.GraphModule], kernels: list[str]) -> None:
    (graph,) = views
    lower(graph)
    assert len(kernels) > 5


@pytest.fixture
def shared_norm() -> Iterator[list[torch.fx.GraphModule]]:
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    norm = SharedBatchNorm(nn.BatchNorm2d(16), Team(rank=0, size=2))
    x = torch.rand(8, 16, 14, 14).to(torch.bfloat16, memory_format=torch.channels_last)
    yield trace(norm, x.requires_grad_())
    dist.destroy_process_group()


def test_batch_norm_over_processes_compiles_for_a_gpu(
    shared_norm: list[torch.fx.GraphModule], kernels: list[str]
) -> None:
    """In one graph each way, whose processes meet once."""
    for graph, collective in zip(shared_norm, ("all_gather_into_tensor", "all_reduce"), strict=True):
        called = [str(node.target) for node in graph.graph.nodes if "c10d" in str(node.target)]
        assert called == [f"_c10d_functional.{collective}.default", "_c10d_functional.wait_tensor.default"]
        kernels.clear()
        lower(graph)
        assert kernels


@pytest.fixture
def pooling() -> list[torch.fx.GraphModule]:
    x = torch.rand(2, 64, 32, 32).to(torch.bfloat16, memory_format=torch.channels_last)
    return trace(MaxPool2d(), x.requires_grad_())


def test_max_pooling_compiles_to_a_kernel_each_way(pooling: list[torch.fx.GraphModule], kernels: list[str]) -> None:
    """Which reads and writes bfloat16 and a byte where they lie: the map is the largest of a step."""
    for graph in pooling:
        kernels.clear()
        lower(graph)
        (kernel,) = kernels
        assert "*i8" in kernel and "*fp32" not in kernel and "atomic_add(" not in kernel
        assert "YBLOCK" not in kernel, "a map is turned around"
