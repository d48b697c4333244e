"""What a selection's memory is estimated at, beside what it takes: at several sizes, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from winnow.selection import strategies
from winnow_sampler.memory import GIB, OVERHEAD, Size, budget_of, estimate, there_is

SMALL, ROWS, WIDE = Size(3000, 32, 9, 20, 50), Size(8000, 32, 9, 20, 50), Size(3000, 256, 9, 600, 200)
MORE = Size(24_000, 32, 9, 20, 50)
MARGIN = 4 << 20
"""Of a measurement: pages that an allocator keeps."""


def take(strategy: str, *sizes: Size) -> dict[Size, int]:
    """What `strategy` takes at each size, in bytes."""
    words = [f"{size.n},{size.d},{size.m},{size.b}" for size in sizes]
    command = [sys.executable, str(Path(__file__).with_name("memory_of.py")), strategy, *words]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(zip(sizes, map(int, said.split()), strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_ranking_of_all_rows_is_foreseen() -> None:
    small, large = (Size(rows, 1, 9, 1, rows) for rows in (300_000, 900_000))
    taken = take("entropy", small, large)
    grown, foreseen = taken[large] - taken[small], estimate("entropy", large) - estimate("entropy", small)
    assert foreseen / 3 < grown < foreseen + MARGIN


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("kind", ["selection", "selection-with-origins", "comparison"])
def test_the_picks_of_an_answer_are_foreseen(kind: str) -> None:
    script = Path(__file__).with_name("memory_of_answers.py")
    command = [sys.executable, str(script), kind, "20000", "120000"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (less, foreseen_less), (more, foreseen_more) = (map(int, line.split()) for line in said.splitlines())
    grown, foreseen = more - less, foreseen_more - foreseen_less
    assert foreseen / 4 < grown < foreseen + MARGIN, (grown, foreseen)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("strategy", [*strategies(), "near_duplicates", "measures"])
def test_estimates_are_above_what_is_taken_and_grow_as_it_does(strategy: str) -> None:
    sizes = (SMALL, ROWS, WIDE, MORE)
    taken = take(strategy, *sizes)
    guessed = {size: estimate(strategy, size) for size in sizes}
    assert all(taken[size] < guessed[size] for size in sizes), (taken, guessed)
    grown, foreseen = taken[MORE] - taken[ROWS], guessed[MORE] - guessed[ROWS]
    assert grown < foreseen + MARGIN, "blocks of a fixed size are not what makes the estimate hold"
    assert guessed[SMALL] < 2 * OVERHEAD, "a small selection is not refused by a small machine"


def test_the_memory_budget_follows_the_container(tmp_path: Path) -> None:
    limit, none = tmp_path / "memory.max", tmp_path / "unlimited"
    limit.write_text("1048576\n")
    none.write_text("max\n")
    assert there_is((limit,)) == 1 << 20
    assert there_is((none, tmp_path / "missing")) == there_is(()) > 1 << 20
    assert budget_of(2) == 2 * GIB and 0 < budget_of(0) < there_is()
