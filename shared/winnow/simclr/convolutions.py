"""torch's convolution, but on a processor by the method that takes the least time there.

Processors are where networks are tried out before a GPU is spent on them; what a GPU does is left as it is.
"""

import torch
from torch import Tensor, nn

from winnow.simclr import small_maps, winograd


class Conv2d(nn.Conv2d):
    """torch's, up to rounding: by `winograd` or by `small_maps` where these are better."""

    def forward(self, input: Tensor) -> Tensor:
        if not self._is_plain(input):
            return super().forward(input)
        if self._keeps_size() and winograd.suits(input, self.weight):
            y = winograd.convolve(input, self.weight)
        elif seen := self._windows(input):
            y = small_maps.convolve(input, self.weight, seen)
        else:
            return super().forward(input)
        return y if self.bias is None else y + self.bias[:, None, None]

    def _is_plain(self, input: Tensor) -> bool:
        """Whether it is (n, c, h, w) on a processor, in the weights' own type, and nothing but kernel and stride."""
        is_bare = self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        is_counted = not isinstance(self.padding, str)  # "same" and "valid" are torch's to resolve
        is_here = input.ndim == 4 and input.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        return is_bare and is_counted and is_here and not torch.compiler.is_compiling()  # which knows no other way

    def _keeps_size(self) -> bool:
        return (self.kernel_size, self.stride, self.padding) == ((3, 3), (1, 1), (1, 1))

    def _windows(self, input: Tensor) -> small_maps.Windows | None:
        padding = int(self.padding[0]), int(self.padding[1])
        return small_maps.windows((input.shape[2], input.shape[3]), self.kernel_size, self.stride, padding)  # type: ignore[arg-type]


def converted(network: nn.Module) -> nn.Module:
    """`network` with its convolutions replaced by `Conv2d`, parameters and all."""
    for name, child in network.named_children():
        setattr(network, name, _copied(child) if type(child) is nn.Conv2d else converted(child))
    return network


def _copied(plain: nn.Conv2d) -> Conv2d:
    with torch.device("meta"):
        made = Conv2d(
            plain.in_channels,
            plain.out_channels,
            plain.kernel_size,  # type: ignore[arg-type]  # a tuple by now
            plain.stride,  # type: ignore[arg-type]
            plain.padding,  # type: ignore[arg-type]
            plain.dilation,  # type: ignore[arg-type]
            plain.groups,
            plain.bias is not None,
            plain.padding_mode,
        )
    made.weight, made.bias = plain.weight, plain.bias
    return made
