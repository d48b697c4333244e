"""Experiments: begun, listed, paused, resumed, cancelled, removed."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import to_json
from sqlalchemy.orm import Session

from winnow.domain import (
    Arm,
    ExperimentSpec,
    ExperimentStatus,
    Role,
    RoundStatus,
    derive_seed,
    expand,
    has_ended,
    is_final,
    total_rounds_of,
)
from winnow.errors import InvalidInput, NotFound, WrongState
from winnow.failpoints import Failpoint, reach
from winnow.selection.draws import Indices, draw_initial
from winnow.store import datasets, experiments, picks, rounds
from winnow.store.tables import Dataset, Experiment, Round
from winnow_coordinator import fitness, pages
from winnow_coordinator.context import Coordinator
from winnow_coordinator.final_views import FinalViews
from winnow_coordinator.schemas import ExperimentRequest, ExperimentView, RoundView

_ORDERS = {
    ExperimentStatus.PAUSING: "paused",
    ExperimentStatus.RUNNING: "resumed",
    ExperimentStatus.CANCELLING: "cancelled",
}
"""What people may ask of an experiment, by the state that this leads to."""


def parse(request: ExperimentRequest) -> ExperimentSpec:
    """The spec with its preset filled in. Raises InvalidInput, RequestValidationError."""
    document = request.root
    for name in ("arms", "seeds"):
        if name in document:
            raise InvalidInput(name, f"one request begins one experiment; send one for each of {name}")
    try:
        return expand(document)[0]
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error


@dataclass(frozen=True)
class Plan:
    """An experiment that may begin: its dataset's id, and S^0 in drawn order; None for the whole pool."""

    spec: ExperimentSpec
    dataset_id: str
    pool_size: int
    first: Indices | None


def plan(coordinator: Coordinator, spec: ExperimentSpec) -> Plan:
    """Look whether `spec` fits its dataset, and draw S^0. A pool of millions takes seconds: call it outside any
    transaction. Raises NotFound, WrongState (dataset not ready), InvalidInput.
    """
    with coordinator.database.read() as session:
        dataset = datasets.get(session, spec.dataset)
        fitness.require_ready(dataset)
        stock = fitness.take_stock(dataset, spec)
        fitness.require_fit(spec, stock)
        first = None if spec.arm is Arm.FULL else _draw_first(session, dataset, spec, stock.pool_size)
    return Plan(spec, dataset.id, stock.pool_size, first)


def begin(coordinator: Coordinator, session: Session, planned: Plan) -> ExperimentView:
    """Insert the experiment, its S^0 and round 0.

    Raises NotFound or WrongState where the dataset was removed since the plan was made.
    """
    dataset = datasets.get(session, planned.dataset_id, hold=True)
    fitness.require_ready(dataset)
    experiment = experiments.insert(session, planned.spec, dataset.id)
    samples = planned.pool_size
    if planned.first is not None:
        picks.insert(session, experiment.id, 0, planned.first, [0.0] * len(planned.first))
        samples = len(planned.first)
    coordinator.ring(session, rounds.insert(session, experiment.id, 0, samples=samples))
    session.flush()
    reach(Failpoint.EXPERIMENT_INSERTED)
    return get(session, experiment.id)


def get(session: Session, id: str) -> ExperimentView:
    """One experiment. Raises NotFound."""
    found = rounds.with_recent(session, [id])
    if not found:
        raise NotFound("experiment", id)
    return _view(*found[id])


def show(session: Session, final: FinalViews, id: str) -> bytes:
    """The same as JSON. Raises NotFound."""
    if (view := _render(session, final, [id]).get(id)) is None:
        raise NotFound("experiment", id)
    return view


def page(
    session: Session,
    final: FinalViews,
    status: ExperimentStatus | None,
    name: str | None,
    cursor: str | None,
    limit: int,
) -> bytes:
    """A Page of experiments as JSON, newest first."""
    ids = experiments.page_of_ids(session, before=pages.decode(cursor), limit=limit + 1, status=status, name=name)
    shown, following = pages.cut(ids, limit, str)
    views = _render(session, final, shown)
    return b'{"items":[%b],"next":%b}' % (b",".join(views[id] for id in shown if id in views), to_json(following))


