"""Rules about the tree that no linter knows."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST = 400


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def test_no_file_is_too_long_to_read() -> None:
    long = {str(p.relative_to(ROOT)): n for p in tracked("*.py") if (n := len(p.read_text().splitlines())) > LONGEST}
    assert not long, f"split these at their joints: {long}"


def test_no_catch_all_modules() -> None:
    names = {"utils.py", "helpers.py", "common.py", "base.py", "manager.py"}
    assert not [p for p in tracked("*.py") if p.name in names]


def test_requirements_are_hashed_and_name_no_index() -> None:
    for path in tracked("requirements/*.txt"):
        text = path.read_text()
        assert "--hash=sha256:" in text
        assert "://" not in text, f"{path.name} names an address"
