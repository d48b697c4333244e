"""The augmentations of SimCLR as batched tensor operations on the device, with parameters drawn per image.

Order: one resampling (crop, flips, rotation), colour jitter (brightness, contrast, saturation, hue, in this order),
greyscale, Gaussian blur, ImageNet normalisation. torchvision shuffles the jitter's order per call; here it is fixed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from winnow.domain import ViewsSpec
from winnow.simclr.chance import key_of, uniforms

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
REFERENCE_SIZE = 224  # blur_sigma is in pixels at this size
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma, as Pillow and torchvision use
_SMALLEST_SPREAD = 1e-12  # of the channels of a pixel, in its hue: greys have none, and keep their colour
_NUMBERS = 16  # uniform numbers drawn for each view


@dataclass(frozen=True)
class Parameters:
    """What happens to each of n images; every field is (n,) float32 on the device.

    left, top, width, height: the crop as shares of the side. turn: degrees. mirror, flip, grey: 0 or 1.
    brightness, contrast, saturation: factors. hue: turns. sigma: pixels, 0 for no blur.
    """

    left: Tensor
    top: Tensor
    width: Tensor
    height: Tensor
    mirror: Tensor
    flip: Tensor
    turn: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    grey: Tensor
    sigma: Tensor


class Views:
    """Draws and makes views. A sample's view is a pure function of (seed, epoch, sample, view)."""

    def __init__(self, spec: ViewsSpec, image_size: int, seed: int) -> None:
        self.spec = spec
        self.image_size = image_size
        self.seed = seed
        self._radius = math.ceil(3 * spec.blur_sigma[1] * image_size / REFERENCE_SIZE)

    def __call__(self, images: Tensor, samples: Tensor, *, epoch: int, view: int) -> Tensor:
        """(n, H, W, 3) uint8 images → (n, 3, H, W) float32 views, normalised."""
        return self.make(images, samples, self._key(samples, epoch, view))

    def keys(self, epoch: int) -> Tensor:
        """(2,) int64: what `make` takes for the two views of an epoch."""
        return torch.tensor([key_of(self.seed, epoch, view) for view in (0, 1)])

    def make(self, images: Tensor, samples: Tensor, key: Tensor) -> Tensor:
        """The same by key, one of `keys`: nothing here is read back from the device."""
        drawn = self._draw(samples, key)
        x = recolour(resample(scale(images), drawn), drawn)
        if self.spec.blur > 0:
            x = blur(x, drawn.sigma, self._radius)
        return standardise(x)

    def draw(self, samples: Tensor, *, epoch: int, view: int) -> Parameters:
        """The parameters of n samples (int64, (n,)) in one view of one epoch."""
        return self._draw(samples, self._key(samples, epoch, view))

    def _key(self, samples: Tensor, epoch: int, view: int) -> Tensor:
        return self.keys(epoch)[view].to(samples.device)

    def _draw(self, samples: Tensor, key: Tensor) -> Parameters:
        spec = self.spec
        u = uniforms(samples, _NUMBERS, key).unbind(1)
        area = _between(u[0], *spec.crop_scale)
        ratio = _between(u[1], math.log(spec.crop_ratio[0]), math.log(spec.crop_ratio[1])).exp()
        ratio = ratio.clamp(area, 1 / area)  # neither side is longer than the image, and the area stays as drawn
        width = (area * ratio).sqrt().clamp(max=1)
        height = (area / ratio).sqrt().clamp(max=1)
        right_angle = (u[6] < spec.right_angle).float()
        free = _between(u[7], -spec.rotation, spec.rotation)
        jittered = (u[8] < spec.jitter).float()
        size = self.image_size / REFERENCE_SIZE
        return Parameters(
            left=u[2] * (1 - width),
            top=u[3] * (1 - height),
            width=width,
            height=height,
            mirror=(u[4] < spec.horizontal_flip).float(),
            flip=(u[5] < spec.vertical_flip).float(),
            turn=torch.where(right_angle > 0, torch.full_like(free, 90.0), free),
            brightness=_factor(u[9], spec.brightness, jittered),
            contrast=_factor(u[10], spec.contrast, jittered),
            saturation=_factor(u[11], spec.saturation, jittered),
            hue=_between(u[12], -spec.hue, spec.hue) * jittered,
            grey=(u[13] < spec.greyscale).float(),
            sigma=_between(u[14], *spec.blur_sigma) * size * (u[15] < spec.blur),
        )


def normalise(images: Tensor) -> Tensor:
    """(n, H, W, 3) uint8 → (n, 3, H, W) float32: divided by 255, ImageNet mean and deviation. No augmentation."""
    return standardise(scale(images))


def scale(images: Tensor) -> Tensor:
    """(n, H, W, 3) uint8 → (n, 3, H, W) float32 in [0, 1], channels_last in memory."""
    return images.permute(0, 3, 1, 2).float() / 255


