"""What the requirements files pin."""

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\\n]+)(?: *; *([^\\\n]+?))? *\\?$", re.M)


def canonical(name: str) -> str:
    """A package's name as indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins_of(file: Path) -> dict[str, set[str]]:
    """Versions by package; several where they differ by Python or platform."""
    found: dict[str, set[str]] = {}
    for name, version, _ in _PIN.findall(file.read_text()):
        found.setdefault(canonical(name), set()).add(version)
    return found


def all_pins() -> dict[str, set[str]]:
    """The same over all requirements files."""
    found: dict[str, set[str]] = {}
    for file in sorted(HERE.glob("*.txt")):
        for name, versions in pins_of(file).items():
            found.setdefault(name, set()).update(versions)
    return found
