"""`python -m winnow_trainer.member PARENT DEVICE`: one process of a team, started by torch's launcher.

The leader hears the supervisor, stores and reports, as a child that trains alone does. The others hear the leader, and
tell the supervisor what ends them, before the leader can miss them.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from winnow import failpoints
from winnow.confinement import die_with_parent
from winnow.errors import WinnowError, is_out_of_memory
from winnow_trainer.child import ending, work
from winnow_trainer.protocol import Line, Voice

if TYPE_CHECKING:
    from winnow_trainer.warm import Warm


def follow(voice: Voice, warm: "Warm") -> bool:
    """Train along with the leader, round after round, until it says nothing more; False once one failed."""
    from winnow_trainer import training

    while path := warm.team.hear():
        job = json.loads(Path(path).read_text())
        try:
            training.train_along(job, warm)
        except Exception as error:
            traceback.print_exc()
            tell_end(voice, error, Path(job["scratch"]))
            return False
    return True


def tell_end(voice: Voice, error: Exception, scratch: Path) -> None:
    """Say what ended this process. One that follows does not say what may be no more than another's end."""
    end, leads = ending(error, scratch), isinstance(voice, Line)
    if leads or end.get("cause") in ("sick", "full") or isinstance(error, WinnowError) or is_out_of_memory(error):
        voice.tell(**end)


def main() -> None:
    parent, device = sys.argv[1:]
    die_with_parent(int(parent))
    failpoints.arm_from(os.environ)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    voice = Line() if os.environ["RANK"] == "0" else Voice()  # the launcher hands the supervisor's pipes to all
    from winnow.simclr import Team  # torch takes seconds to import, and may print
    from winnow_trainer.warm import Warm

    try:
        team = Team.join(device)
    except Exception as error:
        tell_end(voice, error, Path())
        raise
    warm = Warm(team)
    if not (work(voice, lambda: warm) if isinstance(voice, Line) else follow(voice, warm)):
        sys.stderr.flush()
        os._exit(1)  # the others may be in the middle of a step: the launcher ends them
    if team.leads:
        team.say("")
    team.leave()


if __name__ == "__main__":
    main()
