"""`python -m winnow_trainer.child PARENT`: the process that computes, job after job. It knows no database, no claim."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from winnow import failpoints
from winnow.confinement import confine, die_with_parent
from winnow.errors import BeginAnew
from winnow.failpoints import Failpoint, reach
from winnow_trainer import memory
from winnow_trainer.protocol import Line, Message
from winnow_trainer.reasons import explain

if TYPE_CHECKING:
    from winnow_trainer.warm import Warm


def run(job: dict[str, Any], line: Line, warm: "Warm | None") -> bool:
    """Do a job and tell how it ended; whether another one may follow."""
    from winnow.datasets import IngestStopped

    stopped: tuple[type[BaseException], ...] = (IngestStopped,)
    try:
        if job["kind"] == "ingest":
            confine(job["memory"])
            from winnow_trainer import ingesting

            line.tell("result", **ingesting.ingest_dataset(job, line))
        else:
            from winnow.simclr import TrainingStopped
            from winnow_trainer import training

            assert warm is not None
            stopped = (TrainingStopped,)
            line.tell("result", **training.train_and_store(job, line, warm))
        reach(Failpoint.RESULT_TOLD)
    except stopped:
        line.tell("stopped")
    except Exception as error:  # every reason must reach the row
        traceback.print_exc()
        line.tell(**ending(error, Path(job["scratch"])))
        return False
    return True


def ending(error: Exception, scratch: Path) -> Message:
    """The message of an error that ended a job."""
    if isinstance(error, BeginAnew):
        return {"type": "anew", "limits": error.limits}
    cause, message = explain(error, scratch)
    return {"type": "error", "cause": cause, "message": message}


def work(line: Line, warm: "Callable[[], Warm]") -> bool:
    """Do jobs until there are no more; False once one failed: what it left behind is not trusted with the next."""
    ready: Warm | None = None
    for job in line.jobs():
        if job["kind"] == "train" and ready is None:
            ready = warm()
        if not run(job, line, ready):
            return False
        memory.give_back()
    return True


def _make_warm() -> "Warm":
    from winnow_trainer.warm import Warm  # torch takes seconds to import; an ingest does not need it

    return Warm()


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    failpoints.arm_from(os.environ)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to hear
    if not work(Line(), _make_warm):
        sys.stderr.flush()
        os._exit(1)  # a thread that decodes for ever would keep the process


if __name__ == "__main__":
    main()
