"""docs/spec.md names every key of the specs with its default, and nothing that is not there."""

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from winnow import domain

TEXT = (Path(__file__).parents[2] / "docs" / "spec.md").read_text()
MODELS = [
    domain.ExperimentSpec,
    domain.EncoderSpec,
    domain.ViewsSpec,
    domain.SimclrSpec,
    domain.ProxySpec,
    domain.DatasetSpec,
    domain.Source,
    domain.LabelledDraw,
    domain.SyntheticTissue,
]


def documented(model: type[BaseModel]) -> dict[str, str]:
    section = re.search(rf"^##+ .*`{model.__name__}`\n(.*?)(?=^##|\Z)", TEXT, re.M | re.S)
    assert section, f"docs/spec.md has no section for {model.__name__}"
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", section[1], re.M)
    return dict(rows)


def default_of(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    return f"`{json.dumps(value)}`"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_stands_with_its_default(model: type[BaseModel]) -> None:
    assert documented(model) == {name: default_of(model, name) for name in model.model_fields}
