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
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


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

    @property
    def fewest(self) -> int:
        """Images that a minibatch needs: two to contrast with each other, and one for each process."""
        return max(2, self.size)

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

    def meet(self) -> None:
        """Wait until all are here."""
        if self.size > 1:
            dist.barrier(self.control)

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
        _share_statistics(network, self)
        return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)


def _all_of(z: Tensor, sizes: list[int]) -> Tensor:
    """(sizes[rank], ...) of each rank → (sum of sizes, ...), in rank order."""
    longest = max(sizes)
    if len(z) < longest:
        z = torch.cat([z, z.new_zeros(longest - len(z), *z.shape[1:])])
    found = z.new_empty(len(sizes) * longest, *z.shape[1:])
    dist.all_gather_into_tensor(found, z.contiguous())
    if min(sizes) == longest:
        return found
    return torch.cat([part[:size] for part, size in zip(found.split(longest), sizes, strict=True)])


class _Gather(torch.autograd.Function):
    """`_all_of`, whose gradient is summed over the team."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, sizes: list[int], start: int) -> Tensor:
        ctx.rows = slice(start, start + len(z))
        return _all_of(z, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[ctx.rows], None, None


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the minibatches of all processes, of any number of axes: one gather a layer, and a sum for its
    gradient. Unlike torch's SyncBatchNorm it runs on processors too, never waits for the host, and torch.compile goes
    through it.
    """

    def __init__(self, of: nn.BatchNorm1d | nn.BatchNorm2d, team: Team) -> None:
        super().__init__(of.num_features, of.eps, of.momentum, dtype=of.weight.dtype, device=of.weight.device)
        self.load_state_dict(of.state_dict())
        self._team = team

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"needs (n, c, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        made, mean, variance, number = _normalise(input, self.weight, self.bias, self.eps, self._team)
        if self.track_running_stats:
            self._remember(mean, variance * number / (number - 1))
        return made

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


class _Normalise(torch.autograd.Function):
    """The output of BatchNorm, the moments it was made with, and its gradient (Ioffe and Szegedy 2015, section 3).

    Computed in float32 at least, as torch's own does, from nothing but the input and its moments: left to itself,
    autograd would keep a map in float32 for each layer.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, eps: float, team: Team
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = _wide(input)
        mean, variance, number = _moments(x, team)
        rate = torch.rsqrt(variance + eps)
        ctx.team = team
        ctx.save_for_backward(input, weight, mean, rate, number)
        ctx.mark_non_differentiable(mean, variance, number)
        made = (x - _by_channel(mean, x)) * _by_channel(weight * rate, x) + _by_channel(bias, x)
        return made.to(input.dtype), mean, variance, number

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        input, weight, mean, rate, number = ctx.saved_tensors
        x, slope = _wide(input), _wide(gradients[0])
        normal = (x - _by_channel(mean, x)) * _by_channel(rate, x)
        own = torch.stack([_per_channel(slope), _per_channel(slope * normal)])  # (2, c)
        level, tilt = ctx.team.total(own) / number  # (c,) each
        made = (slope - _by_channel(level, x) - normal * _by_channel(tilt, x)) * _by_channel(weight * rate, x)
        return made.to(input.dtype), own[1], own[0], None, None


def _normalise(input: Tensor, weight: Tensor, bias: Tensor, eps: float, team: Team) -> tuple[Tensor, ...]:
    return _Normalise.apply(input, weight, bias, eps, team)  # pyright: ignore[reportReturnType]  # apply is untyped


def _moments(x: Tensor, team: Team) -> tuple[Tensor, Tensor, Tensor]:
    """(c,) each: mean, variance and how many values they are of, over the team (Chan et al. 1979)."""
    variance, mean = torch.var_mean(x, _axes(x), correction=0)
    own = torch.stack([mean, variance, torch.full_like(mean, x.numel() // x.shape[1])])[None]
    means, variances, numbers = team.gather(own, team.size)[0].unbind(1)  # (processes, c) each
    number = numbers.sum(0)
    mean = (means * numbers).sum(0) / number
    return mean, ((variances + (means - mean).square()) * numbers).sum(0) / number, number


def _axes(x: Tensor) -> list[int]:
    return [axis for axis in range(x.ndim) if axis != 1]


def _per_channel(x: Tensor) -> Tensor:
    return x.sum(_axes(x))


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.ndim - 2))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _share_statistics(network: nn.Module, team: Team) -> None:
    for name, child in network.named_children():
        if isinstance(child, NORMS):
            setattr(network, name, SharedBatchNorm(child, team))
        else:
            _share_statistics(child, team)
