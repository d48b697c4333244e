"""/api/v1/experiments: begin, look, pause, resume, cancel, follow, remove."""

from typing import Annotated, NamedTuple

from fastapi import APIRouter, Body, Depends, Header, Query, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import event
from starlette.concurrency import run_in_threadpool

from winnow.domain import ExperimentStatus
from winnow.problems import responses
from winnow_coordinator import event_stream, examples, experiments, rounds
from winnow_coordinator.access import Here, Watching, Writing
from winnow_coordinator.auth import Reader, Runner, while_valid
from winnow_coordinator.idempotency import Answer, Idempotent
from winnow_coordinator.pages import Cursor, Limit
from winnow_coordinator.schemas import ExperimentRequest, ExperimentView, MetricsView, Page

router = APIRouter(prefix="/experiments", tags=["experiments"], responses=responses(401, 403, 413, 422, 429, 503))
Request = Annotated[ExperimentRequest, Body(openapi_examples=examples.EXPERIMENT_REQUESTS)]
LastEventId = Annotated[
    int | None, Header(ge=0, lt=2**63, description="Sent by a client that resumes; stands before `after`")
]
Called = Annotated[str | None, Query(description="Only those of this name; several may have it")]
UntilPaused = Annotated[bool, Query(description="End at a pause, too")]
After = Annotated[int, Query(ge=0, lt=2**63, description="Only events with a higher id")]
EVENTS = {200: {"content": {"text/event-stream": {"example": 'id: 3\nevent: round.trained\ndata: {"round": 0}\n\n'}}}}


class _Planned(NamedTuple):
    request: ExperimentRequest
    plan: experiments.Plan | None
    """None for a repeat, which is answered as the first was."""


def _plan(request: Request, caller: Runner, once: Idempotent, here: Here) -> _Planned:
    answered = once.was_answered(here)
    return _Planned(request, None if answered else experiments.plan(here, experiments.parse(request)))


# Drawing from a pool of millions takes seconds: it happens before the route's transaction begins.
Planned = Annotated[_Planned, Depends(_plan)]


@router.post("", status_code=201, response_model=ExperimentView, responses=responses(404, 409))
def begin(planned: Planned, caller: Runner, here: Here, once: Idempotent, session: Writing) -> Response:
    """Begin an experiment on a ready dataset. S^0 is drawn at once; a trainer takes round 0 when it is free."""

    def create() -> Answer:
        plan = planned.plan or experiments.plan(here, experiments.parse(planned.request))
        view = experiments.begin(here, session, plan)
        return Answer(201, view, _location(view))

    return once.run(session, planned.request.root, create)


@router.get("", response_model=Page[ExperimentView])
async def list_all(
    caller: Reader,
    status: ExperimentStatus | None = None,
    name: Called = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Response:
    """Experiments, newest first."""
    return await caller.reads.show(experiments.page, caller.coordinator.final_views, status, name, cursor, limit)


@router.get("/{id}", response_model=ExperimentView, responses=responses(404))
async def get(id: str, caller: Reader) -> Response:
    """One experiment, with the round that runs and the newest with metrics."""
    return await caller.reads.show(experiments.show, caller.coordinator.final_views, id)


@router.post("/{id}/pause", status_code=202, responses=responses(404, 409))
def pause(id: str, caller: Runner, session: Writing, response: Response) -> ExperimentView:
    """Pause: training stops within one step and keeps a checkpoint."""
    return _accepted(response, experiments.pause(session, id))


@router.post("/{id}/resume", status_code=202, responses=responses(404, 409))
def resume(id: str, caller: Runner, here: Here, session: Writing, response: Response) -> ExperimentView:
    """Go on after a pause, or from the last checkpoint of a round that failed, with its errors counted anew."""
    return _accepted(response, experiments.resume(here, session, id))


@router.post("/{id}/cancel", status_code=202, responses=responses(404, 409))
def cancel(id: str, caller: Runner, session: Writing, response: Response) -> ExperimentView:
    """End for good: training stops within one step; results so far stay."""
    return _accepted(response, experiments.cancel(session, id))


@router.delete("/{id}", status_code=204, responses=responses(404, 409))
def remove(id: str, caller: Runner, here: Here, session: Writing) -> None:
    """Forget an experiment that has ended: rounds, picks, metrics and events at once, its files within moments.

    Nothing brings it back. One that is under way is cancelled first.
    """
    experiments.remove(session, id)
    event.listen(session, "after_commit", lambda _: here.final_views.drop([id]), once=True)


@router.get("/{id}/metrics", response_model=MetricsView, responses=responses(404))
async def metrics(id: str, caller: Reader) -> Response:
    """Samples, image visits, seconds and metrics by round, and the floors."""
    return await caller.reads.show(rounds.metrics, id)


@router.get("/{id}/events", response_class=StreamingResponse, responses={**EVENTS, **responses(404)})
async def follow(
    id: str,
    caller: Reader,
    board: Watching,
    last_event_id: LastEventId = None,
    after: After = 0,
    until_paused: UntilPaused = False,
) -> StreamingResponse:
    """Server-sent events until the experiment has ended, or is paused, if `until_paused` is given. `progress` events
    carry no id: they are not replayed."""
    start = after if last_event_id is None else last_event_id
    here = caller.coordinator
    seen = await run_in_threadpool(event_stream.look, here, id, start)  # an unknown id is a 404, not an empty stream
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    frames = event_stream.follow(here, board, id, start, seen, until_paused=until_paused)
    return StreamingResponse(while_valid(caller, frames), media_type="text/event-stream", headers=headers)


def _accepted(response: Response, view: ExperimentView) -> ExperimentView:
    response.headers["Location"] = _location(view)
    return view


def _location(view: ExperimentView) -> str:
    return f"/api/v1/experiments/{view.id}"
