"""docs/architecture.md's state table is the transition table of the code."""

import re
from pathlib import Path

from winnow.domain.states import TRANSITIONS, DatasetStatus, ExperimentStatus, RoundStatus

TEXT = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
KINDS = {"dataset": DatasetStatus, "experiment": ExperimentStatus, "round": RoundStatus}


def documented() -> dict[type, dict[str, set[str]]]:
    table = re.search(r"^\| from \| to \| by \|\n\|[-|]+\|\n((?:\|.*\n)+)", TEXT, re.M)
    assert table, "docs/architecture.md has no table from | to | by"
    found: dict[type, dict[str, set[str]]] = {}
    kind = ""
    for row in table[1].splitlines():
        first, targets, _ = (cell.strip() for cell in row.strip("|").split("|"))
        named, status = re.fullmatch(r"(?:\*\*(\w+)\*\* )?(\w+)", first).groups()  # type: ignore[union-attr]
        kind = named or kind
        found.setdefault(KINDS[kind], {})[status] = set(targets.split(", "))
    return found


def test_the_document_and_the_code_agree() -> None:
    coded = {
        kind: {str(status): {str(target) for target in targets} for status, targets in table.items() if targets}
        for kind, table in TRANSITIONS.items()
    }
    assert documented() == coded
