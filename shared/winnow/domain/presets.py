"""What a spec file stands for: its preset's values below its own, one experiment for each arm and seed."""

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from winnow.domain.experiments import Arm, ExperimentSpec
from winnow.domain.spec import Name, Seed

Document = dict[str, Any]
Preset = Literal["paper", "authors-code"]

PRESETS: dict[Preset, Document] = {
    "paper": {},
    "authors-code": {
        "initial": "stratum",
        "centers": "none",
        "random_from": "pool",
        "encoder": {"head": [512, 128], "head_batch_norm": True},
        "simclr": {"schedule": "cosine", "learning_rate_end": 1e-5, "reset_optimizer": True, "drop_last": True},
        "views": {"rotation": 0.0, "right_angle": 0.5},
        "proxy": {"task": "classes"},
    },
}


class Sheet(BaseModel):
    """The keys of a spec file that an experiment does not have, and the name that they are added to.

    Whatever else the file holds is an ExperimentSpec's.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Name
    preset: Preset = "paper"
    arms: Annotated[list[Arm], Field(min_length=1)] | None = None
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None


def expand(document: Document) -> list[ExperimentSpec]:
    """The experiments that one spec file stands for.

    A file is an ExperimentSpec, with three keys more: `preset` (its values are the defaults), `arms` and `seeds`
    (one experiment for each pair). The name gets -ARM where there are `arms`, then -SEED where there are `seeds`.

    Raises pydantic.ValidationError, with the key, for values that do not fit.
    """
    sheet = Sheet.model_validate(document)
    merged = _merge(PRESETS[sheet.preset], sheet.model_extra or {})
    arms = [(f"-{arm}", {"arm": arm}) for arm in sheet.arms or []] or [("", {})]
    seeds = [(f"-{seed}", {"seed": seed}) for seed in sheet.seeds or []] or [("", {})]
    return [
        ExperimentSpec.model_validate(merged | its_arm | its_seed | {"name": f"{sheet.name}{arm}{seed}"})
        for arm, its_arm in arms
        for seed, its_seed in seeds
    ]


def _merge(below: Document, above: Document) -> Document:
    """`above` over `below`, key by key where both hold a mapping; anything else replaces, for the spec to judge."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(under, dict) and isinstance(value, dict):
            value = _merge(cast("Document", under), cast("Document", value))  # noqa: PLW2901 - the merged one
        merged[key] = value
    return merged
