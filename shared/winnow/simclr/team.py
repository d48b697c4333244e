"""Several processes that train one network, each on its share of every minibatch.

A team of one does nothing at all, so the training loop reads the same for any number. With more, results equal those
of one process up to the order of summation: negatives are gathered with their gradients, BatchNorm sees the whole
minibatch, and gradients are averaged by DistributedDataParallel.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

PATIENCE = timedelta(days=30)
"""How long the others wait for the leader's next word: it may be idle between rounds."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Team:
    """Who this process is. `control` carries small words between hosts' processors while the devices compute."""

    rank: int = 0
    size: int = 1
    control: Any = None

    @classmethod
    def join(cls, device: str) -> "Team":
        """The team that torch's launcher started this process in; one alone outside it."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if device.startswith("cuda"):
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size(), control)

    def leave(self) -> None:
        """End the team; the process goes on alone."""
        if self.size > 1:
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this process speaks for the team: it stores, reports and decides."""
        return self.rank == 0

    def share(self, batch: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's part of a minibatch: every size-th sample."""
        return batch[self.rank :: self.size]

    def sizes(self, count: int) -> list[int]:
        """How many of a minibatch of `count` samples each process has."""
        return [len(range(rank, count, self.size)) for rank in range(self.size)]

    def agree(self, stop: bool) -> bool:
        """What the leader says, heard by all in the same step."""
        if self.size == 1:
            return stop
        word = torch.tensor([int(stop)])
        dist.broadcast(word, 0, group=self.control)
        return bool(word.item())

    def say(self, text: str) -> None:
        """Tell the others, who `hear` it."""
        if self.size > 1:
            words = torch.tensor(list(text.encode()), dtype=torch.uint8)
            dist.broadcast(torch.tensor([len(words)]), 0, group=self.control)
            dist.broadcast(words, 0, group=self.control)

    def hear(self) -> str:
        """What the leader says next; waits for it."""
        length = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(length, 0, group=self.control)
        words = torch.empty(int(length.item()), dtype=torch.uint8)
        dist.broadcast(words, 0, group=self.control)
        return bytes(words.tolist()).decode()

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the team, without gradient."""
        if self.size == 1:
            return value
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    def gather(self, z: Tensor, count: int) -> tuple[Tensor, int]:
        """(n_r, d) of each rank → ((n, d), in rank order, and where this rank's rows begin); gradients flow back.

        Args:
            count: n, the minibatch that `share` divided.
        """
        if self.size == 1:
            return z, 0
        sizes = self.sizes(count)
        start = sum(sizes[: self.rank])
        return _Gather.apply(z, sizes, start), start  # pyright: ignore[reportReturnType]  # apply is untyped

    def wrap(self, network: nn.Module) -> nn.Module:
        """`network` with BatchNorm over the whole minibatch and gradients averaged over the team."""
        if self.size == 1:
            return network
        on_gpu = next(network.parameters()).is_cuda
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network) if on_gpu else _with_shared_statistics(network)
        return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)


class _Gather(torch.autograd.Function):
    """all_gather of parts of unequal length, whose gradient is summed over the team."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, sizes: list[int], start: int) -> Tensor:
        ctx.rows = slice(start, start + len(z))
        longest = max(sizes)
        padded = z.new_zeros(longest, z.shape[1])
        padded[: len(z)] = z
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.rows], None, None


class _Sum(torch.autograd.Function):
    """all_reduce whose gradient is all-reduced, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


def _sum(x: Tensor) -> Tensor:
    return _Sum.apply(x)  # pyright: ignore[reportReturnType]  # apply is untyped


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the minibatches of all processes, for processors: torch's SyncBatchNorm is for GPUs alone.

    Sums are taken in float32 at least, as torch's own BatchNorm does.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"needs (n, c, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        own = x.new_full((1,), x.numel() / x.shape[1])
        sums, number = _sum(torch.cat([x.sum(axes), own])).split([self.num_features, 1])
        mean = sums / number  # (c,)
        centred = x - mean.view(shape)  # the mean first: E[x²] - E[x]² would cancel
        variance = _sum((centred * centred).sum(axes)) / number
        if self.track_running_stats:
            self._remember(mean.detach(), (variance * number / (number - 1)).detach())
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def _with_shared_statistics(network: nn.Module) -> nn.Module:
    for name, child in network.named_children():
        if isinstance(child, NORMS):
            shared = SharedBatchNorm(child.num_features, child.eps, child.momentum, dtype=child.weight.dtype)
            shared.load_state_dict(child.state_dict())
            setattr(network, name, shared)
        else:
            _with_shared_statistics(child)
    return network
