"""The encoder that is used gives what the encoder that was trained gives."""

from pathlib import Path

import pytest
import torch
from torch import nn

from winnow.domain import EncoderSpec
from winnow.simclr import build, checkpoint, load_encoder
from winnow.simclr.checkpoint import Counters


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
