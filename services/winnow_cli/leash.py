"""`python -m winnow_cli.leash MODULE`: run a service that ends, in order, when whoever started it is gone.

Its standard input is a pipe that nobody writes to. The pipe closes when the starter dies, however it dies, and so no
service outlives its stack. (PR_SET_PDEATHSIG does the same on Linux alone.)
"""

import os
import runpy
import signal
import sys
import threading


def main() -> None:
    module = sys.argv[1]
    sys.argv = [module]
    threading.Thread(target=_wait_for_the_end, name="leash", daemon=True).start()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _wait_for_the_end() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
