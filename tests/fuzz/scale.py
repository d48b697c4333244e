"""How much is tried: the suite's share, or many times as much where WINNOW_FUZZ_SCALE says so.

The suite tries the same cases each time. WINNOW_FUZZ_SEED gives others, together with pytest's --hypothesis-seed.
"""

import json
import os
from pathlib import Path

from hypothesis import HealthCheck, settings

SCALE = float(os.environ.get("WINNOW_FUZZ_SCALE", "1"))
SEED = int(os.environ.get("WINNOW_FUZZ_SEED", "0"))


def scaled(examples: int) -> int:
    """`examples`, times the scale."""
    return max(1, int(examples * SCALE))


def played(examples: int, **more: object) -> settings:
    """Hypothesis's settings: `examples` times the scale, without a limit of time for each, kept nowhere."""
    return settings(
        max_examples=scaled(examples),
        deadline=None,
        derandomize=not SEED,
        database=None,
        suppress_health_check=list(HealthCheck),
        **more,
    )


def report(name: str, **figures: int) -> None:
    """Add a line to the file that WINNOW_FUZZ_REPORT names."""
    if place := os.environ.get("WINNOW_FUZZ_REPORT"):
        with Path(place).open("a") as lines:
            lines.write(json.dumps({"name": name, **figures}) + "\n")
