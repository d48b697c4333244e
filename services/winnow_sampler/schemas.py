"""What the sampler takes and sends."""

from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from winnow.errors import InvalidInput

MOST = 10**8
"""Candidates that one selection may have: beyond, a draw of them would not fit into memory."""
EXAMPLE: dict[str, Any] = {
    "strategy": "k_center",
    "budget": 2,
    "pool": {"inline": [[0, 0], [0, 1], [5, 5], [9, 9]]},
    "centers": {"inline": [[0, 0]]},
}
ANSWER: dict[str, Any] = {
    "id": "5f0c…",
    "status": "done",
    "indices": [3, 2],
    "scores": [12.7279, 5.6569],
    "radius": 1.0,
    "seconds": 0.002,
    "notes": [],
}


class ArrayRef(BaseModel):
    """An array: a `.npy` in the artefact store by `key` (its `sha256` is then checked), or small and `inline`."""

    model_config = ConfigDict(extra="forbid")

    key: str | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    inline: list[list[float]] | None = Field(default=None, description="(n, d) numbers")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.key is None) == (self.inline is None):
            raise ValueError("give either key or inline")
        return self

    def inline_array(self) -> NDArray[np.float32]:
        """The inline numbers as (n, d). Raises InvalidInput for rows of different lengths."""
        rows = self.inline or []
        if len({len(row) for row in rows}) > 1:
            raise InvalidInput("inline", "rows have different lengths")
        return np.array(rows, np.float32).reshape(len(rows), -1)


class SelectionRequest(BaseModel):
    """One selection. k_center reads `pool` and `centers`; the uncertainties `probabilities`; random `size`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": EXAMPLE})

    strategy: Literal["k_center", "entropy", "margin", "least_confidence", "random"]
    budget: int = Field(ge=1, le=MOST)
    seed: int = Field(default=0, ge=0, lt=2**63)
    direction: Literal["high", "low"] = "high"
    pool: ArrayRef | None = Field(default=None, description="(n, d) features of the candidates")
    centers: ArrayRef | None = Field(default=None, description="(m, d) features of what is selected already")
    probabilities: ArrayRef | None = Field(default=None, description="(n, c), rows sum to 1")
    size: int | None = Field(default=None, ge=1, le=MOST, description="How many candidates random draws from")


class SelectionView(BaseModel):
    """A selection, done or under way. `indices` are positions among the candidates, in the order of picking."""

    model_config = ConfigDict(json_schema_extra={"example": ANSWER})

    id: str = Field(description="Digest of the request and of its arrays: the same request has the same id")
    status: Literal["queued", "running", "done", "failed", "cancelled"]
    indices: list[int] | None = None
    scores: list[float] | None = None
    radius: float | None = Field(default=None, description="k_center: largest distance left to a centre or pick")
    seconds: float | None = None
    notes: list[str] = []
    progress: dict[str, int] | None = Field(default=None, description="done and total, while it runs")
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)
