"""What the sampler takes and sends."""

from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from winnow.domain import Text
from winnow.errors import InvalidInput
from winnow.selection import strategies
from winnow_sampler import examples

MOST = 10**8
"""Candidates that one selection may have: beyond, a draw of them would not fit into memory."""
MOST_ROW = 2**63 - 1
ARRAYS = ("pool", "centers", "probabilities")
Row = Annotated[int, Field(ge=0, le=MOST_ROW)]
Rows = Annotated[list[Row], Field(fail_fast=True)]
Floats = Annotated[list[float], Field(fail_fast=True)]
Numbers = Annotated[list[Floats], Field(fail_fast=True)]
Labels = Annotated[list[Text | int], Field(fail_fast=True)]
"""Of a long list the first value at fault is named alone: all of them, with reasons, take 500 times its memory."""
Count = Annotated[int, Field(ge=0, le=MOST)]
Status = Literal["queued", "running", "done", "cancelled"]


class _Strict(BaseModel):
    """What is sent must be what the description says: `true` is no number, "5" neither."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ArrayRef(_Strict):
    """An array (rows, columns) of floats, from one of four places.

    `key` is a `.npy` in the artefact store (its `sha256` is then checked); `inline` is for small ones; `upload` names
    what POST /v1/embeddings took, several being one pool; `path` is a file or a folder of `.npy`, HDF5 or Parquet under
    the sampler's data roots, several being one pool.
    """

    key: Text | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    inline: Numbers | None = Field(default=None, description="(n, d) numbers")
    upload: Text | Annotated[list[Text], Field(min_length=1, fail_fast=True)] | None = None
    path: Text | Annotated[list[Text], Field(min_length=1, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.key, self.inline, self.upload, self.path)) != 1:
            raise ValueError("give either key or inline, or upload, or path")
        return self

    def inline_array(self) -> NDArray[np.float32]:
        """The inline numbers as (n, d). Raises InvalidInput for rows of different lengths."""
        rows = self.inline or []
        if len({len(row) for row in rows}) > 1:
            raise InvalidInput("inline", "rows have different lengths")
        with np.errstate(over="ignore"):  # infinity is refused with its row
            return np.array(rows, np.float32).reshape(len(rows), len(rows[0]) if rows else 0)


class LabelsRef(_Strict):
    """One label a candidate: `inline`, or from the pool: `by` its files' stems, or a `column` of its Parquet files."""

    inline: Labels | None = None
    by: Literal["file"] | None = None
    column: Text | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.inline, self.by, self.column)) != 1:
            raise ValueError("give either inline, or by, or column")
        if self.inline is not None:
            once: dict[str | int, str | int] = {}  # each label once in memory: slides and patients repeat
            self.inline = [once.setdefault(label, label) for label in self.inline]
        return self


class ConstraintsRequest(_Strict):
    """What every pick must keep to. Caps and quotas count by `groups`."""

    cap: Annotated[int, Field(ge=1, le=MOST)] | dict[Text, Count] | None = Field(
        default=None, description="The most picks of any group, or of each group that is named"
    )
    quota: dict[Text, Count] | None = Field(default=None, description="The fewest picks of each group that is named")
    quota_is_exact: bool = Field(default=False, description="Whether a quota is also the most")
    exclude: Rows = Field(default=[], description="Rows that are never picked")
    pinned: Rows = Field(default=[], description="Rows that are picked first; they count in the budget")
    minimum_distance: float | None = Field(default=None, gt=0, description="L2, to earlier picks and to the centres")


class NearDuplicatesRequest(_Strict):
    """Near-duplicates are set aside before the strategy picks."""

    threshold: float = Field(ge=0, description="A cosine of at least this, or an L2 distance of at most this")
    metric: Literal["cosine", "l2"] = "cosine"


class Snapshot(_Strict):
    """The candidates, and what is known of them."""

    pool: ArrayRef | None = Field(default=None, description="(n, d) features of the candidates")
    centers: ArrayRef | None = Field(default=None, description="(m, d) features of what is selected already")
    probabilities: ArrayRef | None = Field(default=None, description="(n, c), rows sum to 1")
    size: int | None = Field(default=None, ge=1, le=MOST, description="How many candidates random draws from")
    groups: LabelsRef | None = Field(default=None, description="The group of each candidate, say its slide")

    def without_arrays(self) -> Self:
        """The request without what is found and digested by itself: numbers as JSON take many times their bytes."""
        return self.model_copy(update=dict.fromkeys(ARRAYS))


class SelectionRequest(Snapshot):
    """One selection. GET /v1/strategies says which inputs each strategy reads."""

    model_config = ConfigDict(json_schema_extra={"example": examples.SELECTION_REQUEST})

    strategy: Text = Field(json_schema_extra={"enum": list(strategies())})
    budget: int = Field(ge=1, le=MOST)
    seed: int = Field(default=0, ge=0, lt=2**63)
    direction: Literal["high", "low"] = "high"
    constraints: ConstraintsRequest | None = None
    near_duplicates: NearDuplicatesRequest | None = None

    @model_validator(mode="after")
    def _known_strategy(self) -> Self:
        require_strategy("strategy", self.strategy)
        return self


