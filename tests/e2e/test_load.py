"""benchmarks/load.py runs from the filling to the report; how fast it all is, it says by itself and nobody asserts."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = "--samples 2000 --experiments 45 --rounds 3 --picks 500 --repeats 2 --minutes 0.05 --rate 20 --streams 4"


def test_the_load_benchmark_reports(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)  # Postgres runs as another user where this one is root
    command = [sys.executable, str(ROOT / "benchmarks" / "load.py"), *TINY.split(), "--folder", str(tmp_path)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WINNOW_")}
    ran = subprocess.run(command, env=inherited, capture_output=True, text=True, timeout=400, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    said = ran.stdout
    assert re.search(r"500 picks inserted: \d", said)
    for name in ("experiments", "samples", "samples of a role"):
        assert re.search(rf"pages of {name}: first .* ratio \d", said)
    assert re.search(r"cost of the mix: \d", said)
    counted = re.search(r"^all +(\d+)", said, re.M)
    assert counted and int(counted[1]) > 20, said
    assert "errors: none" in said and "0 streams broken" in said, said
    assert re.search(r"events: \d+ live", said) and re.search(r"memory: .* MiB a minute", said), said
    assert not list(tmp_path.iterdir()), "leaves nothing behind"
