"""Attack both services, the readers of files and the store for as long as you like; print what was tried and found.

    python benchmarks/fuzzing.py --scale 10 --seed 7

It runs tests/fuzz, where one is the suite's share: a few minutes. Above one, the boundary values of the
large requests are tried too, some 2,000 cases that take minutes. Another seed tries other cases; a finding is shown
as the case that shows it, and the same seed and scale find it again. Needs what `make setup` installs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "report.jsonl"
        lines.touch()
        began = time.monotonic()
        code = run(options, lines)
        show([json.loads(line) for line in lines.read_text().splitlines()], time.monotonic() - began)
    sys.exit(code)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=4.0, help="times as many cases as the suite tries")
    parser.add_argument("--seed", type=int, default=1, help="other cases; 0 tries the suite's own again")
    parser.add_argument("--only", choices=("services", "readers", "bombs", "life"), help="one part alone")
    return parser.parse_args()


def run(options: argparse.Namespace, lines: Path) -> int:
    """pytest's exit code."""
    effort = {"WINNOW_FUZZ_SCALE": options.scale, "WINNOW_FUZZ_SEED": options.seed, "WINNOW_FUZZ_REPORT": lines}
    place = ROOT / "tests" / "fuzz"
    what = place / f"test_{options.only}.py" if options.only else place
    # pytest's own limit of time for one test is the suite's
    command = [sys.executable, "-m", "pytest", "-q", str(what), "--timeout=0", f"--hypothesis-seed={options.seed}"]
    environment = os.environ | {name: str(value) for name, value in effort.items()}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def show(rows: list[dict[str, object]], seconds: float) -> None:
    """A table in Markdown."""
    print("\n| what | cases | more |\n|---|---|---|")
    for row in rows:
        more = ", ".join(f"{value} {name}" for name, value in row.items() if name not in ("name", "cases"))
        print(f"| {row['name']} | {row['cases']} | {more} |")
    print(f"\n{sum(int(str(row['cases'])) for row in rows)} cases in {seconds:.0f} s")


if __name__ == "__main__":
    main()
