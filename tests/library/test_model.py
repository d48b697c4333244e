"""The encoder that is trained is torchvision's, and the one that is used gives what it gives."""

import copy
from pathlib import Path
from statistics import median

import pytest
import torch
import torchvision
from torch import Tensor, nn

from winnow.domain import EncoderSpec
from winnow.simclr import build, checkpoint, load_encoder
from winnow.simclr.checkpoint import Counters
from winnow.simclr.convolutions import Conv2d
from winnow.simclr.model import unfilled


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_loaded_encoder_gives_the_trained_ones_features(name: str, tmp_path: Path) -> None:
    spec = EncoderSpec.model_validate({"name": name})
    model = build(spec, 3)
    torch.manual_seed(0)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.1)
    checkpoint.save(tmp_path / "state", model, torch.optim.Adam(model.parameters()), Counters(round=0))
    x = torch.randn(3, 3, 64, 64)
    loaded = load_encoder(spec, tmp_path / "state", "cpu")
    with torch.no_grad():
        wanted = model.eval().encoder(x)
        assert wanted.shape == (3, spec.features)
        torch.testing.assert_close(loaded(x), wanted, rtol=1e-3, atol=1e-4)
    assert not [module for module in loaded.modules() if isinstance(module, nn.BatchNorm2d)], "one pass, not two"


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_nothing_of_an_unfilled_model_stays_when_a_state_is_loaded(name: str) -> None:
    spec = EncoderSpec.model_validate({"name": name, "head_batch_norm": True})
    made, plain = unfilled(spec), build(spec, 0)
    held = dict(made.named_parameters()) | dict(made.named_buffers())
    assert held.keys() == made.state_dict().keys()
    for part, value in plain.state_dict().items():
        assert (held[part].shape, held[part].stride(), held[part].dtype) == (value.shape, value.stride(), value.dtype)
        assert held[part].device == value.device


def smooth(network: nn.Module) -> None:
    for name, child in network.named_children():
        if isinstance(child, nn.ReLU):
            setattr(network, name, nn.Softplus())
        smooth(child)


@pytest.mark.parametrize(("name", "side"), [("resnet18", 96), ("resnet50", 64)])
def test_the_encoder_is_torchvisions(name: str, side: int) -> None:
    """Features, gradients and running statistics, whatever way they are computed in; float32 loses about as much. That
    is asked of a network without ReLU's edge, across which a rounding carries an activation or not, by chance.
    """
    made = build(EncoderSpec.model_validate({"name": name}), 3).encoder
    plain = getattr(torchvision.models, name)(weights=None)
    plain.fc = nn.Identity()
    plain.load_state_dict(made.state_dict())
    x = torch.randn(32, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = outcome(plain, x)
    for part, found in outcome(made, x).items():
        assert off(found, exact[part]) < 1e-9, part
    for encoder in (made, plain):
        smooth(encoder)
    exact = outcome(plain, x)
    losses = [
        {part: off(found, exact[part]) for part, found in outcome(encoder, x.float()).items()}
        for encoder in (made, plain)
    ]
    assert losses[0].keys() == losses[1].keys() == exact.keys()
    assert median(losses[0].values()) < 5 * median(losses[1].values())
    assert max(losses[0].values()) < 5 * max(losses[1].values())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_every_convolution_may_choose_its_way(name: str) -> None:
    modules = list(build(EncoderSpec.model_validate({"name": name}), 3).modules())
    assert {type(module) for module in modules if isinstance(module, nn.Conv2d)} == {Conv2d}


def outcome(encoder: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of one training pass; `encoder` stays as it was."""
    used = copy.deepcopy(encoder).to(x.dtype).train()
    y = used(x.contiguous(memory_format=torch.channels_last))
    y.square().sum().backward()
    slopes = {name: parameter.grad for name, parameter in used.named_parameters() if parameter.grad is not None}
    means = {name: buffer for name, buffer in used.named_buffers() if "running" in name}
    return {"features": y.detach(), **slopes, **means}


def off(found: Tensor, true: Tensor) -> float:
    return ((found - true).norm() / true.norm()).item()
