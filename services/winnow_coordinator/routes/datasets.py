"""/api/v1/datasets"""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Response

from winnow.domain import DatasetSpec, Role
from winnow.problems import responses
from winnow_coordinator import datasets, examples
from winnow_coordinator.access import Here, Writing
from winnow_coordinator.auth import Reader, Runner
from winnow_coordinator.idempotency import Answer, Idempotent
from winnow_coordinator.pages import Cursor, Limit
from winnow_coordinator.schemas import DatasetView, Page, SampleView

router = APIRouter(prefix="/datasets", tags=["datasets"], responses=responses(401, 403, 413, 422, 429, 503))
Request = Annotated[DatasetSpec, Body(openapi_examples=examples.DATASET_REQUESTS)]


def _check(spec: Request, caller: Runner, once: Idempotent, here: Here) -> DatasetSpec:
    if not once.was_answered(here):
        datasets.check(here, spec)
    return spec


# Listing a large folder takes seconds: it happens before the route's transaction begins.
Checked = Annotated[DatasetSpec, Depends(_check)]


@router.post("", status_code=202, response_model=DatasetView, responses=responses(409))
def add(spec: Checked, caller: Runner, here: Here, once: Idempotent, session: Writing) -> Response:
    """Take a dataset in. A trainer then decodes, packs and counts its patches: follow `status` and `progress`.

    The name of a dataset that failed may be used again: it is then ingested anew, by the spec that is sent.
    """

    def create() -> Answer:
        view = datasets.accept(here, session, spec)
        return Answer(202, view, f"/api/v1/datasets/{view.id}")

    return once.run(session, spec.model_dump(mode="json"), create)


@router.get("", response_model=Page[DatasetView])
async def list_all(caller: Reader, cursor: Cursor = None, limit: Limit = 50) -> Response:
    """Datasets, newest first."""
    return await caller.reads.show(datasets.page, cursor, limit)


@router.get("/{name}", response_model=DatasetView, responses=responses(404))
async def get(name: str, caller: Reader) -> Response:
    """One dataset, by id or name."""
    return await caller.reads.show(datasets.get, name)


@router.delete("/{name}", status_code=204, responses=responses(404, 409))
def remove(name: str, caller: Runner, here: Here) -> None:
    """Forget a dataset that no experiment is on, by id or name: its samples at once (some seconds for a million), its
    shards within moments.

    The files that it was taken in from stay as they are.
    """
    datasets.remove(here, name)


@router.get("/{name}/samples", response_model=Page[SampleView], responses=responses(404, 409))
async def samples(
    name: str,
    caller: Reader,
    role: Role | None = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Response:
    """A dataset's patches by idx, once it is ready."""
    return await caller.reads.show(datasets.samples, name, role, cursor, limit)
