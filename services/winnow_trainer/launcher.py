"""`python -m winnow_trainer.launcher PARENT PROCESSES DEVICE`: torch's launcher around a team that shares each round.

The team is this process's children; the supervisor talks to its leader through the standard streams, which the
launcher hands down. When one of them dies, the launcher ends the others and itself, and the round is tried again.
"""

import os
import signal
import sys

from winnow.confinement import describe_end, die_with_parent

MOST_COMPILERS = 32  # as torch itself has it


def main() -> None:
    parent, processes, device = sys.argv[1:]
    die_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    share = max(1, cores // int(processes))  # each would take one core for sums, and all of them for compiling
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(min(share, MOST_COMPILERS)))
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as launch

    here = ["--standalone", "--local-addr", "127.0.0.1"]  # this host's own name may lead nowhere
    member = ["-m", "winnow_trainer.member", str(os.getpid()), device]
    try:
        launch([*here, "--nproc-per-node", processes, *member])
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        sys.exit(f"process {rank} of {processes} ended first, with {describe_end(first.exitcode)}")


if __name__ == "__main__":
    main()
