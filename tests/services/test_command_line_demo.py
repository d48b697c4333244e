"""`winnow demo`: what it refuses before anything is started."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from services.conftest import Winnow

SPEC = "{name: s, arms: [random], budget: %d, rounds: %d, candidates: all, proxy: {task: classes}}"


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """75 patches without splits: 15 are held out, 8 labelled, 52 the pool."""
    for number in range(75):
        path = tmp_path / "few" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(path)
    return tmp_path / "few"


@pytest.mark.parametrize(
    ("budget", "rounds", "said"),
    [
        (200, 5, "s-random: budget: 5 rounds of 200 need 1000 pool samples; few has 52. Lower it to 10 or less"),
        (200, 50, "s-random: budget: 50 rounds of 200 need 10000 pool samples; few has 52. Lower both"),
        (20, 5, "s-random: rounds: 5 rounds of 20 need 100 pool samples; few has 52. At most 2 rounds fit"),
    ],
)
def test_a_pool_too_small_is_told_before_anything_starts(
    winnow: Winnow, few: Path, budget: int, rounds: int, said: str
) -> None:
    Path("s.yaml").write_text(SPEC % (budget, rounds))
    refused = winnow("demo", "--data", str(few), "--spec", "s.yaml")
    assert refused.code == 1 and f"error: s.yaml: {said}\n" in refused.err
    assert "starting" not in refused.err and not Path("winnow-demo").exists()


def test_the_demos_own_spec_is_held_against_the_pool_too(winnow: Winnow, few: Path) -> None:
    refused = winnow("demo", "--data", str(few))
    assert "error: the demo's spec: demo-random: budget: 5 rounds of 100 need 500 pool samples; few has" in refused.err


def test_sources_of_a_spec_file_are_looked_through_first(winnow: Winnow, few: Path) -> None:
    Path("d.yaml").write_text(f"{{name: d, sources: [{{kind: folder, path: {few}}}], draws: [{{count: 76}}]}}")
    refused = winnow("demo", "--data", "d.yaml")
    assert "error: draws.0.count: asks for 76 of pool" in refused.err and not Path("winnow-demo").exists()
