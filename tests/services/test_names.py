"""Names that cannot be: every way in says in words what a name is made of."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from services.conftest import Winnow, experiment_body, problem

RULE = "a name is made of letters, digits, '.', '_' and '-', beginning with a letter or digit; 64 at most"


@pytest.mark.parametrize("name", ["my patches", "-a", "", "größer", "a\n", "a" * 65])
def test_a_name_that_cannot_be_is_refused_in_words(api: httpx.Client, name: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/datasets": {"sources": [{"kind": "synthetic"}]},
        "/experiments": experiment_body(),
        "/keys": {"scopes": ["read"]},
    }
    for path, body in bodies.items():
        refused = problem(api.post(path, json=body | {"name": name}), 422, "invalid")
        assert (refused["field"], refused["errors"][0]["reason"]) == ("name", RULE)


def test_the_description_still_has_the_pattern(api: httpx.Client) -> None:
    described = api.get(str(api.base_url).replace("/api/v1/", "/openapi.json")).json()
    for model in ("DatasetSpec", "KeyRequest"):
        assert described["components"]["schemas"][model]["properties"]["name"]["pattern"].startswith("^[A-Za-z0-9]")


def test_the_command_line_says_it_as_well(url: str, winnow: Winnow) -> None:
    Path("s.yaml").write_text("{name: my spec, dataset: d}")
    said = (
        winnow("dataset", "add", "my patches", "synthetic", "--no-wait"),
        winnow("run", "s.yaml"),
        winnow("key", "create", "my key", "--scope", "read"),
    )
    assert [(one.code, one.err.endswith(f"name: {RULE}\n")) for one in said] == [(1, True)] * 3
