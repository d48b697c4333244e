"""/v1: selections, comparisons, the embeddings that they are made from, the strategies."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from anyio import to_thread
from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from winnow.errors import InvalidInput, NotFound
from winnow.negotiation import ARROW, JSON, NDJSON, NPY, negotiate
from winnow.problems import require_known_query, responses
from winnow.selection import requirements, strategies
from winnow_sampler import comparing, selecting
from winnow_sampler.comparing import Comparing
from winnow_sampler.context import Accept, Here, Sampler, bearer
from winnow_sampler.formats import FORMATS, render
from winnow_sampler.gate import GatedRoute
from winnow_sampler.jobs import Answer
from winnow_sampler.schemas import (
    ComparisonRequest,
    ComparisonView,
    EmbeddingsView,
    SelectionRequest,
    SelectionView,
    StrategiesView,
    StrategyView,
)
from winnow_sampler.selecting import Selecting
from winnow_sampler.snapshots import Found

Json = dict[str, Any]


def _router(name: str) -> APIRouter:
    """Behind the gate, which asks for the token: the description says so by `bearer`."""
    known = [Depends(bearer), Depends(require_known_query)]
    return APIRouter(prefix=f"/v1/{name}", tags=[name], dependencies=known, route_class=GatedRoute)


selections, comparisons = _router("selections"), _router("comparisons")
files, names = _router("embeddings"), _router("strategies")
BYTES = {"schema": {"type": "string", "format": "binary"}}
PICKS: dict[int | str, Json] = {
    200: {
        "model": SelectionView,
        "description": "The picks. NDJSON: a line a pick; npy: the rows alone, int64 (b,); Arrow: an IPC stream",
        "content": {NDJSON: {"schema": {"type": "string"}}, NPY: BYTES, ARROW: BYTES},
    }
}
UPLOAD: Json = {"requestBody": {"required": True, "content": {"application/octet-stream": BYTES}}}
KEPT: dict[int | str, Json] = {
    200: {"model": EmbeddingsView, "description": "It was there already"},
    **responses(401, 413, 422),
}
WAYS: dict[int | str, Json] = {202: {"model": SelectionView, "description": "Under way, as JSON; poll Location"}}
COMPARED: dict[int | str, Json] = {202: {"model": ComparisonView, "description": "Under way; poll Location"}}
CHUNK = 1 << 20


@selections.post(
    "",
    response_class=Response,
    responses={**PICKS, **WAYS, **responses(401, 403, 404, 406, 413, 422)},
)
async def pick(request: Annotated[SelectionRequest, Body()], here: Here, accept: Accept = None) -> Response:
    """Pick. 200 with the batch, or 202 with a job to poll where it takes longer or waits for memory."""
    media_type = negotiate(accept, FORMATS)
    found = await run_in_threadpool(_select, here, request)
    return await _answer(here, found, selecting.KIND, media_type, begun=True)


@selections.get("/{id}", response_class=Response, responses={**PICKS, **responses(401, 404, 406, 422)})
async def look(id: str, here: Here, accept: Accept = None) -> Response:
    """A selection: done, under way, or cancelled with the picks it had."""
    media_type = negotiate(accept, FORMATS)
    found = await run_in_threadpool(here.jobs.get, selecting.KIND, id)
    return await _answer(here, found, selecting.KIND, media_type)


@selections.delete("/{id}", response_model=SelectionView, responses=responses(401, 404))
async def cancel(id: str, here: Here) -> Response:
    """Stop a selection; its picks so far are kept. One that is done stays."""
    found = await run_in_threadpool(here.jobs.cancel, selecting.KIND, id)
    return await _answer(here, found, selecting.KIND, JSON)


@comparisons.post(
    "",
    response_model=ComparisonView,
    responses={**COMPARED, **responses(401, 403, 404, 406, 413, 422)},
)
async def compare(request: Annotated[ComparisonRequest, Body()], here: Here, accept: Accept = None) -> Response:
    """Run several strategies on one snapshot, and hold their batches against each other. Nothing is committed."""
    negotiate(accept, [JSON])
    found = await run_in_threadpool(_compare, here, request)
    return await _answer(here, found, comparing.KIND, JSON, begun=True)


@comparisons.get("/{id}", response_model=ComparisonView, responses=responses(401, 404, 422))
async def look_at_comparison(id: str, here: Here) -> Response:
    """A comparison, done or under way."""
    found = await run_in_threadpool(here.jobs.get, comparing.KIND, id)
    return await _answer(here, found, comparing.KIND, JSON)


@comparisons.delete("/{id}", response_model=ComparisonView, responses=responses(401, 404))
async def cancel_comparison(id: str, here: Here) -> Response:
    """Stop a comparison; the strategies that had ended are kept. One that is done stays."""
    found = await run_in_threadpool(here.jobs.cancel, comparing.KIND, id)
    return await _answer(here, found, comparing.KIND, JSON)


@files.post("", status_code=201, response_model=EmbeddingsView, responses=KEPT, openapi_extra=UPLOAD)
async def upload(
    request: Request, here: Here, name: Annotated[str, Query(description="The file's name, say slide-1.h5")]
) -> Response:
    """Keep a file of embeddings: `.npy`, HDF5 or Parquet, as the raw body. 201, or 200 where it is there already.

    One that is too large is refused by its Content-Length, before it is read.
    """
    length = request.headers.get("Content-Length", "")
    incoming = await run_in_threadpool(here.uploads.begin, name, int(length) if length.isdigit() else None)
    with incoming:
        try:
            async for chunk in request.stream():
                await run_in_threadpool(incoming.write, chunk)
        except ClientDisconnect:  # nobody hears it; the log has no failure of the service to tell
            raise InvalidInput("body", "was cut off; send it again") from None
        incoming.finish()
        about, is_new = await run_in_threadpool(here.uploads.keep, incoming)
    place = {"Location": f"/v1/embeddings/{about['id']}"}
    return JSONResponse(about, 201 if is_new else 200, headers=place)


@files.get("/{id}", responses=responses(401, 404))
def about(id: str, here: Here) -> EmbeddingsView:
    """A file that was taken."""
    return EmbeddingsView.model_validate(here.uploads.about(id))


@files.delete("/{id}", status_code=204, responses=responses(401, 404))
def forget(id: str, here: Here) -> None:
    """Remove a file. What was picked from it stays."""
    here.uploads.delete(id)


@names.get("", responses=responses(401, 422))
def list_all() -> StrategiesView:
    """The strategies, and which inputs each needs and reads."""
    needs = {name: requirements(name) for name in strategies()}
    views = [StrategyView(name=name, requires=list(one.requires), reads=list(one.reads)) for name, one in needs.items()]
    return StrategiesView(items=views)


def _select(here: Sampler, request: SelectionRequest) -> Answer:
    work = Selecting(request.without_arrays(), Found(request, here.sources), here.observe)
    return _submit(here, selecting.KIND, work)


def _compare(here: Sampler, request: ComparisonRequest) -> Answer:
    work = Comparing(request.without_arrays(), Found(request, here.sources))
    return _submit(here, comparing.KIND, work)


def _submit(here: Sampler, kind: str, work: Selecting | Comparing) -> Answer:
    """What the job that does `work` comes to. No array is read before it runs."""
    found, asked = work.found, work.asked
    return here.jobs.submit(
        kind,
        found.identify(kind, asked),
        work.need,
        work,
        wait=here.settings.answer_seconds,
        identify=lambda job: found.settle(kind, asked, job.cancelled.is_set),
        holds=found.uploads,
    )


async def _answer(here: Sampler, found: Answer, kind: str, media_type: str, *, begun: bool = False) -> Response:
    """A result in the format asked for, as JSON the file as it lies; how far a job is as 202 to whoever began it."""
    varies = {"Vary": "Accept"}
    if isinstance(found, Path):
        file = await run_in_threadpool(_open, found, kind)
        if media_type == JSON:
            return _sent(file, varies)
        return await to_thread.run_sync(_rendered, file, media_type, varies, limiter=here.rendering)
    is_under_way = found["status"] in ("queued", "running")
    headers = {"Location": f"/v1/{kind}/{found['id']}", "Retry-After": "1"} if begun and is_under_way else {}
    return JSONResponse(found, 202 if begun and is_under_way else 200, headers=headers | varies)


def _open(path: Path, kind: str) -> BinaryIO:
    """A result, whatever becomes of its name. Raises NotFound."""
    try:
        return path.open("rb")
    except FileNotFoundError:  # removed at this moment
        raise NotFound(kind.removesuffix("s"), path.stem) from None


def _sent(file: BinaryIO, headers: dict[str, str]) -> Response:
    size = os.fstat(file.fileno()).st_size
    return StreamingResponse(_chunks(file), media_type=JSON, headers={"Content-Length": str(size)} | headers)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK):
            yield chunk


def _rendered(file: BinaryIO, media_type: str, headers: dict[str, str]) -> Response:
    """Picks in a format; what has none as JSON."""
    with file:
        document = json.load(file)
    if "indices" not in document:
        return JSONResponse(document, headers=headers)
    return Response(render(document, media_type), media_type=media_type, headers=headers)
