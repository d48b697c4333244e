"""`python -m winnow_trainer.launcher PARENT PROCESSES DEVICE`: torch's launcher around a team that shares each round.

The team is this process's children; the supervisor talks to its leader through the standard streams, which the
launcher hands down. When one of them dies, the launcher ends the others and itself, and the round is tried again.
"""

import os
import signal
import sys

from winnow_trainer.child import die_with_parent

LIMITS_OF_CORES = ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")


def main() -> None:
    parent, processes, device = sys.argv[1:]
    die_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in LIMITS_OF_CORES:  # each member would take one core, or all of them
        os.environ.setdefault(name, str(max(1, (os.cpu_count() or 1) // int(processes))))
    from torch.distributed.run import main as launch

    here = ["--standalone", "--local-addr", "127.0.0.1"]  # this host's own name may lead nowhere
    member = ["-m", "winnow_trainer.member", str(os.getpid()), device]
    launch([*here, "--nproc-per-node", processes, *member])


if __name__ == "__main__":
    main()
