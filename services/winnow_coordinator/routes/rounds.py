"""/api/v1/experiments/{id}/rounds: what each round did, picked and stored."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Response
from fastapi.responses import FileResponse, StreamingResponse

from winnow.negotiation import CSV, JSON, NDJSON, NPY
from winnow.problems import responses
from winnow_coordinator import batches, rounds
from winnow_coordinator.access import Here
from winnow_coordinator.auth import Reader
from winnow_coordinator.pages import Cursor, Limit
from winnow_coordinator.schemas import Page, RoundDetail, RoundView, SelectionView

router = APIRouter(
    prefix="/experiments/{id}/rounds", tags=["rounds"], responses=responses(401, 403, 404, 413, 422, 429, 503)
)
Number = Annotated[int, Path(ge=0, lt=2**31)]
SELECTION: dict[int | str, dict[str, Any]] = {
    200: {
        "model": SelectionView,
        "content": {
            NDJSON: {"schema": {"type": "string"}},
            CSV: {"schema": {"type": "string"}, "example": "rank,idx,key,score\n0,40211,STR/a.tif,0.69\n"},
            NPY: {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}
MEDIA_TYPES = {".npy": NPY, ".json": JSON}


@router.get("", response_model=Page[RoundView])
async def list_all(id: str, caller: Reader, cursor: Cursor = None, limit: Limit = 100) -> Response:
    """Rounds so far, by number."""
    return await caller.reads.show(rounds.page, id, cursor, limit)


@router.get("/{number}", response_model=RoundDetail)
async def get(id: str, number: Number, caller: Reader) -> Response:
    """One round, with the manifests of its artefacts."""
    return await caller.reads.show(rounds.get, id, number)


@router.get("/{number}/selection", response_class=Response, responses={**SELECTION, **responses(406)})
def selection(
    id: str, number: Number, caller: Reader, here: Here, accept: Annotated[str | None, Header()] = None
) -> StreamingResponse:
    """The batch that this round added to S^t, in the order of picking; npy holds idx alone."""
    with here.database.read() as session:  # in a thread of its own, as each page is: it may be a pool of millions
        batch = batches.of_round(session, id, number)
    content, media_type = batches.render(batch, here.database, accept)
    return StreamingResponse(content, media_type=media_type, headers={"Vary": "Accept"})


@router.get("/{number}/artefacts/{kind:path}", response_class=FileResponse, responses=BYTES)
async def artefact(id: str, number: Number, kind: str, caller: Reader) -> FileResponse:
    """The bytes of one artefact, say `candidates/embeddings`. The ETag is their sha256."""
    row = await caller.reads(rounds.artefact, id, number, kind)
    path = caller.coordinator.artefacts.local(row.key)
    media_type = MEDIA_TYPES.get(path.suffix, "application/octet-stream")
    return FileResponse(path, media_type=media_type, headers={"ETag": f'"{row.sha256}"'}, filename=path.name)
