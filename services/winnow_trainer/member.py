"""`python -m winnow_trainer.member PARENT DEVICE`: one process of a team, started by torch's launcher.

The leader hears the supervisor, stores and reports, as a child that trains alone does. The others hear the leader.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from winnow import failpoints
from winnow.errors import WinnowError, is_out_of_memory
from winnow_trainer.child import die_with_parent, ending, work
from winnow_trainer.protocol import Line, leave_word

if TYPE_CHECKING:
    from winnow_trainer.warm import Warm


def follow(warm: "Warm") -> bool:
    """Train along with the leader, round after round, until it says nothing more; False once one failed."""
    from winnow_trainer import training

    while path := warm.team.hear():
        job = json.loads(Path(path).read_text())
        try:
            training.train_along(job, warm)
        except Exception as error:
            traceback.print_exc()
            word = ending(error, Path(job["scratch"]))
            if word.get("cause") == "sick" or isinstance(error, WinnowError) or is_out_of_memory(error):
                leave_word(Path(job["scratch"]), word)  # whatever else may be no more than another's end
            return False
    return True


def main() -> None:
    parent, device = sys.argv[1:]
    die_with_parent(int(parent))
    failpoints.arm_from(os.environ)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = Line() if os.environ["RANK"] == "0" else None
    if line is None:
        os.dup2(2, 1)  # the launcher hands the supervisor's pipe to all of them
    from winnow.simclr import Team  # torch takes seconds to import, and may print
    from winnow_trainer.warm import Warm

    try:
        team = Team.join(device)
    except Exception as error:
        if line is not None:
            line.tell(**ending(error, Path()))
        raise
    warm = Warm(team)
    if not (follow(warm) if line is None else work(line, lambda: warm)):
        sys.stderr.flush()
        os._exit(1)  # the others may be in the middle of a step: the launcher ends them
    if line is not None:
        team.say("")
    team.leave()


if __name__ == "__main__":
    main()
