"""Each view operation against torchvision's, parameters per image, and independence of the batch."""

from dataclasses import fields

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as reference
from library.arrays import tissue
from torch import Tensor

from winnow.domain import ViewsSpec
from winnow.simclr import views as v
from winnow.simclr.chance import key_of, uniforms
from winnow.simclr.views import Parameters, Views

SIZE = 32


@pytest.fixture(scope="module")
def patches() -> Tensor:
    return torch.from_numpy(tissue(6, SIZE)[0].array)


def still(n: int, **changes: float) -> Parameters:
    """Parameters that change nothing, but for `changes`."""
    neutral = dict.fromkeys(("width", "height", "brightness", "contrast", "saturation"), 1.0) | changes
    return Parameters(**{f.name: torch.full((n,), neutral.get(f.name, 0.0)) for f in fields(Parameters)})


def close(a: Tensor, b: Tensor, tolerance: float = 2e-3) -> None:
    assert (a - b).abs().max().item() <= tolerance


def test_no_change_is_no_change(patches: Tensor) -> None:
    x = v.scale(patches)
    close(v.resample(x, still(6)), x, 1e-5)
    close(v.recolour(x, still(6)), x, 1e-5)


@pytest.mark.parametrize("factor", [0.2, 0.7, 1.8])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_factors_equal_torchvisions(patches: Tensor, name: str, factor: float) -> None:
    x = v.scale(patches)
    expected = getattr(reference, f"adjust_{name}")(x, factor)
    close(v.recolour(x, still(6, **{name: factor})), expected)


@pytest.mark.parametrize("turns", [-0.5, -0.13, 0.05, 0.31])
def test_hue_equals_torchvisions(patches: Tensor, turns: float) -> None:
    x = v.scale(patches)
    close(v.recolour(x, still(6, hue=turns)), reference.adjust_hue(x, turns))


def test_greyscale_equals_torchvisions(patches: Tensor) -> None:
    x = v.scale(patches)
    close(v.recolour(x, still(6, grey=1.0)), reference.rgb_to_grayscale(x, num_output_channels=3))


@pytest.mark.parametrize("sigma", [0.1, 0.8, 1.7])
def test_blur_equals_torchvisions(patches: Tensor, sigma: float) -> None:
    x = v.scale(patches)
    close(v.blur(x, torch.full((6,), sigma), 6), reference.gaussian_blur(x, [13, 13], [sigma, sigma]), 1e-5)


def test_no_blur_leaves_an_image_as_it_is(patches: Tensor) -> None:
    x = v.scale(patches)
    close(v.blur(x, torch.zeros(6), 4), x, 1e-6)


def test_flips_equal_torchvisions(patches: Tensor) -> None:
    x = v.scale(patches)
    close(v.resample(x, still(6, mirror=1.0)), reference.hflip(x), 1e-5)
    close(v.resample(x, still(6, flip=1.0)), reference.vflip(x), 1e-5)


def test_right_angles_equal_torchvisions(patches: Tensor) -> None:
    x = v.scale(patches)
    close(v.resample(x, still(6, turn=90.0)), reference.rotate(x, 90.0), 1e-4)


def test_a_free_angle_equals_torchvisions_inside_the_circle(patches: Tensor) -> None:
    x = v.scale(patches)
    angle = 33.0
    mine = v.resample(x, still(6, turn=angle))
    theirs = reference.rotate(x, angle, interpolation=reference.InterpolationMode.BILINEAR)
    rows, columns = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    inside = torch.from_numpy(np.hypot(rows, columns) < SIZE / 2 - 2)
    assert (mine - theirs)[:, :, inside].abs().max().item() < 2e-3


def test_a_crop_equals_torchvisions(patches: Tensor) -> None:
    x = v.scale(patches)
    mine = v.resample(x, still(6, left=8 / SIZE, top=4 / SIZE, width=16 / SIZE, height=20 / SIZE))
    theirs = reference.resized_crop(x, 4, 8, 20, 16, [SIZE, SIZE], antialias=False)
    assert (mine - theirs)[:, :, 2:-2, 2:-2].abs().max().item() < 2e-3  # at its rim torchvision repeats the crop's edge


