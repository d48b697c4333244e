"""What the API sends and takes. Times leave as ISO 8601; the tables hold seconds."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, RootModel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from winnow.domain import PRESETS, Arm, ExperimentSpec, Name
from winnow.store.rounds import Cause
from winnow_coordinator import examples

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """Part of a list; `next` is the `cursor` of the part behind it, null at the end."""

    items: list[Item]
    next: str | None = None


class View(BaseModel):
    """Read from a row's attributes."""

    model_config = ConfigDict(from_attributes=True)


class DatasetView(View):
    """A packed set of patches."""

    model_config = ConfigDict(json_schema_extra={"example": examples.DATASET})

    id: str
    name: str
    status: str
    classes: list[str]
    counts: dict[str, dict[str, int]] = Field(description="Patches by role and label")
    samples: int
    image_size: int
    report: dict[str, Any] = Field(description="What was read, resized, skipped and why; how groups were respected")
    progress: dict[str, Any]
    error: str | None
    spec: dict[str, Any]
    created_at: datetime


class SampleView(View):
    """One patch."""

    idx: int = Field(description="Position in the packed shards, stable for ever")
    key: str
    role: str
    label: str | None
    group: str | None


class ExperimentRequest(RootModel[dict[str, Any]]):
    """An ExperimentSpec, and `preset`, whose values are its defaults."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(ExperimentSpec.__pydantic_core_schema__)).copy()
        preset = {"enum": list(PRESETS), "default": "paper", "description": "Where values not given come from"}
        return schema | {"title": "ExperimentRequest", "properties": {"preset": preset, **schema["properties"]}}


class ArtefactView(View):
    """A stored array or weights. `GET …/artefacts/{kind}` sends the bytes."""

    kind: str
    key: str
    sha256: str
    size: int
    attempt: int
    manifest: dict[str, Any]


class RoundView(View):
    """A round: train, embed, fit the proxy, evaluate, pick."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"example": examples.ROUND})

    number: int
    status: str
    attempt: int = Field(description="Claims so far, by trainers and then for its picks")
    losses: int = Field(description="Attempts whose machine vanished, or whose GPU does not compute")
    failures: int = Field(description="Attempts that ended in an error")
    owner: str | None
    samples: int = Field(description="|S^t|")
    visits: int = Field(description="Image visits since round 0; one is one image in one epoch")
    seconds: dict[str, float] = Field(
        description="By phase: load, train, checkpoint, embed, proxy, evaluate, pick, wait"
    )
    metrics: dict[str, Any]
    report: dict[str, Any]
    progress: dict[str, Any]
    error: str | None
    created_at: datetime
    ended_at: datetime | None


class AttemptView(BaseModel):
    """An attempt that left no result."""

    attempt: int
    cause: Cause = Field(
        description="Its machine vanished; it raised; somebody asked; it can never work; there was no room to write"
    )
    error: str | None
    at: datetime


class RoundDetail(RoundView):
    """A round, its artefacts, and how the attempts ended that left no result."""

    artefacts: list[ArtefactView]
    attempts: list[AttemptView] = Field(description="Oldest first; the newest hundred")


class ExperimentView(BaseModel):
    """One arm with one seed on one dataset."""

    model_config = ConfigDict(json_schema_extra={"example": examples.EXPERIMENT})

    id: str
    name: str
    dataset: str
    arm: Arm
    status: str
    error: str | None
    rounds_total: int
    rounds_done: int
    current_round: RoundView | None = Field(description="The round that waits or is worked on")
    latest: RoundView | None = Field(description="The newest round with metrics")
    spec: dict[str, Any]
    created_at: datetime
    ended_at: datetime | None


class PickView(BaseModel):
    """A patch of a batch, in the order of picking."""

    rank: int
    idx: int
    key: str
    score: float


class SelectionView(BaseModel):
    """The batch that a round added to S^t."""

    model_config = ConfigDict(json_schema_extra={"example": examples.SELECTION})

    items: list[PickView]


class MetricsView(BaseModel):
    """A row for each evaluated round, and the floors that they are held against."""

    model_config = ConfigDict(json_schema_extra={"example": examples.METRICS})

    items: list[dict[str, Any]]
    floors: dict[str, Any] | None


class BusyWithView(View):
    """A round or a dataset that a trainer has claimed."""

    id: str
    name: str = Field(description="Of the experiment, or of the dataset that is taken in")
    experiment: str | None = Field(description="The experiment's id; null for a dataset")
    round: int | None = Field(description="The round's number; null for a dataset")


class WorkerView(View):
    """A trainer seen lately."""

    id: str
    host: str
    pid: int
    devices: list[Any]
    version: str
    busy_with: BusyWithView | None = Field(description="What it holds the claim of; null while it holds none")
    started_at: datetime
    seen_at: datetime


class KeyRequest(BaseModel):
    """A key to make."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": examples.KEY_REQUEST})

    name: Name
    scopes: list[Literal["read", "run", "admin"]] = Field(min_length=1, description="Ascending: run includes read")


class KeyView(View):
    """A key, without its text."""

    id: str
    name: str
    scopes: Sequence[str]
    created_at: datetime
    revoked_at: datetime | None


class NewKeyView(KeyView):
    """A key with its text, which is shown this once and never stored."""

    key: str | None = Field(description="null when the answer is a repeat for one Idempotency-Key")


class HolderView(BaseModel):
    """A dataset or an experiment that the artefact store holds files of."""

    kind: Literal["dataset", "experiment"]
    id: str
    name: str
    status: str
    bytes: int = Field(description="Of packed patches, or of weights, embeddings and checkpoints")
    may_go: bool = Field(description="Whether it can be removed as it is: ended, or with no experiment on it")


class StorageView(BaseModel):
    """Where the room went."""

    items: list[HolderView] = Field(description="The largest first")
    free: int = Field(description="Bytes that can be written yet where artefacts are kept")


class HealthView(BaseModel):
    """Whether the process serves."""

    status: Literal["ok"]
