"""One arm with one seed on one dataset. The defaults are the paper's (section III-B)."""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from winnow.domain.spec import Name, Range, Seed, Spec, StoredText


class Arm(StrEnum):
    """How the next batch is chosen: a strategy of winnow.selection, by its name there (docs/selection.md).

    `full` trains on the whole pool: the paper's benchmark.
    """

    ENTROPY = "entropy"
    MARGIN = "margin"
    LEAST_CONFIDENCE = "least_confidence"
    K_CENTER = "k_center"
    UNCERTAIN_DIVERSE = "uncertain_diverse"
    BADGE = "badge"
    TYPICLUST = "typiclust"
    PROB_COVER = "prob_cover"
    SAS = "sas"
    RANDOM = "random"
    FULL = "full"


Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Several = Annotated[int, Field(ge=2, le=1_000_000_000)]  # one image has no other to be contrasted with
Decay = Annotated[float, Field(ge=0, lt=1)]
_WIDEST = {"crop_scale": 1, "crop_ratio": 100, "blur_sigma": 224}
"""The ranges among the magnitudes of a view, and the most that means anything: of the area, of a side, in pixels."""


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
    brightness: float = Field(default=0.8, ge=0, le=10)
    contrast: float = Field(default=0.8, ge=0, le=10)
    saturation: float = Field(default=0.8, ge=0, le=10)
    hue: float = Field(default=0.2, ge=0, le=0.5)
    greyscale: float = Field(default=0.2, ge=0, le=1)
    blur: float = Field(default=0.5, ge=0, le=1, description="Probability of the Gaussian blur")
    blur_sigma: Range = Field(default=(0.1, 2.0), description="Pixels at image size 224; scaled with the size")

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name, widest in _WIDEST.items():
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: needs 0 < low <= high, got {low}, {high}")
            if high > widest:
                raise ValueError(f"{name}: at most {widest}, got {high}")
        return self


class EncoderSpec(Spec):
    """The encoder f and the projection head g."""

    name: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    head: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field(
        default=(128, 128, 128), min_length=1, description="Units of each layer of g"
    )
    head_batch_norm: bool = False

    @property
    def features(self) -> int:
        """Length of h."""
        return 2048 if self.name == "resnet50" else 512


