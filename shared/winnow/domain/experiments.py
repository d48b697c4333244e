"""One arm with one seed on one dataset. The defaults are the paper's (section III-B)."""

import math
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from winnow.domain.spec import Name, Range, Spec


class Arm(StrEnum):
    """How the next batch is chosen. `full` trains on the whole pool: the paper's benchmark."""

    ENTROPY = "entropy"
    MARGIN = "margin"
    LEAST_CONFIDENCE = "least_confidence"
    K_CENTER = "k_center"
    RANDOM = "random"
    FULL = "full"

    @property
    def is_uncertainty(self) -> bool:
        return self in (Arm.ENTROPY, Arm.MARGIN, Arm.LEAST_CONFIDENCE)


class ViewsSpec(Spec):
    """The augmentations of SimCLR, with every magnitude. Parameters are drawn per image and view."""

    crop_scale: Range = Field(default=(0.08, 1.0), description="Share of the area kept by the random resized crop")
    crop_ratio: Range = Field(default=(3 / 4, 4 / 3), description="Aspect ratio of that crop")
    horizontal_flip: float = Field(default=0.5, ge=0, le=1)
    vertical_flip: float = Field(default=0.5, ge=0, le=1)
    rotation: float = Field(default=90.0, ge=0, le=180, description="Degrees; the angle is uniform in ± this")
    right_angle: float = Field(
        default=0.0, ge=0, le=1, description="Probability of a rotation by exactly +90°, instead"
    )
    jitter: float = Field(default=0.8, ge=0, le=1, description="Probability of the colour jitter")
    brightness: float = Field(default=0.8, ge=0)
    contrast: float = Field(default=0.8, ge=0)
    saturation: float = Field(default=0.8, ge=0)
    hue: float = Field(default=0.2, ge=0, le=0.5)
    greyscale: float = Field(default=0.2, ge=0, le=1)
    blur: float = Field(default=0.5, ge=0, le=1, description="Probability of the Gaussian blur")
    blur_sigma: Range = Field(default=(0.1, 2.0), description="Pixels at image size 224; scaled with the size")

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: needs 0 < low <= high, got {low}, {high}")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale: at most 1, got {self.crop_scale[1]}")
        return self


class EncoderSpec(Spec):
    """The encoder f and the projection head g."""

    name: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    head: tuple[int, ...] = Field(default=(128, 128, 128), min_length=1, description="Units of each layer of g")
    head_batch_norm: bool = False

    @property
    def features(self) -> int:
        """Length of h."""
        return 2048 if self.name == "resnet50" else 512


