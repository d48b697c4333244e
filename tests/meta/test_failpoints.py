"""The catalogue of failpoints against the code that takes them and the page that tells of them."""

import ast
import re
from pathlib import Path

from winnow.failpoints import Failpoint

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "shared", ROOT / "services")
DOCUMENT = ROOT / "docs" / "durability.md"


def taken() -> list[tuple[str, str]]:
    """(member, module) of every `reach(Failpoint.MEMBER)` in the code."""
    found: list[tuple[str, str]] = []
    for source in SOURCES:
        for path in source.rglob("*.py"):
            module = ".".join(path.relative_to(source).with_suffix("").parts)
            found += [(_member(node), module) for node in ast.walk(ast.parse(path.read_text())) if _is_reach(node)]
    return found


def _is_reach(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "reach"


def _member(node: ast.AST) -> str:
    assert isinstance(node, ast.Call)
    (argument,) = node.args
    assert isinstance(argument, ast.Attribute), f"reach({ast.unparse(argument)}): name the step where it is taken"
    return argument.attr


def test_every_step_is_taken_once_in_the_module_that_its_entry_names() -> None:
    assert sorted(taken()) == sorted((point.name, point.module) for point in Failpoint)


def test_names_say_noun_and_fact() -> None:
    assert not [point for point in Failpoint if point != point.name.lower().replace("_", ".", 1)]
    assert all(point.meaning for point in Failpoint)


def test_the_page_tells_of_every_step_as_the_catalogue_does() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| `([a-z_.]+)` \| (.+) \|$", DOCUMENT.read_text(), re.M)
    assert rows == [(str(point), point.module, point.meaning) for point in Failpoint]
