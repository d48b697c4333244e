"""Schemathesis against one service with one key: every operation of its OpenAPI description, alone and in sequences.

Beside Schemathesis's own checks (no 5xx, documented statuses, media types, schemas and headers, 405 with Allow, 401
without a key, nothing left of what was deleted) a reply must not go beyond the scope of the key that was sent.
"""

import importlib
import json
import pkgutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import hypothesis.strategies
import schemathesis.engine
import schemathesis.generation
import schemathesis.hooks
import schemathesis.specs.openapi
import schemathesis.transport
from fuzz.scale import SEED, scaled
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema


def load_all(package: ModuleType) -> None:
    """What is loaded late otherwise, in the middle of a campaign: pytest parses it, and before Python 3.11.8 that fails
    when a thread of a service is parsing, too (for a traceback, say).
    """
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(found.name)


for package in (
    schemathesis.engine,
    schemathesis.generation,
    schemathesis.specs.openapi,
    schemathesis.transport,
    hypothesis.strategies,
):
    load_all(package)

SCOPES = ("", "read", "run", "admin")
"""Ascending; the first is that of a caller whom nobody knows."""
REFUSALS = (401, 403, 405, 413, 422)
"""What a caller below the scope may hear: 405 and 413 tell nothing of what is stored, 422 that the body is no JSON."""
PHASES = ("examples", "coverage", "fuzzing", "stateful")


NO_FINDINGS = {("use_after_free", f"GET /v1/{jobs}/{{id}}") for jobs in ("selections", "comparisons")}
"""What Schemathesis takes for a defect and is none: DELETE stops a job, and one that is done stays."""


@dataclass(frozen=True)
class Caller:
    """Who calls: the header it sends, and the highest scope that the service owes it."""

    name: str
    scope: str
    key: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


@dataclass
class Outcome:
    """What was sent and what was found."""

    cases: int = 0
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])
    findings: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])

    @property
    def operations(self) -> int:
        return len({label for label, _ in self.statuses})

    @property
    def unanswered(self) -> int:
        """Replies of 503: on SQLite, somebody waited for ten seconds for the one writer."""
        return sum(count for (_, status), count in self.statuses.items() if status == 503)

    def find(self, check: str, label: str, told: str) -> None:
        self.findings.setdefault((check, label), told)


def needed_scope(method: str, path: str) -> str:
    """The scope that an operation of either service needs; written down here, and not taken from the code."""
    if path in ("/healthz", "/readyz", "/metrics"):
        return ""
    if path.startswith("/v1/") or path.startswith("/api/v1/keys"):
        return "admin"
    return "read" if method.upper() == "GET" else "run"


def attack(
    url: str,
    caller: Caller,
    *,
    examples: int,
    ids: list[str],
    own_ids: set[str],
    phases: tuple[str, ...] = PHASES,
    covered_elsewhere: tuple[str, ...] = (),
) -> Outcome:
    """Run the phases.

    Args:
        examples: of each operation, and of sequences. ids: what some requests name. own_ids: keys that must live.
        covered_elsewhere: operations whose many boundary values another campaign tries.
    """
    schema = schemathesis.openapi.from_url(
        f"{url}/openapi.json", config=_configure(url, caller, examples, ids, phases, covered_elsewhere)
    )

    outcome = Outcome()
    with _sparing(own_ids):
        for event in from_schema(schema).execute():
            if isinstance(event, events.ScenarioFinished):
                _record(outcome, event, caller)
            elif isinstance(event, events.NonFatalError | events.FatalError):
                told = getattr(event, "info", None) or getattr(event, "exception", event)
                outcome.find("engine", str(getattr(event, "label", "")), str(told))
    return outcome


@contextmanager
def _sparing(own_ids: set[str]) -> Iterator[None]:
    """A campaign that revoked its own key would see nothing but 401 from then on."""

    def spare(context: Any, case: Any, kwargs: Any) -> None:
        if (case.path_parameters or {}).get("id") in own_ids:
            case.path_parameters["id"] = "gone"

    schemathesis.hook("before_call")(spare)
    try:
        yield
    finally:
        schemathesis.hooks.unregister(spare)


def _configure(
    url: str, caller: Caller, examples: int, ids: list[str], phases: tuple[str, ...], covered_elsewhere: tuple[str, ...]
) -> SchemathesisConfig:
    often = {"dictionary": "ids", "probability": 0.6}
    named = {f"path.{name}": often for name in ("id", "name")}
    return SchemathesisConfig.from_dict(
        {
            "seed": SEED or 1,
            "base-url": url,
            "headers": caller.headers,
            "continue-on-failure": True,
            "max-stream-events": 1,
            "request-timeout": 60,
            "dictionaries": {"ids": {"values": ids}, "tissue": {"values": ["tissue"]}},
            "parameters": named | {"body.dataset": {"dictionary": "tissue", "probability": 0.8}},
            "generation": {
                "max-examples": scaled(examples),
                "deterministic": not SEED,
                "database": "none",
                "no-shrink": True,
            },
            "phases": {name: {"enabled": name in phases} for name in PHASES},
            # What a spec asks may not fit a dataset that the schema knows nothing of: 422 to valid data is right.
            # 503 is how a database that does not answer in time is told of; how often that was is in the outcome.
            "checks": {
                "positive_data_acceptance": {"enabled": False},
                "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 503]},
            },
            "operations": [
                {"include-name": name, "phases": {"coverage": {"enabled": False}}} for name in covered_elsewhere
            ],
        }
    )


def _record(outcome: Outcome, event: events.ScenarioFinished, caller: Caller) -> None:
    recorder = event.recorder
    for id, node in recorder.cases.items():
        label = node.value.operation.label
        outcome.cases += 1
        interaction = recorder.interactions.get(id)
        if interaction is None or interaction.response is None:
            continue
        response = interaction.response
        outcome.statuses[label, response.status_code] += 1
        for told in _beyond_scope(node.value.operation, interaction.request, response, caller):
            outcome.find("scope", label, told)
    for id, checks in recorder.checks.items():
        for check in checks:
            label = recorder.cases[id].value.operation.label
            if check.failure_info is not None and (check.name, label) not in NO_FINDINGS:
                failure, code = check.failure_info.failure, check.failure_info.code_sample
                outcome.find(check.name, label, f"{failure.message}\n{code}")


def _beyond_scope(operation: Any, request: Any, response: Any, caller: Caller) -> Iterator[str]:
    """What a reply gives to a caller who may not have it."""
    sent = next((value[0] for name, value in request.headers.items() if name.lower() == "authorization"), "")
    scope = caller.scope if sent == caller.headers.get("Authorization", "") else ""
    needed = needed_scope(operation.method, operation.path)
    if SCOPES.index(scope) >= SCOPES.index(needed):
        return
    status = response.status_code
    if status == 404 and json.loads(response.content)["detail"] == "Not Found":
        return  # the path is none of the service's
    if status not in REFUSALS or (status == 422 and b'"body"' not in response.content):
        yield f"scope {scope!r} was answered {status} where {needed!r} is needed: {response.content[:300]!r}"
