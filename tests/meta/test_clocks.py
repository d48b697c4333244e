"""No program compares the wall clocks of two machines: what decides is the database's clock, or a monotonic one."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
WALL_CLOCKS = {
    *("time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.ctime", "time.clock_gettime"),
    *("datetime.now", "datetime.utcnow", "datetime.today", "datetime.fromtimestamp"),  # of datetime and date alike
    *("st_mtime", "st_mtime_ns", "st_ctime", "st_ctime_ns", "st_atime", "st_atime_ns", "st_birthtime"),
    *("getmtime", "getctime", "getatime"),
}
ALLOWED = {
    "shared/winnow/store/tables.py": "an id begins with the time it was made: lists are in that order, nothing else",
    "shared/winnow/artefacts.py": "a file's stamp is compared with itself, to see that the file has changed",
    "shared/winnow/datasets/packing.py": "the same",
    "shared/winnow/datasets/decode.py": "the same",
    "services/winnow_sampler/digests.py": "the same",
    "shared/winnow/datasets/cache.py": "which copy goes first, on this machine's own disk and by its own stamps",
    "services/winnow_sampler/uploads.py": "which upload goes first",
    "services/winnow_cli/report.py": "a report says when it was written",
}
"""Where a wall clock is read, and why no harm can come of a wrong one."""


def readings(path: Path) -> set[str]:
    """The wall clocks that a module reads, by name."""
    tree = ast.parse(path.read_text())
    dotted = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    last = {name.rpartition(".")[2] for name in dotted}
    last |= {f"datetime.{name.rpartition('.')[2]}" for name in dotted if re.search(r"\b(datetime|date)\.\w+$", name)}
    imported = {
        f"{node.module}.{name.name}" if node.module == "time" else name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    return (dotted | last | imported) & WALL_CLOCKS


def modules() -> list[Path]:
    return sorted(path for folder in ("shared", "services", "migrations") for path in (ROOT / folder).rglob("*.py"))


def test_wall_clocks_are_read_only_where_no_harm_can_come_of_it() -> None:
    found = {str(path.relative_to(ROOT)): clocks for path in modules() if (clocks := readings(path))}
    assert set(found) <= set(ALLOWED), f"decide by store.now() or time.monotonic(), or say here why not: {found}"
    assert set(ALLOWED) <= set(found), "these read no wall clock any more"


def test_the_databases_clock_is_asked_in_one_place() -> None:
    words = re.compile(r"clock_timestamp|julianday|CURRENT_TIMESTAMP|func\.now", re.I)
    assert [path.name for path in modules() if words.search(path.read_text())] == ["engine.py"]


def test_the_check_sees_what_it_looks_for(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    for text, seen in (
        ("import time\ntime.time()", "time.time"),
        ("from time import time", "time.time"),
        ("import datetime\ndatetime.datetime.now()", "datetime.now"),
        ("p.stat().st_mtime", "st_mtime"),
        ("import os\nos.path.getmtime('x')", "getmtime"),
    ):
        module.write_text(text)
        assert readings(module) == {seen}
    module.write_text("import time\ntime.monotonic()\ntime.perf_counter()")
    assert not readings(module)