class SimclrSpec(Spec):
    """How a round of contrastive training runs."""

    epochs: int = Field(default=100, ge=1, description="Epochs a round; of the whole run for `full`")
    batch_size: int = Field(default=128, ge=2)
    temperature: float = Field(default=0.1, gt=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    learning_rate_end: float = Field(default=1e-5, ge=0, description="Where the cosine schedule ends")
    reset_optimizer: bool = Field(default=False, description="Forget Adam's moments at the start of each round")
    drop_last: bool = Field(default=False, description="Leave out the last, smaller batch of an epoch")
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every: int = Field(default=1, ge=1, description="Epochs between checkpoints")


class ProxySpec(Spec):
    """The linear classifier on frozen h, fitted from random weights every round."""

    epochs: int = Field(default=40, ge=1)
    full_epochs: int = Field(default=200, ge=1, description="Epochs in the `full` arm")
    full_evaluate_every: int = Field(default=20, ge=1, description="Epochs between evaluations in the `full` arm")
    batch_size: int = Field(default=128, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    standardise: bool = Field(
        default=False, description="Subtract the mean, divide by the deviation of the labelled features"
    )
    task: Literal["positive", "classes"] = Field(
        default="positive", description="positive: positive class against the rest (BCE); classes: all labels (softmax)"
    )


class ExperimentSpec(Spec):
    """One arm with one seed on one dataset."""

    name: Name
    dataset: Name
    arm: Arm = Arm.ENTROPY
    direction: Literal["high", "low"] = Field(default="high", description="low: pick the most certain instead")
    seed: int = Field(default=0, ge=0, lt=2**32)
    budget: int = Field(default=1000, ge=1, description="b: patches picked each round")
    rounds: int = Field(default=20, ge=1, description="T: rounds of training; the last does not pick")
    candidates: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        default=10_000, description="Size of the random subset of the pool that is scored each round"
    )
    initial: Literal["random", "stratum"] = Field(
        default="random", description="How S^0 is drawn; stratum uses the labels"
    )
    centers: Literal["selected", "none"] = Field(
        default="selected", description="k_center: spread away from S^t, or only in C"
    )
    random_from: Literal["candidates", "pool"] = "candidates"
    visits: int | None = Field(default=None, ge=1, description="Stop training once this many image visits are made")
    positive_class: str | None = Field(
        default=None, description="Label that F1 is about; needed when task is `positive`"
    )
    evaluate_on: Literal["test", "validation"] = "test"
    full_evaluate_every: int = Field(default=10, ge=1, description="`full`: epochs between evaluations")
    floors: bool = Field(default=True, description="Score colour histograms and an untrained encoder beside round 0")
    encoder: EncoderSpec = Field(default_factory=EncoderSpec)
    views: ViewsSpec = Field(default_factory=ViewsSpec)
    simclr: SimclrSpec = Field(default_factory=SimclrSpec)
    proxy: ProxySpec = Field(default_factory=ProxySpec)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.proxy.task == "positive" and self.positive_class is None:
            raise ValueError("positive_class: needed when proxy.task is 'positive'; name the label that F1 is about")
        if isinstance(self.candidates, int) and self.candidates < self.budget and self.arm is not Arm.FULL:
            raise ValueError(f"candidates: {self.candidates} are fewer than the budget {self.budget}")
        return self

    @property
    def total_rounds(self) -> int:
        """Rounds of training. `full` is cut into rounds too, so that each ends in an evaluation and a checkpoint."""
        if self.arm is Arm.FULL:
            return math.ceil(self.simclr.epochs / self.full_evaluate_every)
        return self.rounds

    def is_spent(self, visits: int) -> bool:
        """Whether training ends with `visits` made: fewer than two are left, and a lone image has no negatives."""
        return self.visits is not None and self.visits - visits < 2

    def epochs_of(self, number: int) -> int:
        """Epochs that round `number` trains."""
        if self.arm is Arm.FULL:
            return min(self.full_evaluate_every, self.simclr.epochs - number * self.full_evaluate_every)
        return self.simclr.epochs


PRESETS: dict[str, dict[str, Any]] = {
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


def expand(document: dict[str, Any]) -> list[ExperimentSpec]:
    """The experiments that one spec file stands for.

    A file is an ExperimentSpec, with three keys more: `preset` (its values are the defaults), `arms` and
    `seeds` (one experiment for each pair, named NAME-ARM or NAME-ARM-SEED).

    Raises pydantic.ValidationError for values that do not fit, KeyError for an unknown preset.
    """
    document = dict(document)
    preset = PRESETS[document.pop("preset", "paper")]
    arms: list[str] | None = document.pop("arms", None)
    seeds: list[int] | None = document.pop("seeds", None)
    merged = _merge(preset, document)
    specs: list[ExperimentSpec] = []
    for arm in arms or [merged.get("arm", Arm.ENTROPY)]:
        for seed in seeds or [merged.get("seed", 0)]:
            name = str(merged.get("name", "experiment"))
            name += f"-{arm}" if arms else ""
            name += f"-{seed}" if seeds else ""
            specs.append(ExperimentSpec.model_validate(merged | {"name": name, "arm": arm, "seed": seed}))
    return specs


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
