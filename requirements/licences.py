"""Write docs/licences.md: every pinned package with the licence that its own metadata names.

A package that is not installed here (another platform's, the benchmarks') keeps the line it has; without one it has to
be installed once: `make setup`, `make bench`, or into a folder on PYTHONPATH.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

from pins import HERE, all_pins, pins_of

PAGE = HERE.parent / "docs" / "licences.md"
UNNAMED = "not named in its metadata"
IMAGES = ("coordinator", "sampler", "trainer")
HEAD = """# Licences

What Winnow is built on, by the requirements files; `python requirements/licences.py` writes this page. Winnow itself is
under Apache-2.0. In an image: the package is part of that container image; else it is for development, or for the stack
without containers.

| package | version | licence | in an image |
|---|---|---|---|
"""
_ROW = re.compile(r"^\| (\S+) \| ([^|]+) \| ([^|]+) \| ([^|]*) \|$", re.M)


def main() -> None:
    known = {name: licence for name, _, licence, _ in rows(PAGE.read_text())} if PAGE.exists() else {}
    lines, missing = [], []
    for name, versions in sorted(all_pins().items()):
        licence = _installed(name) or known.get(name)
        if licence is None:
            missing.append(name)
            continue
        lines.append(f"| {name} | {', '.join(sorted(versions))} | {licence} | {_images_with(name)} |\n")
    if missing:
        sys.exit(f"no metadata here of {', '.join(missing)}; install them once, and run this again")
    PAGE.write_text(HEAD + "".join(lines))


def rows(page: str) -> list[tuple[str, str, str, str]]:
    """Package, versions, licence and images of every line of the page."""
    return _ROW.findall(page.removeprefix(HEAD))


def _installed(name: str) -> str | None:
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    if expression := about.get("License-Expression"):
        return expression
    classified = [one.split(" :: ")[-1] for one in about.get_all("Classifier") or [] if one.startswith("License :: ")]
    named = [one for one in classified if one != "OSI Approved"]
    text = (about.get("License") or "").strip().splitlines()
    if text and len(text[0]) <= 60 and (not named or len(text) == 1):
        return text[0]
    return ", ".join(named) or UNNAMED


def _images_with(name: str) -> str:
    return ", ".join(image for image in IMAGES if name in pins_of(Path(HERE / f"{image}.txt")))


if __name__ == "__main__":
    main()
