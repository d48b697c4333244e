"""One training step: views, network, loss, gradients. Whole, or in chunks where the minibatch does not fit."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch._functorch.config  # torch.compile's, and without a public name
from torch import Tensor, nn

from winnow.domain import SimclrSpec
from winnow.errors import is_out_of_memory
from winnow.simclr.loss import shared_nt_xent
from winnow.simclr.team import NORMS, Team
from winnow.simclr.views import Views

Note = Callable[[str], None]
_Way = tuple[Callable[..., Any], Callable[..., Any]]
SMALL_BATCH = 256
"""Images a step up to which a large GPU waits for launches: CUDA graphs take them away."""

BLOCK = 1 << 18
"""Pixels whose views a processor makes at a time: what is between the operations stays in its cache."""


class Step:
    """Computes the gradients of one minibatch.

    Args:
        network: x (2n, 3, H, W) → z (2n, d). views: makes them.
        compiled: have torch.compile fuse both for full minibatches. The network takes the last one of an epoch, whose
            size is another in each round, as it is; its views are made among those of a full one if the round has any.
            Where compiling fails all run as they are, and `give_up` (by default `note`) hears the reason. Processes do
            one or the other together: their collectives come in another order.
        graphs: replay small batches as CUDA graphs. note: hears what is not compiled, and why.
        chunk: images a pass; None for the whole minibatch. See `_in_chunks`.
    """

    def __init__(
        self,
        network: nn.Module,
        views: Views,
        settings: SimclrSpec,
        team: Team,
        *,
        compiled: bool,
        note: Note,
        give_up: Note | None = None,
        graphs: bool = True,
    ) -> None:
        self._settings = settings
        self._team = team
        self._plain = network
        self.chunk = settings.chunk
        # A graph's replay overwrites the gradients of the one before, which chunks add up. A team's wait for each other
        # in mid-network, and share their gradients while they are made.
        graphs = graphs and settings.batch_size <= SMALL_BATCH and settings.chunk is None and team.size == 1
        self.has_full = True
        """Whether this round has a full minibatch. Where it has none, to compile views takes longer than it saves."""
        self._views = views
        self._as_is: _Way = network, self._write_views
        self._fast = self._as_is
        if compiled and len(set(team.sizes(settings.batch_size))) > 1:
            note(f"batches of {settings.batch_size} are not divided by {team.size} processes: no torch.compile")
        elif compiled:
            give_up, repeats = give_up or note, settings.precision == "fp32"
            fast = Compiled(network, "network", give_up, graphs=graphs, repeats=repeats)
            write = Compiled(self._write_views, "views", give_up, graphs=False, repeats=repeats)
            self._fast = fast, self._filled_up(write)

    def __call__(self, x: Tensor, samples: Tensor, keys: Tensor, count: int) -> Tensor:
        """Leave the gradients in the network's parameters.

        Args:
            x: (n_r, H, W, 3) uint8, this process's share of a minibatch of `count` images. samples: (n_r,).
            keys: (2,) int64, what the views of this epoch are drawn from.

        Returns:
            The loss of the whole minibatch, a scalar on the device, without gradient.
        """
        if (passes := self._passes(count)) > 1:
            loss = self._in_chunks(x, samples, keys, count, passes)
        else:
            z0, z1 = self._project(x, samples, keys, count)
            loss = shared_nt_xent(z0, z1, self._settings.temperature, count, self._team)
            loss.backward()
        return self._team.total(loss.detach()) / self._team.size

    def _passes(self, count: int) -> int:
        """Chunks that each process takes its share of a minibatch in: as many in all, for they wait for each other."""
        return 1 if self.chunk is None else math.ceil(max(self._team.sizes(count)) / self.chunk)

    def _project(self, x: Tensor, samples: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
        is_full = count == self._settings.batch_size
        network = (self._fast if is_full else self._as_is)[0]
        write = (self._fast if self.has_full else self._as_is)[1]
        with torch.no_grad():
            both = self._both_views(x, samples, keys, write)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._settings.precision == "bf16"):
            z0, z1 = network(both).chunk(2)  # (n, d) each
        return z0, z1

    def _both_views(self, x: Tensor, samples: Tensor, keys: Tensor, write: Callable[..., Any]) -> Tensor:
        """The first view of every image, then the second of every image: (2n, 3, H, W), channels last in memory.

        In bf16 that is what autocast would make of them before the first convolution, and half the bytes.
        """
        in_blocks = x.device.type == "cpu" and write == self._write_views
        block = max(1, BLOCK // (x.shape[1] * x.shape[2])) if in_blocks else len(x)
        shape = 2 * len(x), x.shape[3], *x.shape[1:3]
        precise = torch.float32 if self._settings.precision == "fp32" else torch.bfloat16
        both = torch.empty(shape, dtype=precise, device=x.device, memory_format=torch.channels_last)
        for key, side in zip(keys, both.chunk(2), strict=True):
            for of_images, of_samples, made in zip(*(one.split(block) for one in (x, samples, side)), strict=True):
                write(of_images, of_samples, key, made)
        return both

    def _filled_up(self, write: Callable[..., Any]) -> Callable[..., Any]:
        """`write` for any number of images, by what is compiled for a full minibatch: it compiles nothing anew."""
        full = self._settings.batch_size
        rows = math.ceil(max(self._team.sizes(full)) / self._passes(full))

        def act(x: Tensor, samples: Tensor, key: Tensor, made: Tensor) -> None:
            if len(x) >= rows:
                (write if len(x) == rows else self._write_views)(x, samples, key, made)
                return
            again = torch.arange(rows, device=x.device) % len(x)
            shape = rows, *made.shape[1:]
            whole = torch.empty(shape, dtype=made.dtype, device=x.device, memory_format=torch.channels_last)
            write(x[again], samples[again], key, whole)
            made.copy_(whole[: len(x)])

        return act

    def _write_views(self, x: Tensor, samples: Tensor, key: Tensor, made: Tensor) -> None:
        made.copy_(self._views.make(x, samples, key))

    def _in_chunks(self, x: Tensor, samples: Tensor, keys: Tensor, count: int, passes: int) -> Tensor:
        """Gradient caching (Gao et al. 2021): z of all chunks without graphs, the loss's gradient at z, then each chunk
        once more with its graph. Memory is one chunk's. BatchNorm sees a chunk at a time, and learns from it once:
        chunks are of one size, up to an image.
        """
        parts = list(zip(x.tensor_split(passes), samples.tensor_split(passes), strict=True))
        with torch.no_grad(), _forgetful(self._plain):
            made = [self._project(*part, keys, count) for part in parts]
        z0, z1 = (torch.cat(side).detach().requires_grad_() for side in zip(*made, strict=True))
        loss = shared_nt_xent(z0, z1, self._settings.temperature, count, self._team)
        loss.backward()
        assert z0.grad is not None and z1.grad is not None
        slopes = zip(z0.grad.tensor_split(passes), z1.grad.tensor_split(passes), strict=True)
        for number, (part, slope) in enumerate(zip(parts, slopes, strict=True)):
            with self._unsynchronised(number + 1 < len(parts)):
                torch.autograd.backward(self._project(*part, keys, count), slope)
        return loss

    def _unsynchronised(self, wanted: bool) -> Any:
        """Within it a team's gradients add up here; the last chunk averages them once."""
        if wanted and self._team.size > 1:
            return self._plain.no_sync()  # type: ignore[operator]
        return nullcontext()


