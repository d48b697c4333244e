"""What an experiment is: its spec, the states it goes through, and the seeds drawn from its one seed.

Nothing here needs torch or a database. The defaults are the paper's (Reasat & Smith, "Data Efficient
Contrastive Learning in Histopathology using Active Sampling", section III-B).
"""

import math
import zlib
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from winnow.errors import WrongState

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", examples=["nct-entropy"])]
Range = tuple[float, float]


class Spec(BaseModel):
    """A frozen piece of a spec. Unknown keys are refused: a typo must not become a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Role(StrEnum):
    """What a sample may be used for. `pool` is unlabelled to the method, whatever its file says."""

    POOL = "pool"
    LABELLED = "labelled"
    VALIDATION = "validation"
    TEST = "test"


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


# --- datasets -----------------------------------------------------------------------------------


class Source(Spec):
    """Where images come from.

    folder    class sub-folders of PNG, JPEG or TIFF
    manifest  CSV or Parquet with `path`, and any of `label`, `group`, `role`; paths relative to `root`
    npz       MedMNIST style: `{split}_images` and `{split}_labels`
    synthetic seeded H&E-like tissue, for demonstrations and tests
    """

    kind: Literal["folder", "manifest", "npz", "synthetic"]
    path: str | None = Field(default=None, min_length=1, description="Folder, manifest file or .npz; not for synthetic")
    root: str | None = Field(
        default=None,
        description="Manifest only: the folder its paths start from; by default, and if relative, the manifest's own",
    )
    role: Role = Field(default=Role.POOL, description="Role of every sample without one of its own")
    columns: dict[Literal["path", "label", "group", "role"], str] = Field(
        default_factory=dict, description="Manifest only: other names of its columns"
    )
    splits: dict[str, Role] = Field(
        default_factory=dict,
        description="Words of a manifest's role column, top folders or npz splits → role: {train: pool, val: test}",
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Rename labels, e.g. {'0': non_idc}")
    synthetic: "SyntheticTissue | None" = None

    @model_validator(mode="after")
    def _needs_its_place(self) -> Self:
        if (self.kind == "synthetic") == (self.path is not None):
            raise ValueError(f"a {self.kind} source {'takes no' if self.path else 'needs a'} path")
        if self.kind != "manifest" and (self.root is not None or self.columns):
            raise ValueError(f"a {self.kind} source takes no root and no columns; a manifest does")
        if self.kind == "synthetic" and self.splits:
            raise ValueError("a synthetic source takes no splits; synthetic.test_slides holds slides out")
        if self.kind != "synthetic" and self.synthetic is not None:
            raise ValueError(f"a {self.kind} source takes no synthetic")
        return self


TISSUE_TYPES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
"""The nine classes of NCT-CRC-HE (Kather et al. 2018)."""


class SyntheticTissue(Spec):
    """H&E-like patches of the nine tissue types of NCT-CRC-HE, drawn in optical-density space."""

    patches: int = Field(default=2000, ge=1, description="How many")
    slides: int = Field(default=10, ge=1, description="Each slide has its own stain shift; it is the group key")
    balance: dict[str, float] = Field(
        default_factory=dict, description="Relative frequency by tissue type; those not named have 1.0 each"
    )
    test_slides: int = Field(
        default=0, ge=0, description="The last k slides get role test; the others the source's role"
    )
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _is_drawable(self) -> Self:
        unknown = sorted(set(self.balance) - set(TISSUE_TYPES))
        if unknown:
            raise ValueError(f"balance: {unknown[0]!r} is no tissue type; they are {', '.join(TISSUE_TYPES)}")
        weights = [self.balance.get(name, 1.0) for name in TISSUE_TYPES]
        if not all(0 <= weight < math.inf for weight in weights) or not sum(weights):
            raise ValueError("balance: needs finite frequencies of at least 0, not all 0")
        if self.test_slides >= self.slides:
            raise ValueError(f"test_slides: {self.test_slides} of {self.slides} slides leave none for the pool")
        return self


class LabelledDraw(Spec):
    """Take n samples of one role and make them another, at random or by label strata.

    A draw into `test` or `validation` takes whole groups where groups exist, as many as reach `count`. A draw
    into `labelled` takes patches, and leaves the rest of their group in the pool, as the paper does.
    """

    count: int = Field(ge=1)
    role: Role = Role.LABELLED
    from_role: Role = Role.POOL
    source: int | None = Field(
        default=None, ge=0, description="Draw from this source alone, by its place in `sources`, from 0"
    )
    by: Literal["random", "stratum"] = "random"
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _moves_something(self) -> Self:
        if self.role is self.from_role:
            raise ValueError(f"from_role: a draw from {self.role} into {self.role} moves nothing")
        return self


class DatasetSpec(Spec):
    """Sources, roles and the size at which patches are packed."""

    name: Name
    sources: list[Source] = Field(min_length=1)
    draws: list[LabelledDraw] = Field(default_factory=list)
    image_size: int = Field(
        default=224, ge=8, le=1024, description="Pixels a side; other sizes are resized and counted"
    )
    on_unreadable: Literal["fail", "skip"] = "fail"
    max_pixels: int = Field(
        default=50_000_000, ge=1, le=178_000_000, description="Images above this many pixels count as unreadable"
    )
    shard_size: int = Field(default=4096, ge=1, description="Patches in one packed shard")


# --- experiments --------------------------------------------------------------------------------


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
        merged[key] = _merge(merged[key], value) if isinstance(merged.get(key), dict) else value
    return merged


def derive_seed(seed: int, purpose: str, number: int = 0) -> int:
    """An independent 63-bit seed for one purpose in one round, the same on every machine."""
    import numpy as np

    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), number]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


# --- states -------------------------------------------------------------------------------------


class DatasetStatus(StrEnum):
    QUEUED = "queued"
    INGESTING = "ingesting"
    READY = "ready"
    FAILED = "failed"


class ExperimentStatus(StrEnum):
    CREATED = "created"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RoundStatus(StrEnum):
    QUEUED = "queued"
    TRAINING = "training"
    TRAINED = "trained"
    SELECTING = "selecting"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


_D, _E, _R = DatasetStatus, ExperimentStatus, RoundStatus

TRANSITIONS: dict[type[StrEnum], dict[StrEnum, tuple[StrEnum, ...]]] = {
    DatasetStatus: {
        _D.QUEUED: (_D.INGESTING, _D.FAILED),
        _D.INGESTING: (_D.READY, _D.QUEUED, _D.FAILED),
        _D.READY: (),
        _D.FAILED: (),
    },
    ExperimentStatus: {
        _E.CREATED: (_E.RUNNING, _E.PAUSING, _E.CANCELLING, _E.FAILED),
        _E.RUNNING: (_E.PAUSING, _E.CANCELLING, _E.COMPLETED, _E.FAILED),
        _E.PAUSING: (_E.PAUSED, _E.RUNNING, _E.CANCELLING, _E.COMPLETED, _E.FAILED),
        _E.PAUSED: (_E.RUNNING, _E.CANCELLING),
        _E.CANCELLING: (_E.CANCELLED,),
        _E.COMPLETED: (),
        _E.FAILED: (),
        _E.CANCELLED: (),
    },
    RoundStatus: {
        _R.QUEUED: (_R.TRAINING, _R.FAILED, _R.CANCELLED),
        _R.TRAINING: (_R.TRAINED, _R.QUEUED, _R.FAILED, _R.CANCELLED),
        _R.TRAINED: (_R.SELECTING, _R.DONE, _R.CANCELLED),
        _R.SELECTING: (_R.DONE, _R.TRAINED, _R.FAILED, _R.CANCELLED),
        _R.DONE: (),
        _R.FAILED: (),
        _R.CANCELLED: (),
    },
}
"""The one transition table: from each state, the states it may become."""


def allowed_from(status: StrEnum) -> tuple[StrEnum, ...]:
    """The states that `status` may become."""
    return TRANSITIONS[type(status)][status]


def require_transition(kind: str, id: str, current: StrEnum, target: StrEnum) -> None:
    """Raise WrongState unless the table allows `current` → `target`."""
    if target not in allowed_from(current):
        raise WrongState(kind, id, current, target, allowed_from(current))


def is_final(status: StrEnum) -> bool:
    """A state that nothing leaves."""
    return not allowed_from(status)