def standardise(x: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its deviation, per channel."""
    mean, deviation = (torch.stack([x.new_full((), v) for v in one]).view(1, 3, 1, 1) for one in (MEAN, DEVIATION))
    return (x - mean) / deviation


def resample(x: Tensor, drawn: Parameters) -> Tensor:
    """Crop, mirror, flip and rotate in one bilinear resampling.

    The rotation turns the cropped, flipped square counter-clockwise; what it brings in from outside the crop is the
    image around it, reflected at the image's own border.
    """
    angle = torch.deg2rad(drawn.turn)
    across = drawn.width * (1 - 2 * drawn.mirror)
    down = drawn.height * (1 - 2 * drawn.flip)
    middle_x = 2 * drawn.left + drawn.width - 1
    middle_y = 2 * drawn.top + drawn.height - 1
    cos, sin, across, down, middle_x, middle_y = (
        one[:, None, None] for one in (angle.cos(), angle.sin(), across, down, middle_x, middle_y)
    )
    right, below = _centres(x.shape[3], x), _centres(x.shape[2], x)[:, None]  # (W,), (H, 1)
    at_x = across * cos * right + (middle_x - across * sin * below)
    at_y = down * sin * right + (middle_y + down * cos * below)
    grid = torch.stack([at_x, at_y], 3)  # (n, H, W, 2)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False).clamp(0, 1)


def _centres(length: int, like: Tensor) -> Tensor:
    """Where so many pixels lie along a side from -1 to 1."""
    return (2 * torch.arange(length, device=like.device, dtype=like.dtype) + 1) / length - 1


def recolour(x: Tensor, drawn: Parameters) -> Tensor:
    """Brightness, contrast, saturation, hue, greyscale. Factors of 1, no turn and no grey leave an image as it is.

    The channels (n, H, W) stay apart until the end: torch.compile makes two kernels of it then, one that reads pixels
    for the mean that contrast needs, and one that reads and writes them once for all the rest.
    """
    brightness, contrast, saturation, hue, grey = (
        one[:, None, None] for one in (drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue, drawn.grey)
    )
    channels = [(one * brightness).clamp(0, 1) for one in x.unbind(1)]
    middle = _luma(channels).mean((1, 2), keepdim=True)  # (n, 1, 1)
    channels = [torch.lerp(middle.expand_as(one), one, contrast).clamp(0, 1) for one in channels]
    luma = _luma(channels)
    channels = _shift_hue([torch.lerp(luma, one, saturation).clamp(0, 1) for one in channels], hue)
    luma = _luma(channels)
    return torch.stack([torch.lerp(one, luma, grey) for one in channels], 1)


def _luma(channels: Sequence[Tensor]) -> Tensor:
    """ITU-R 601."""
    red, green, blue = channels
    return (_GREY[0] * red).add(green, alpha=_GREY[1]).add(blue, alpha=_GREY[2])


def _shift_hue(channels: Sequence[Tensor], turns: Tensor) -> list[Tensor]:
    """Rotate the hue in HSV by `turns` (n, 1, 1) of a full circle."""
    red, green, blue = channels
    high = torch.maximum(torch.maximum(red, green), blue)
    spread = high - torch.minimum(torch.minimum(red, green), blue)
    of_green = torch.where(green == high, (blue - red).add(spread, alpha=2), (red - green).add(spread, alpha=4))
    hue = torch.where(red == high, green - blue, of_green) / spread.clamp(min=_SMALLEST_SPREAD)
    hue = hue + 6 * turns  # in sixths of a circle
    hue = hue - 6 * (hue / 6).floor()
    missing = (2 - (hue - 3).abs(), (hue - 2).abs() - 1, (hue - 4).abs() - 1)
    return [torch.addcmul(high, spread, one.clamp(0, 1), value=-1) for one in missing]


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Separable Gaussian blur of (n, 3, H, W), `sigma` (n,) in pixels; 0 leaves an image as it is."""
    radius = min(radius, min(x.shape[2:]) - 1)
    offsets = torch.arange(radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)  # (n, radius + 1): its right half
    kernel = (kernel / (2 * kernel.sum(1, keepdim=True) - 1))[:, :, None, None, None]
    for axis, pad in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        padded, length = F.pad(x, pad, mode="reflect"), x.shape[axis]
        x = x * kernel[:, 0]
        for j in range(1, radius + 1):
            x.addcmul_(padded.narrow(axis, radius - j, length) + padded.narrow(axis, radius + j, length), kernel[:, j])
    return x


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + u * (high - low)


def _factor(u: Tensor, strength: float, applied: Tensor) -> Tensor:
    """Uniform in [max(0, 1 - strength), 1 + strength] where applied, else 1."""
    return 1 + (_between(u, max(0.0, 1 - strength), 1 + strength) - 1) * applied