class Compiled:
    """A function under torch.compile, which takes up to minutes, or as it is where that fails.

    Args:
        give_up: hears why it fails; what it raises goes through. graphs: replay it as a CUDA graph.
        repeats: how fast a kernel runs decides nothing that changes a number.
    """

    def __init__(self, plain: Callable[..., Any], name: str, give_up: Note, *, graphs: bool, repeats: bool) -> None:
        self._plain = plain
        self._name = name
        self._give_up = give_up
        options: dict[str, Any] = {"triton.cudagraphs": graphs, "deterministic": repeats}
        self._fast: Callable[..., Any] | None = torch.compile(plain, options=options, dynamic=False)

    def __call__(self, *arguments: Any) -> Any:
        if self._fast is not None:
            try:
                # The gradient is compiled now as well: where that fails in backward(), there is no other way left.
                with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
                    return self._fast(*arguments)
            except Exception as error:
                if not _is_the_compilers(error) or is_out_of_memory(error):
                    raise
                self._fast = None
                cause = getattr(error, "inner_exception", error)
                reason = " ".join([f"{type(cause).__name__}:", *str(cause).strip().splitlines()[:1]])
                self._give_up(f"torch.compile gave up on the {self._name} and it runs as it is: {reason}")
        return self._plain(*arguments)


def _is_the_compilers(error: Exception) -> bool:
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import, and is here already by now

    return isinstance(error, TorchDynamoException | ImportError)


class _forgetful:  # noqa: N801 - reads as the context it is
    """Within it, BatchNorm normalises by the minibatch and remembers nothing of it."""

    def __init__(self, network: nn.Module) -> None:
        self._norms = [module for module in network.modules() if isinstance(module, NORMS)]

    def __enter__(self) -> None:
        for norm in self._norms:
            norm.track_running_stats = False

    def __exit__(self, *_: object) -> None:
        for norm in self._norms:
            norm.track_running_stats = True
