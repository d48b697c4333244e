"""`winnow demo` on a folder of one's own patches: what it ends with, what it survives, and that it goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from cluster import QUICK
from conftest import wait_until
from e2e.conftest import winnow
from PIL import Image

from winnow.datasets import synthetic
from winnow.domain import SyntheticTissue

SPEC = """
name: tiny
arms: [random, full]
budget: 8
rounds: 1
candidates: 16
simclr: {epochs: 1, batch_size: 8}
proxy: {task: classes, epochs: 3, full_epochs: 3}
"""


def write_patches(folder: Path) -> None:
    """Synthetic tissue in the two folders of a split, one of them with a file that is no patch."""
    tissue = SyntheticTissue(patches=72, slides=2)
    labels, _ = synthetic.layout(tissue)
    for number, label in enumerate(labels):
        place = folder / ("train", "val", "test", "train")[number % 4] / label / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(synthetic.draw(tissue, number, 32)).save(place)
    (folder / "train" / labels[0] / "README.txt").write_text("stained in May")


def test_a_demo_on_ones_own_patches(tmp_path: Path) -> None:
    write_patches(tmp_path / "tissue")
    (tmp_path / "spec.yaml").write_text(SPEC)
    command = [sys.executable, "-m", "winnow_cli.main", "demo", "--data", "tissue", "--spec", "spec.yaml"]
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **QUICK}, stdout=out, stderr=err)
    out, err = tmp_path / "out", tmp_path / "err"
    try:
        wait_until(lambda: " classes" in out.read_text() or process.poll() is not None, 180, "the patches to be in")
        record = json.loads((tmp_path / "winnow-demo" / "state" / "stack.json").read_text())
        os.kill(record["services"]["coordinator"]["pid"], signal.SIGKILL)
        assert process.wait(300) == 0, err.read_text() + out.read_text()
    finally:
        process.kill()
    said, asides = out.read_text(), err.read_text()
    assert "coordinator started again" in asides, "it watches while it waits"
    assert "test means test, train means pool, val means validation" in asides
    assert "README.txt: not a PNG" in asides
    for wanted in ("tiny-random", "tiny-full", "completed", "floor: colour histogram", "floor: untrained encoder"):
        assert wanted in said, "the table lacks it"
    with Image.open(tmp_path / "winnow-demo" / "compare.png") as picture:
        assert picture.width > 1000
    report = json.loads((tmp_path / "winnow-demo" / "report.json").read_text())
    require_structure(report)

    again = winnow("demo", "--data", "tissue", "--spec", "spec.yaml", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)["experiments"]
    assert [one["id"] for one in found] == [one["id"] for one in report["experiments"]], "found again, not begun anew"


def require_structure(report: dict) -> None:
    """experiments → rounds → samples, visits, seconds, metrics."""
    assert {"winnow", "created_at", "notes", "experiments"} <= set(report)
    for experiment in report["experiments"]:
        assert (experiment["dataset"], experiment["status"]) == ("tissue", "completed")
        assert set(experiment["floors"]) == {"colour_histogram", "untrained_encoder"}
        (row,) = experiment["rounds"]
        assert row["samples"] == row["visits"] == (8 if experiment["arm"] == "random" else 32)
        assert {"load", "train", "embed", "proxy", "evaluate"} <= set(row["seconds"])
        assert row["total_seconds"] > 0
        assert 0 <= row["metrics"]["macro_f1"] <= 1