def test_normalisation_is_imagenets(patches: Tensor) -> None:
    expected = reference.normalize(v.scale(patches), list(v.MEAN), list(v.DEVIATION))
    close(v.normalise(patches), expected, 1e-5)


def test_every_image_has_parameters_of_its_own() -> None:
    drawn = Views(ViewsSpec(right_angle=0.3), SIZE, 1).draw(torch.arange(64), epoch=0, view=0)
    for field in fields(Parameters):
        assert len(getattr(drawn, field.name).unique()) > 1, field.name
    for name in ("left", "top", "width", "height"):
        assert len(getattr(drawn, name).unique()) > 32, name


def test_parameters_keep_to_their_ranges_and_means() -> None:
    spec = ViewsSpec()
    drawn = Views(spec, 224, 7).draw(torch.arange(20_000), epoch=3, view=1)
    area = drawn.width * drawn.height
    assert area.min() >= spec.crop_scale[0] * 0.6 and area.max() <= 1
    assert (drawn.left >= 0).all() and (drawn.left + drawn.width <= 1 + 1e-6).all()
    assert drawn.turn.abs().max() <= 90 and abs(drawn.turn.mean().item()) < 1.5
    assert abs(drawn.mirror.mean().item() - 0.5) < 0.02 and abs(drawn.grey.mean().item() - 0.2) < 0.02
    jittered = drawn.brightness != 1
    assert abs(jittered.float().mean().item() - 0.8) < 0.02
    assert drawn.brightness.min() >= 0.2 - 1e-6 and drawn.brightness.max() <= 1.8 + 1e-6
    assert drawn.hue.abs().max() <= 0.2
    blurred = drawn.sigma[drawn.sigma > 0]
    assert abs(len(blurred) / 20_000 - 0.5) < 0.02
    assert blurred.min() >= 0.1 - 1e-6 and blurred.max() <= 2.0 + 1e-6


def test_a_samples_view_does_not_depend_on_its_batch(patches: Tensor) -> None:
    make = Views(ViewsSpec(), SIZE, 5)
    samples = torch.tensor([4, 9, 2, 77, 31, 8])
    whole = make(patches, samples, epoch=2, view=1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    close(make(patches[order], samples[order], epoch=2, view=1), whole[order], 1e-5)
    close(make(patches[3:4], samples[3:4], epoch=2, view=1), whole[3:4], 1e-5)


def test_epochs_views_seeds_and_samples_differ() -> None:
    samples = torch.arange(4)

    def draw(seed: int, epoch: int, view: int, first: int = 0) -> Tensor:
        return uniforms(samples + first, 8, torch.tensor(key_of(seed, epoch, view)))

    base = draw(1, 0, 0)
    others = [draw(1, 0, 1), draw(1, 1, 0), draw(2, 0, 0), draw(1, 0, 0, first=4)]
    assert all((base != other).all() for other in others)
    assert torch.equal(base, draw(1, 0, 0))


@pytest.mark.parametrize("sample", [0, 1, 12_345, 2**40])
def test_the_numbers_are_splitmix64s(sample: int) -> None:
    """The generator's own sequence, from a start for each sample, in whole numbers of Python."""
    word, golden = 1 << 64, 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % word
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % word
        return x ^ (x >> 31)

    key = key_of(5, 2, 1)
    start = mix((sample * golden + key) % word)
    expected = [(mix((start + which * golden) % word) >> 40) / 2**24 for which in range(1, 17)]
    assert uniforms(torch.tensor([sample]), 16, torch.tensor(key))[0].tolist() == expected


def test_the_numbers_are_uniform_and_uncorrelated() -> None:
    u = uniforms(torch.arange(50_000), 16, torch.tensor(key_of(3, 1, 0))).double()
    assert u.min() >= 0 and u.max() < 1
    assert (u.mean(0) - 0.5).abs().max() < 0.006
    assert (u.var(0) - 1 / 12).abs().max() < 0.002
    correlation = torch.corrcoef(u.T) - torch.eye(16)
    assert correlation.abs().max() < 0.025
    along = torch.corrcoef(torch.stack([u[:-1, 0], u[1:, 0]]))[0, 1]
    assert abs(along.item()) < 0.02