class Contender(_Strict):
    """One strategy of a comparison, with what sets it apart."""

    strategy: Text = Field(json_schema_extra={"enum": list(strategies())})
    name: Text | None = Field(default=None, description="What to call it; the strategy's name by default")
    seed: int = Field(default=0, ge=0, lt=2**63)
    direction: Literal["high", "low"] = "high"
    constraints: ConstraintsRequest | None = None
    near_duplicates: NearDuplicatesRequest | None = None

    @property
    def label(self) -> str:
        return self.name or self.strategy


class ComparisonRequest(Snapshot):
    """Several strategies on one snapshot. Nothing is committed: no pick is recorded anywhere."""

    model_config = ConfigDict(json_schema_extra={"example": examples.COMPARISON_REQUEST})

    strategies: list[Contender] = Field(min_length=2, max_length=32)
    budget: int = Field(ge=1, le=MOST)
    labels: LabelsRef | None = Field(default=None, description="The class of each candidate, where it is known")

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> Self:
        for contender in self.strategies:
            require_strategy("strategies", contender.strategy)
        called = [contender.label for contender in self.strategies]
        if twice := next((one for one in called if called.count(one) > 1), None):
            raise ValueError(f"strategies: two are called {twice!r}; give each its name")
        return self


class Origin(BaseModel):
    """Where a pick came from."""

    file: str
    row: int = Field(description="Row within the file")
    coords: list[float] | None = Field(default=None, description="Of HDF5: where the patch lies on its slide")
    key: str | None = Field(default=None, description="Of Parquet: its key column")


class JobView(BaseModel):
    """What every job says of itself."""

    id: str = Field(
        description="Digest of the request and of its arrays: the same request has the same id. While files are still "
        "to be read for it, it is one of their state; the job is found under both"
    )
    status: Status
    progress: dict[str, int] | None = Field(default=None, description="done and total, while it runs")
    need_bytes: int | None = Field(default=None, description="Memory that it takes, estimated before it starts")
    place: int | None = Field(default=None, description="Its place in the queue, 1 being next, while it waits")
    seconds: float | None = None


class SelectionView(JobView):
    """A selection, done or under way. `indices` are positions among the candidates, in the order of picking.

    One that was cancelled shows the picks it had: the valid answer to a smaller budget.
    """

    model_config = ConfigDict(json_schema_extra={"example": examples.SELECTION})

    indices: list[int] | None = None
    scores: list[float] | None = None
    radius: float | None = Field(default=None, description="k_center: largest distance left to a centre or pick")
    origins: list[Origin] | None = Field(default=None, description="Of each pick, where the pool came from files")
    notes: list[str] = []


class Contended(BaseModel):
    """What one strategy of a comparison picked."""

    name: str
    strategy: str
    indices: list[int]
    seconds: float
    radius: float | None = Field(
        default=None, description="Largest L2 distance of a candidate left over to a pick or centre, where known"
    )
    redundancy: float | None = Field(
        default=None, description="Mean L2 distance of a pick to its nearest other: small where picks repeat each other"
    )
    groups: dict[str, int] | None = Field(default=None, description="Picks of each group")
    labels: dict[str, int] | None = Field(default=None, description="Picks of each class")
    notes: list[str] = []


class ComparisonView(JobView):
    """A comparison, done or under way. Rows and columns of `shared` and `jaccard` are in the order of `strategies`."""

    model_config = ConfigDict(json_schema_extra={"example": examples.COMPARISON})

    strategies: list[Contended] | None = Field(default=None, description="Of a cancelled one, those that had ended")
    shared: list[list[int]] | None = Field(default=None, description="Picks that two strategies have in common")
    jaccard: list[list[float]] | None = Field(default=None, description="The same as a share of their union")


class EmbeddingsView(BaseModel):
    """A file that was taken."""

    model_config = ConfigDict(json_schema_extra={"example": examples.EMBEDDINGS})

    id: str = Field(description="Digest of its bytes and name: the same upload has the same id")
    name: str
    rows: int
    columns: int
    dtype: str
    bytes: int
    sha256: str


class StrategyView(BaseModel):
    """A strategy, and which inputs it reads."""

    name: str
    requires: list[str]
    reads: list[str]


class StrategiesView(BaseModel):
    """All strategies."""

    items: list[StrategyView]


def require_strategy(field: str, name: str) -> None:
    """Raise ValueError naming `field` unless there is such a strategy."""
    if name not in strategies():
        raise ValueError(f"{field}: needs one of {', '.join(strategies())}, got {name!r}")


def as_json(view: BaseModel) -> dict[str, Any]:
    """A view without what is not known."""
    return view.model_dump(mode="json", exclude_none=True)
