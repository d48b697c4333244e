"""Hold what is installed against what is pinned, and what is pinned against the advisories that are known.

The first needs no network. The second asks an advisory database through pip-audit; where none can be reached that is
said, and is no failure. Exit code 1: a package differs from its pin, or has an advisory.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from pins import HERE, canonical, pins_of

OWN = "winnow"
ONES_OWN = ("torch", "torchvision")
"""`make setup TORCH=DIR` installs builds of these from a folder."""
SERVICES = ("pypi", "osv")
Json = dict[str, Any]
Ask = Callable[[str, Path], subprocess.CompletedProcess[str]]


class Unreachable(Exception):
    """No advisory came back. The text says why."""


def main() -> int:
    strays = differences(pins_of(HERE / "dev.txt"), installed())
    print(*strays or ["installed: every package is the one that is pinned, by version"], sep="\n")
    found = advisories(HERE / "dev.txt", ask)
    print(*found.lines, sep="\n")
    return 1 if strays or found.is_bad else 0


class Report:
    """What the databases said."""

    def __init__(self, lines: list[str], *, is_bad: bool = False) -> None:
        self.lines, self.is_bad = lines, is_bad


def installed() -> list[tuple[str, str]]:
    """Name and version of every package of this environment."""
    return [(canonical(one.name), one.version) for one in metadata.distributions() if canonical(one.name) != OWN]


def differences(pinned: dict[str, set[str]], there: Iterable[tuple[str, str]]) -> list[str]:
    """What is installed in another version than pinned."""
    found: list[str] = []
    for name, version in sorted(there):
        wanted = pinned.get(name)
        if wanted and version not in wanted and name not in ONES_OWN:
            found.append(f"{name} {version} is installed, {' or '.join(sorted(wanted))} is pinned: make setup")
    return found


def advisories(file: Path, ask: Ask) -> Report:
    """Advisories about the pins of `file`, from the first database that answers about one of them."""
    reasons: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "one.txt"
        one.write_text(_first_pin(file))
        for service in SERVICES:
            try:
                _read(ask(service, one))  # one package, before a hundred are asked about in vain
                return _report(_read(ask(service, file)), service)
            except Unreachable as error:
                reasons.append(f"{service}: {error}")
    what = f"{len(pins_of(file))} pinned packages, all with hashes"
    return Report([f"advisories: NOT CHECKED, no advisory database can be reached ({'; '.join(reasons)}); {what}"])


def ask(service: str, file: Path) -> subprocess.CompletedProcess[str]:
    """Run pip-audit over the pins of `file`. Nothing is downloaded or resolved."""
    if importlib.util.find_spec("pip_audit") is None:
        sys.exit("pip-audit is not installed: make setup")
    flags = ["--require-hashes", "--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--requirement",
        str(file),
        "--vulnerability-service",
        service,
        *flags,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no word is a stranger's


def _read(ended: subprocess.CompletedProcess[str]) -> list[Json]:
    """The packages that were looked up. Raises Unreachable where not one was."""
    try:
        packages: list[Json] = json.loads(ended.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        said = [line for line in ended.stderr.splitlines() if line.strip()]
        raise Unreachable(said[-1].partition(": ")[0] if said else f"exit code {ended.returncode}") from None
    if all("skip_reason" in one for one in packages):  # a mirror without advisories knows none of them
        raise Unreachable("it knows none of the packages")
    return packages


def _report(packages: list[Json], service: str) -> Report:
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    bad = [(one, found) for one in packages for found in one.get("vulns", [])]
    lines = [f"{one['name']} {one['version']}: {found['id']}, mended in {_mended(found)}" for one, found in bad]
    unknown = f", {len(skipped)} it does not know: {', '.join(skipped)}" if skipped else ""
    lines.append(f"advisories: {len(bad)} about {len(packages) - len(skipped)} packages, by {service}{unknown}")
    return Report(lines, is_bad=bool(bad))


def _mended(advisory: Json) -> str:
    return ", ".join(advisory["fix_versions"]) or "no version yet"


def _first_pin(file: Path) -> str:
    """The first pin of `file` with its hashes."""
    lines = file.read_text().splitlines()
    last = next(at for at, line in enumerate(lines) if line and not line.endswith("\\"))
    return "\n".join(lines[: last + 1]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