def pause(session: Session, id: str) -> ExperimentView:
    """Ask for a pause; whoever works on a round stops within one step. Raises NotFound, WrongState."""
    _order(session, id, ExperimentStatus.PAUSING)
    return get(session, id)


def resume(coordinator: Coordinator, session: Session, id: str) -> ExperimentView:
    """Go on after a pause, or where a round failed. Raises NotFound, WrongState."""
    rounds.newest(session, id, hold=True)  # before the experiment, like everybody who holds both
    _order(session, id, ExperimentStatus.RUNNING)
    newest = rounds.newest(session, id)
    if newest is not None and newest.status == RoundStatus.FAILED:
        rounds.resume(session, newest)
    if newest is not None and newest.status == RoundStatus.QUEUED:
        coordinator.ring(session, newest)
        session.flush()
    return get(session, id)


def cancel(session: Session, id: str) -> ExperimentView:
    """Ask for the end; results so far stay. Raises NotFound, WrongState."""
    _order(session, id, ExperimentStatus.CANCELLING)
    return get(session, id)


def remove(session: Session, id: str) -> None:
    """Forget an experiment that has ended, for good; its files follow. Raises NotFound, WrongState."""
    rounds.newest(session, id, hold=True)  # before the experiment, like everybody who holds both
    try:
        experiments.remove(session, id)
    except WrongState as error:
        ends = error.current == ExperimentStatus.CANCELLING
        advice = "wait until it is cancelled" if ends else "cancel it first"
        name = experiments.get(session, id).name
        words = f"{name} ({id}) is {error.current} and cannot be removed; {advice}"
        raise WrongState("experiment", id, error.current, error.target, error.allowed, words=words) from None


def _order(session: Session, id: str, target: ExperimentStatus) -> None:
    """Raises NotFound, and WrongState in the words of who gives orders."""
    try:
        experiments.transition(session, id, target)
    except WrongState as error:
        possible = [order for status, order in _ORDERS.items() if status in error.allowed]
        choices = f"it can be {' or '.join(possible)}" if possible else "it can be given no order any more"
        name = experiments.get(session, id).name
        words = f"{name} ({id}) is {error.current} and cannot be {_ORDERS[target]}; {choices}"
        raise WrongState("experiment", id, error.current, target, error.allowed, words=words) from None


def _draw_first(session: Session, dataset: Dataset, spec: ExperimentSpec, size: int) -> Indices:
    if spec.initial == "stratum":
        pool, labels = datasets.labels(session, dataset, Role.POOL)
    else:
        pool, labels = datasets.indices(session, dataset.id, Role.POOL), ()
    if len(pool) != size:  # some went since the look at the dataset: outside a transaction each statement is for itself
        raise NotFound("dataset", spec.dataset)
    return draw_initial(pool, spec.budget, seed=derive_seed(spec.seed, "initial"), by=spec.initial, labels=labels)


def _render(session: Session, final: FinalViews, ids: Sequence[str]) -> dict[str, bytes]:
    """Experiments as JSON, by id; those that there are not are left out. What is known and final is not read."""
    known = {id: view for id in ids if (view := final.get(id)) is not None}
    unknown = [id for id in ids if id not in known]
    for id, (row, recent) in (rounds.with_recent(session, unknown) if unknown else {}).items():
        view = _view(row, recent)
        known[id] = view.model_dump_json().encode()
        if is_final(ExperimentStatus(view.status)) and view.current_round is None:
            final.put(id, known[id])
    return known


def _view(row: Experiment, recent: Sequence[Round]) -> ExperimentView:
    """A round begins when the one before it is done, so the newest tells how many are."""
    newest = recent[-1] if recent else None
    open_rounds = [one for one in recent if not has_ended(RoundStatus(one.status))]
    scored = [one for one in recent if one.metrics]
    fields = {
        "id": row.id,
        "name": row.name,
        "dataset": row.dataset_name,
        "arm": row.spec["arm"],
        "status": row.status,
        "error": row.error,
        "rounds_total": total_rounds_of(row.spec),
        "rounds_done": newest.number + (newest.status == RoundStatus.DONE) if newest else 0,
        "current_round": RoundView.model_validate(open_rounds[-1]) if open_rounds else None,
        "latest": RoundView.model_validate(scored[-1]) if scored else None,
        "spec": row.spec,
        "created_at": row.created_at,
        "ended_at": row.ended_at,
    }
    return ExperimentView.model_validate(fields)
