"""/api/v1/datasets"""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Response

from winnow.domain import DatasetSpec, Role
from winnow.problems import responses
from winnow.store import datasets as rows
from winnow_coordinator import datasets, examples
from winnow_coordinator.access import Here, Reading, Writing
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


@router.get("")
def list_all(caller: Reader, session: Reading, cursor: Cursor = None, limit: Limit = 50) -> Page[DatasetView]:
    """Datasets, newest first."""
    return datasets.page(session, cursor, limit)


@router.get("/{name}", responses=responses(404))
def get(name: str, caller: Reader, session: Reading) -> DatasetView:
    """One dataset, by id or name."""
    return datasets.view(rows.get(session, name))


@router.get("/{name}/samples", responses=responses(404))
def samples(
    name: str,
    caller: Reader,
    session: Reading,
    role: Role | None = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Page[SampleView]:
    """A dataset's patches by idx."""
    return datasets.samples(session, name, role, cursor, limit)
