"""/api/v1/datasets"""

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Body, Depends, Header, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, StreamingResponse

from winnow.domain import DatasetSpec, Role, SampleRow
from winnow.errors import AlreadyExists
from winnow.negotiation import CSV, JSON, NDJSON, negotiate
from winnow.problems import responses
from winnow_coordinator import datasets, examples, streams
from winnow_coordinator import samples as listed
from winnow_coordinator.access import Here, Writing
from winnow_coordinator.auth import Reader, Runner
from winnow_coordinator.context import Coordinator
from winnow_coordinator.idempotency import Answer, Idempotent, Once
from winnow_coordinator.pages import Cursor, Limit
from winnow_coordinator.schemas import DatasetView, Page, SampleView

router = APIRouter(prefix="/datasets", tags=["datasets"], responses=responses(401, 403, 413, 422, 429, 503))
SKIPPED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Path and reason of each",
        "content": {CSV: {"schema": {"type": "string"}, "example": "path,reason\na/1.png,no such file\n"}},
    }
}
SAMPLES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Page[SampleView],
        "content": {
            NDJSON: {"schema": {"type": "string"}},
            CSV: {"schema": {"type": "string"}, "example": "idx,key,role,label,group\n0,STR/a.tif,pool,STR,\n"},
        },
    }
}
RENDERED = {NDJSON: streams.ndjson, CSV: streams.csv}
Request = Annotated[DatasetSpec, Body(openapi_examples=examples.DATASET_REQUESTS)]


async def _check(spec: Request, caller: Runner, once: Idempotent, here: Here) -> DatasetSpec:
    if await run_in_threadpool(_is_news, spec, once, here):
        await here.source_check.run(spec)
    return spec


def _is_news(spec: DatasetSpec, once: Once, here: Coordinator) -> bool:
    """Whether this is no repeat of a request that was answered. Raises AlreadyExists."""
    try:
        datasets.require_free(here, spec.name)
    except AlreadyExists:
        if once.was_answered(here):  # asked after it: the first of two may take the name in between
            return False
        raise
    return not once.was_answered(here)


# Looking through large sources takes minutes: it happens before the route's transaction begins.
Checked = Annotated[DatasetSpec, Depends(_check)]


@router.post("", status_code=202, response_model=DatasetView, responses=responses(409))
def add(spec: Checked, caller: Runner, here: Here, once: Idempotent, session: Writing) -> Response:
    """Take a dataset in. A trainer then decodes, packs and counts its patches: follow `status` and `progress`.

    The name of a dataset that failed may be used again: it is ingested again by the spec that is sent, and goes on
    behind the last full shard before the first image that changed.
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
async def remove(name: str, caller: Runner, here: Here) -> None:
    """Forget a dataset that no experiment is on, by id or name: its samples at once (some seconds for a million), its
    shards within moments.

    The files that it was taken in from stay as they are.
    """
    await to_thread.run_sync(datasets.remove, here, name, limiter=here.removals)


@router.get("/{name}/samples", response_class=Response, responses={**SAMPLES, **responses(404, 406, 409)})
async def samples(
    name: str,
    caller: Reader,
    role: Role | None = None,
    cursor: Cursor = None,
    limit: Limit = 100,
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    """A dataset's patches by idx, once it is ready: a page as JSON, all from `cursor` on as NDJSON or CSV."""
    media_type = negotiate(accept, (JSON, *RENDERED))
    if media_type == JSON:
        answer = await caller.reads.show(listed.page, name, role, cursor, limit)
    else:
        listing = await caller.reads(listed.listing, name, role, cursor)
        content = RENDERED[media_type](SampleRow._fields, listing.pages(caller.coordinator.database))
        answer = StreamingResponse(content, media_type=media_type)
    answer.headers["Vary"] = "Accept"
    return answer


@router.get("/{name}/skipped", response_class=Response, responses={**SKIPPED, **responses(404, 409)})
async def skipped(name: str, caller: Reader) -> Response:
    """All files that could not be read, as CSV, once the dataset is ready; its `report` names the first 100."""
    key, table = await caller.reads(datasets.skipped, name)
    if key is not None:
        return FileResponse(caller.coordinator.artefacts.local(key), media_type=CSV)
    return Response(table, media_type=CSV)
