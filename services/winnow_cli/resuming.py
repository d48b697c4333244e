"""The same work, found again: what has this spec already is gone on with."""

import re
from itertools import count
from typing import Any

from winnow.client import ApiProblem, Client
from winnow.domain import DatasetSpec, DatasetStatus, ExperimentSpec, ExperimentStatus
from winnow_cli.files import body_of

Json = dict[str, Any]
OVER = (ExperimentStatus.CANCELLING, ExperimentStatus.CANCELLED)
HELD = (ExperimentStatus.PAUSING, ExperimentStatus.PAUSED, ExperimentStatus.FAILED)


def find_or_add_dataset(client: Client, spec: DatasetSpec) -> Json:
    """The dataset of this spec. Where another one has its name, it is called NAME-2, and so on; one that failed is
    taken in again, and one that is being removed is let go."""
    gone = (DatasetStatus.FAILED, DatasetStatus.REMOVING)
    own = re.compile(rf"{re.escape(spec.name)}(-\d+)?")
    for view in client.datasets():
        same = spec.model_copy(update={"name": view["name"]})
        if own.fullmatch(view["name"]) and view["spec"] == body_of(same) and view["status"] not in gone:
            return view
    for number in count(1):
        wanted = spec.model_copy(update={"name": spec.name if number == 1 else f"{spec.name}-{number}"})
        found = _find(client, wanted.name)
        if found is None or found["status"] == DatasetStatus.FAILED:
            return client.create_dataset(wanted)
    raise AssertionError("numbers do not end")


def find_or_begin(client: Client, spec: ExperimentSpec) -> Json:
    """The newest experiment of this spec, taken up again if it is paused or failed; one that was cancelled is begun
    anew."""
    newest = next((view for view in client.experiments() if view["spec"] == body_of(spec)), None)
    if newest is None or newest["status"] in OVER:
        return client.create_experiment(spec)
    return client.resume(newest["id"]) if newest["status"] in HELD else newest


def _find(client: Client, name: str) -> Json | None:
    try:
        return client.dataset(name)
    except ApiProblem as problem:
        if not problem.is_not_found:
            raise
        return None
