"""`python -m winnow_trainer.launcher PARENT PROCESSES DEVICE`: torch's launcher around a team that shares each round.

The team is this process's children; the supervisor talks to its leader through the standard streams, which the
launcher hands down. When one of them dies, the launcher ends the others and itself, and the round is tried again.
"""

import signal
import sys

from winnow_trainer.child import die_with_parent


def main() -> None:
    parent, processes, device = sys.argv[1:]
    die_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from torch.distributed.run import main as launch

    launch(["--standalone", "--nproc-per-node", processes, "-m", "winnow_trainer.member", device])


if __name__ == "__main__":
    main()
