"""`python -m winnow_trainer.member DEVICE`: one process of a team, started by torch's launcher.

The leader hears the supervisor, stores and reports, as a child that trains alone does. The others hear the leader.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

from winnow import failpoints
from winnow.errors import WinnowError, is_out_of_memory
from winnow.simclr import Team
from winnow_trainer import training
from winnow_trainer.child import die_with_parent, ending, work
from winnow_trainer.protocol import Line, leave_word
from winnow_trainer.warm import Warm


def follow(team: Team, warm: Warm) -> bool:
    """Train along with the leader, round after round, until it says nothing more; False once one failed."""
    while path := team.hear():
        job = json.loads(Path(path).read_text())
        try:
            training.train_along(job, warm)
        except Exception as error:
            traceback.print_exc()
            if isinstance(error, WinnowError) or is_out_of_memory(error):  # the rest may be no more than another's end
                leave_word(Path(job["scratch"]), ending(error, Path(job["scratch"])))
            return False
    return True


def main() -> None:
    die_with_parent(os.getppid())
    failpoints.arm_from(os.environ)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    team = Team.join(sys.argv[1])
    warm = Warm(team)
    if not (work(Line(), lambda: warm) if team.leads else follow(team, warm)):
        sys.stderr.flush()
        os._exit(1)  # the others may be in the middle of a step: the launcher ends them
    if team.leads:
        team.say("")
    team.leave()


if __name__ == "__main__":
    main()
