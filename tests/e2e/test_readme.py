"""README's "Use it", as printed: only the folder of patches is another, and nobody waits for the experiments to end."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
from e2e.conftest import Stack, winnow
from PIL import Image

ROOT = Path(__file__).parents[2]
PATCHES = 2400


def commands() -> list[list[str]]:
    """The lines of the section that are commands, without their comments."""
    section = re.search(r"^## Use it\n(.*?)^Everything", (ROOT / "README.md").read_text(), re.M | re.S)
    assert section
    return [shlex.split(line, comments=True) for line in re.findall(r"^    (.+)$", section[1], re.M)]


def write_patches(folder: Path) -> None:
    """Noise in two colours, a folder for each."""
    noise = np.random.default_rng(0)
    for number in range(PATCHES):
        place = folder / ("pink", "blue")[number % 2] / f"{number:04d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        tint = np.array(((230, 150, 180), (150, 150, 230))[number % 2])
        pixels = (tint + noise.integers(-40, 25, (64, 64, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(place, compress_level=1)


def test_use_it_works_as_printed(tmp_path: Path) -> None:
    write_patches(tmp_path / "patches")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (make, *up), activate, add, run, compare, verify, resume, remove, storage, doctor = (
        [word.replace("/path/to/patches", str(tmp_path / "patches")) for word in line] for line in commands()
    )
    assert (make, activate[0]) == ("make", ".")
    dry_run = ["make", "-n", "--no-print-directory", *up]
    shown = subprocess.run(dry_run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    starts = shlex.split(shown.splitlines()[-1])
    assert starts[:2] == [".venv/bin/winnow", "up"]
    stack = Stack(tmp_path / ".winnow", arguments=tuple(starts[2:]))
    stack.state_dir.mkdir()
    stack.start()
    try:
        added = winnow(*add[1:], "--json", cwd=tmp_path)
        assert added.returncode == 0, added.stderr
        counts = json.loads(added.stdout)["counts"]
        assert {role: sum(by_label.values()) for role, by_label in counts.items()} == {
            "pool": PATCHES - 1300,
            "labelled": 300,
            "test": 1000,
        }
        begun = winnow(*run[1:], "--detach", "--json", cwd=tmp_path)
        assert begun.returncode == 0, begun.stdout
        assert [view["arm"] for view in json.loads(begun.stdout)] == ["random", "entropy", "k_center", "full"]
        compared = winnow(*compare[1:], cwd=tmp_path)
        assert compared.returncode == 0 and "small-k_center" in compared.stdout
        id = json.loads(begun.stdout)[2]["id"]
        verified = winnow(*(id if word == "ID" else word for word in verify[1:]), cwd=tmp_path)
        assert verified.returncode == 0, verified.stdout
        assert winnow("pause", id, cwd=tmp_path).returncode == 0
        resumed = winnow(*(id if word == "ID" else word for word in resume[1:]), cwd=tmp_path)
        assert resumed.returncode == 0 and "running" in resumed.stdout, resumed.stderr
        assert winnow("cancel", id, cwd=tmp_path).returncode == 0
        assert winnow("watch", id, cwd=tmp_path).returncode == 0, "until it has ended"
        removed = winnow(*(id if word == "ID" else word for word in remove[1:]), "--yes", cwd=tmp_path)
        assert removed.returncode == 0 and "removed" in removed.stdout, removed.stderr
        held = winnow(*storage[1:], cwd=tmp_path)
        assert held.returncode == 0 and " small " in held.stdout, held.stderr
        examined = winnow(*doctor[1:], "--json", cwd=tmp_path)
        assert examined.returncode == 0, examined.stdout
        states = {finding["what"]: finding["state"] for finding in json.loads(examined.stdout)}
        assert states["sampler"] == states["trainers"] == "ok"
        assert stack.stop() == 0
    finally:
        stack.kill()
