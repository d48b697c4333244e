"""`python -m winnow_trainer.member DEVICE`: one process of a team, started by torch's launcher.

The leader hears the supervisor, stores and reports, as a child that trains alone does. The others hear the leader.
"""

import json
import os
import signal
import sys
from pathlib import Path

from winnow import failpoints
from winnow.simclr import Team
from winnow_trainer import training
from winnow_trainer.child import die_with_parent, work
from winnow_trainer.protocol import Line
from winnow_trainer.warm import Warm


def follow(team: Team, warm: Warm) -> None:
    """Train along with the leader, round after round, until it says nothing more."""
    while job := team.hear():
        training.train_along(json.loads(Path(job).read_text()), warm)


def main() -> None:
    die_with_parent(os.getppid())
    failpoints.arm_from(os.environ)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    team = Team.join(sys.argv[1])
    warm = Warm(team)
    if not team.leads:
        follow(team, warm)
    elif work(Line(), lambda: warm):
        team.say("")
    else:
        os._exit(1)  # the others may be in the middle of a step: the launcher ends them
    team.leave()


if __name__ == "__main__":
    main()
