"""`python -m winnow_trainer.child JOB.json`: the process that computes. It has no database and holds no claim."""

import ctypes
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from winnow_trainer.protocol import Line
from winnow_trainer.reasons import explain

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its supervisor dies, so that no orphan keeps a GPU busy."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(3)


def run(job: dict[str, Any], line: Line) -> None:
    """Do the job and tell how it ended."""
    from winnow.datasets import IngestStopped

    stopped: tuple[type[BaseException], ...] = (IngestStopped,)
    try:
        if job["kind"] == "ingest":
            from winnow_trainer import ingesting

            line.tell("result", **ingesting.ingest_dataset(job, line))
        else:
            from winnow.simclr import TrainingStopped
            from winnow_trainer import training

            stopped = (TrainingStopped,)
            line.tell("result", **training.train_and_store(job, line))
    except stopped:
        line.tell("stopped")
    except Exception as error:  # every reason must reach the row
        traceback.print_exc()
        cause, message = explain(error, Path(job["scratch"]))
        line.tell("error", cause=cause, message=message)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    die_with_parent(job["parent"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to hear
    run(job, Line())


if __name__ == "__main__":
    main()
