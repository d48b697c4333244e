"""A reader in a process of its own, so that a crash, a hang or a bomb is a finding and not the end of the test."""

import json
import os
import selectors
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CHILD = Path(__file__).with_name("reader_child.py")
MEMORY_MIB = 512
"""What reading one of the small files here may take, beyond the interpreter and its libraries."""
SECONDS = 20.0
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "2",  # an arena of each thread would count as much as a file
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Verdict:
    """`kind` is read, refused, failed, crashed or hung."""

    kind: str
    text: str

    @property
    def is_sound(self) -> bool:
        return self.kind in ("read", "refused")


class Reader:
    """Asks the child; starts another one where it died."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None

    def read(self, reader: str, path: Path) -> Verdict:
        """What becomes of the file in that reader."""
        child = self._child = self._child or self._start()
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(json.dumps([reader, str(path)]) + "\n")
        child.stdin.flush()
        with selectors.DefaultSelector() as waiting:
            waiting.register(child.stdout, selectors.EVENT_READ)
            if not waiting.select(SECONDS):
                self.close()
                return Verdict("hung", f"no answer in {SECONDS:g} s")
        line = child.stdout.readline()
        if not line:
            code = child.wait(60)
            self.close()
            return Verdict("crashed", f"the process ended with {code}")
        return Verdict(*json.loads(line))

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait(60)
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    pipe.close()
            self._child = None

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, str(CHILD), str(MEMORY_MIB)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, **pipes, text=True, env=os.environ | ENVIRONMENT)
