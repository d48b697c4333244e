"""`make check` without a network, with an advisory, with a package that is not the pinned one; and the licence list."""

import json
import subprocess
from pathlib import Path
from typing import Any

import audit
import licences
import pytest
from pins import HERE, all_pins, pins_of

DEV = HERE / "dev.txt"


def answering(**by_service: Any) -> audit.Ask:
    """What pip-audit 2.10 prints, by service: a list of packages as JSON, or nothing but a traceback."""

    def ask(service: str, file: Path) -> subprocess.CompletedProcess[str]:
        packages = by_service[service]
        if packages is None:
            return subprocess.CompletedProcess([], 1, "", "Traceback\nrequests.exceptions.ConnectionError: no route\n")
        return subprocess.CompletedProcess([], 0, json.dumps({"dependencies": packages, "fixes": []}), "")

    return ask


UNKNOWN = [{"name": "a", "skip_reason": "Dependency not found on PyPI and could not be audited: a (1)"}]
CLEAN = [{"name": "a", "version": "1", "vulns": []}]
BAD = [{"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"], "aliases": []}]}, *UNKNOWN]


@pytest.mark.parametrize("pypi", [None, UNKNOWN])
def test_where_no_advisory_can_be_had_that_is_said_and_is_no_failure(pypi: Any) -> None:
    report = audit.advisories(DEV, answering(pypi=pypi, osv=None))
    assert not report.is_bad
    assert "NOT CHECKED" in report.lines[0] and "requests.exceptions.ConnectionError" in report.lines[0]


def test_a_database_that_answers_is_believed() -> None:
    assert audit.advisories(DEV, answering(pypi=CLEAN)).lines == ["advisories: 0 about 1 packages, by pypi"]
    report = audit.advisories(DEV, answering(pypi=None, osv=BAD))
    assert report.is_bad and report.lines[0] == "a 1: PYSEC-1, mended in 2"
    assert report.lines[1] == "advisories: 1 about 1 packages, by osv, 1 it does not know: a"


def test_the_tool_itself_says_so_behind_a_dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    report = audit.advisories(DEV, audit.ask)
    assert not report.is_bad and "NOT CHECKED" in report.lines[0] and "ProxyError" in report.lines[0]


def test_what_is_not_the_pinned_version_is_told() -> None:
    pinned = {"a": {"1", "2"}, "torch": {"3"}}
    there = [("a", "2"), ("b", "9"), ("torch", "3.1+cpu")]
    assert audit.differences(pinned, there) == []
    (told,) = audit.differences(pinned, [("a", "3")])
    assert told.startswith("a 3 is installed, 1 or 2 is pinned")
    assert audit.installed()


def test_every_pinned_package_stands_in_the_licence_list_with_its_version() -> None:
    listed = {name: (versions, licence) for name, versions, licence, _ in licences.rows(licences.PAGE.read_text())}
    assert {name: ", ".join(sorted(versions)) for name, versions in all_pins().items()} == {
        name: versions for name, (versions, _) in listed.items()
    }
    assert len(pins_of(DEV)) > 100 and all(licence for _, licence in listed.values())


def test_no_image_holds_what_asks_for_more_than_its_notice() -> None:
    """Strong copyleft would bind whoever passes an image on; psycopg's LGPL is that of a library, used as one."""
    page = licences.rows(licences.PAGE.read_text())
    strong = [name for name, _, licence, images in page if images and "GPL" in licence and "LGPL" not in licence]
    assert strong == []