class SimclrSpec(Spec):
    """How a round of contrastive training runs."""

    epochs: Count = Field(default=100, description="Epochs a round; of the whole run for `full`")
    batch_size: Several = 128
    temperature: float = Field(default=0.1, ge=1e-3, le=1e3)
    optimizer: Literal["adam", "adamw", "sgd", "lars"] = Field(default="adam", description="adam, adamw, sgd or lars")
    learning_rate: float = Field(default=1e-4, gt=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    momentum: Decay = Field(default=0.9, description="Of sgd and lars")
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    schedule_over: Literal["round", "run"] = Field(
        default="round", description="What schedule and warm-up span: each round, or all of them; `full` is one run"
    )
    learning_rate_end: float = Field(default=1e-5, ge=0, description="Where the cosine schedule ends")
    warmup_epochs: float = Field(default=0.0, ge=0, description="Epochs in which the rate grows from 0")
    reset_optimizer: bool = Field(
        default=False, description="Forget the optimizer's moments at the start of each round; `full` never does"
    )
    chunk: Several | None = Field(
        default=None, description="Images a pass, by gradient caching: batches larger than the memory"
    )
    drop_last: bool = Field(default=False, description="Leave out the last, smaller batch of an epoch")
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every: Count | None = Field(
        default=None,
        description="Epochs between checkpoints; by default one, then as many as last twenty times as long as one took",
        exclude_if=lambda every: every is None,  # trainers from before know no null, and have a default of their own
    )


class ProxySpec(Spec):
    """The linear classifier on frozen h, fitted from random weights every round."""

    epochs: Count = 40
    full_epochs: Count = Field(default=200, description="Epochs in the `full` arm")
    full_evaluate_every: Count = Field(default=20, description="Epochs between evaluations in the `full` arm")
    batch_size: Count = 128
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
    direction: Literal["high", "low"] = Field(
        default="high", description="Of the arms by uncertainty; low: pick the most certain instead"
    )
    seed: Seed = 0
    budget: Count = Field(default=1000, description="b: patches picked each round")
    rounds: Count = Field(default=20, description="T: rounds of training; the last does not pick")
    candidates: Count | Literal["all"] = Field(
        default=10_000, description="Size of the random subset of the pool that is scored each round"
    )
    initial: Literal["random", "stratum"] = Field(
        default="random", description="How S^0 is drawn; stratum uses the labels"
    )
    centers: Literal["selected", "none"] = Field(
        default="selected", description="What the arms that look at selected patches keep away from: S^t, or nothing"
    )
    random_from: Literal["candidates", "pool"] = "candidates"
    visits: int | None = Field(
        default=None, ge=2, lt=2**63, description="Stop training once this many image visits are made"
    )
    positive_class: StoredText | None = Field(
        default=None, min_length=1, description="Label that F1 is about; needed when task is `positive`"
    )
    evaluate_on: Literal["test", "validation"] = "test"
    fit_evaluator_on: Literal["labelled", "validation"] = Field(
        default="labelled",
        description="validation: metrics are of a second proxy, fitted on these labels; the picks are the first's",
    )
    full_evaluate_every: Count = Field(default=10, description="`full`: epochs between evaluations")
    floors: bool = Field(default=True, description="Score colour histograms and an untrained encoder beside round 0")
    encoder: EncoderSpec = Field(default_factory=EncoderSpec)
    views: ViewsSpec = Field(default_factory=ViewsSpec)
    simclr: SimclrSpec = Field(default_factory=SimclrSpec)
    proxy: ProxySpec = Field(default_factory=ProxySpec)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.proxy.task == "positive" and self.positive_class is None:
            raise ValueError("positive_class: needed when proxy.task is 'positive'; name the label that F1 is about")
        if self.evaluate_on == self.fit_evaluator_on:
            raise ValueError(f"evaluate_on: the evaluator is fitted on {self.evaluate_on}; evaluate on another role")
        if isinstance(self.candidates, int) and self.candidates < self.budget and self.arm is not Arm.FULL:
            raise ValueError(f"candidates: {self.candidates} are fewer than the budget {self.budget}")
        return self

    @property
    def total_rounds(self) -> int:
        """Rounds of training. `full` is cut into rounds too, so that each ends in an evaluation and a checkpoint."""
        return _total_rounds(self.arm, self.rounds, self.simclr.epochs, self.full_evaluate_every)

    def schedule_span(self, number: int) -> tuple[int, int]:
        """(epochs made before round `number`, epochs in all) of what the schedule spans."""
        if self.arm is Arm.FULL:
            return number * self.full_evaluate_every, self.simclr.epochs
        if self.simclr.schedule_over == "run":
            return number * self.simclr.epochs, self.rounds * self.simclr.epochs
        return 0, self.simclr.epochs

    @property
    def resets_optimizer(self) -> bool:
        """Whether each round starts with a fresh optimizer. `full` is one run, however often it is evaluated."""
        return self.simclr.reset_optimizer and self.arm is not Arm.FULL

    def is_spent(self, visits: int) -> bool:
        """Whether training ends with `visits` made: fewer than two are left, and a lone image has no negatives."""
        return self.visits is not None and self.visits - visits < 2

    @property
    def proxy_epochs(self) -> int:
        """Epochs that the proxy is fitted, in this arm and under the floors beside it."""
        return self.proxy.full_epochs if self.arm is Arm.FULL else self.proxy.epochs

    def epochs_of(self, number: int) -> int:
        """Epochs that round `number` trains."""
        if self.arm is Arm.FULL:
            return min(self.full_evaluate_every, self.simclr.epochs - number * self.full_evaluate_every)
        return self.simclr.epochs


def total_rounds_of(stored: Mapping[str, Any]) -> int:
    """`ExperimentSpec.total_rounds` of a spec in JSON that was valid once. A list shows it for hundreds of experiments,
    and parsing their specs would cost more than reading them."""
    arm, rounds, every = Arm(stored["arm"]), stored["rounds"], stored["full_evaluate_every"]
    return _total_rounds(arm, rounds, stored["simclr"]["epochs"], every)


def _total_rounds(arm: Arm, rounds: int, epochs: int, evaluate_every: int) -> int:
    return math.ceil(epochs / evaluate_every) if arm is Arm.FULL else rounds
