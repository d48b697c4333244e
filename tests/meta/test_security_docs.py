"""docs/security.md: every protection in the table names tests that are there."""

import ast
import re

import pytest
from meta.test_tree import ROOT

TEXT = (ROOT / "docs" / "security.md").read_text()
TABLE = re.search(r"^\| who \| may \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", TEXT, re.M)
assert TABLE, "docs/security.md has no table who | may"
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE[1].splitlines()]
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", TEXT)))


def test_every_row_is_shown_by_a_test() -> None:
    assert len(ROWS) > 20
    assert [row[0] for row in ROWS if len(row) != 4 or not re.fullmatch(r"(`[\w/]+\.py::\w+` ?)+", row[3])] == []


@pytest.mark.parametrize(("file", "test"), NAMED, ids=[f"{file}::{test}" for file, test in NAMED])
def test_each_named_test_exists(file: str, test: str) -> None:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_what_it_says_of_settings_is_so() -> None:
    example = (ROOT / ".env.example").read_text()
    for name in re.findall(r"WINNOW_[A-Z_]*[A-Z]", TEXT):
        assert re.search(rf"^#?{name}=", example, re.M), f"{name} is no setting"
