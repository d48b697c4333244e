"""Run in a process of its own: the memory that a job takes with its answer and what was foreseen, bytes, a line a size.

python memory_of_answers.py KIND BUDGET ...
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
from memory_of import peak_of

from winnow import telemetry
from winnow.settings import Settings
from winnow_sampler.comparing import Comparing
from winnow_sampler.context import Sampler
from winnow_sampler.schemas import ComparisonRequest, SelectionRequest
from winnow_sampler.selecting import Selecting
from winnow_sampler.snapshots import Found


def main() -> None:
    kind, budgets = sys.argv[1], [int(text) for text in sys.argv[2:]]
    with TemporaryDirectory() as folder:
        settings = Settings(state_dir=Path(folder), data_roots=(Path(folder),), sampler_memory_gib=8, log_level="error")
        telemetry.configure(settings, "sampler")
        sampler = Sampler(settings)
        run(sampler, work_of(kind, 100, sampler), "imports")
        for budget in budgets:
            work = work_of(kind, budget, sampler)
            taken = peak_of(lambda: run(sampler, work, f"of{budget}"))  # noqa: B023 - called at once
            print(taken, work.need, flush=True)
        sampler.jobs.close()


def work_of(kind: str, budget: int, sampler: Sampler) -> Selecting | Comparing:
    if kind == "comparison":
        contenders = [{"strategy": "random", "name": f"{seed}", "seed": seed} for seed in range(8)]
        request = ComparisonRequest.model_validate({"strategies": contenders, "budget": budget, "size": budget})
        return Comparing(request, Found(request, sampler.sources))
    pool = {"pool": {"path": str(slide(sampler, budget))}} if kind == "selection-with-origins" else {"size": budget}
    request = SelectionRequest.model_validate({"strategy": "random", "budget": budget, **pool})
    return Selecting(request, Found(request, sampler.sources), lambda *_: None)


def slide(sampler: Sampler, rows: int) -> Path:
    """A file with as long a name as the identifiers of a hospital make it."""
    path = sampler.settings.state_dir / f"{'x' * 80}-{rows}.h5"
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = np.zeros((rows, 1), np.float32), np.arange(2 * rows).reshape(rows, 2)
    return path


def run(sampler: Sampler, work: Selecting | Comparing, id: str) -> None:
    assert isinstance(sampler.jobs.submit("selections", id, 1, work, wait=300), Path)


if __name__ == "__main__":
    main()
