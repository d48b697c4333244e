"""Where WINNOW_FAILPOINT makes a process end, and where not."""

import subprocess
import sys
from pathlib import Path

import pytest

from winnow import failpoints
from winnow.failpoints import EXIT_CODE, Failpoint

PROGRAM = """
import atexit, sys
from winnow import failpoints
from winnow.failpoints import Failpoint, reach
atexit.register(print, "a handler ran", flush=True)
failpoints.arm(sys.argv[1])
try:
    for step in range(1, 4):
        print("step", step, flush=True)
        reach(Failpoint.SHARD_STORED)
        reach(Failpoint.SHARD_KEPT)
finally:
    print("finally", flush=True)
"""


def run(words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, words], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(("words", "steps"), [("shard.kept", 1), ("shard.stored:1", 1), ("shard.stored:3", 3)])
def test_a_process_ends_at_the_step_and_nothing_of_it_runs_any_more(words: str, steps: int) -> None:
    ended = run(words)
    assert ended.returncode == EXIT_CODE
    assert ended.stdout.splitlines() == [f"step {n}" for n in range(1, steps + 1)]
    assert f"failpoint {words.partition(':')[0]} reached" in ended.stderr


@pytest.mark.parametrize("words", ["", "pack.finished", "shard.stored:4"])
def test_a_process_that_does_not_get_there_goes_on(words: str) -> None:
    ended = run(words)
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "a handler ran")


def test_a_file_in_a_folder_arms_a_step_once(tmp_path: Path) -> None:
    (tmp_path / "shard.kept").write_text("2\n")
    first, second = run(str(tmp_path)), run(str(tmp_path))
    assert (first.returncode, first.stdout.splitlines()) == (EXIT_CODE, ["step 1", "step 2"])
    assert second.returncode == 0
    (hit,) = tmp_path.iterdir()
    name, pid, end = hit.name.rsplit(".", 2)
    assert (name, end) == ("shard.kept", "hit")
    assert f"process {pid} ends here" in first.stderr


@pytest.mark.parametrize("words", ["shard", "shard.stored:0", "shard.stored:x", "relative/folder"])
def test_a_step_that_there_is_not_is_refused(words: str) -> None:
    with pytest.raises(ValueError, match=r"docs/durability\.md"):
        failpoints.parse(words)


def test_unset_no_step_does_anything() -> None:
    for point in Failpoint:
        failpoints.reach(point)
