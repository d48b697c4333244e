"""Every operation of both services, with every key: no 5xx, no answer that the description does not know."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz.campaign import Caller, Outcome, attack
from fuzz.scale import SCALE, report
from fuzz.stage import TOKEN, Stage, staged

LARGE = ("POST /api/v1/datasets", "POST /api/v1/experiments", "POST /v1/selections", "POST /v1/comparisons")
"""Their boundary values take minutes, and are tried where the scale is more than the suite's."""
COVERED = LARGE if SCALE <= 1 else ()
QUICK = ("fuzzing", "stateful")


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Bound off loopback: keys are needed. On SQLite."""
    folder = tmp_path_factory.mktemp("outside")
    with staged(folder, f"sqlite:///{folder / 'winnow.sqlite3'}", outside=True) as stage:
        yield stage


def require_sound(outcome: Outcome, name: str) -> None:
    figures = {"operations": outcome.operations, "unanswered": outcome.unanswered, "findings": len(outcome.findings)}
    report(name, cases=outcome.cases, **figures)
    shown = "\n".join(f"{check} {label}: {told}" for (check, label), told in outcome.findings.items())
    assert not outcome.findings, shown
    assert outcome.cases > outcome.operations > 10, outcome.statuses


def test_the_coordinator_with_an_admins_key(outside: Stage) -> None:
    caller = Caller("admin", "admin", outside.keys["admin"])
    outcome = attack(
        outside.coordinator, caller, examples=4, ids=outside.ids, own_ids=outside.own_ids, covered_elsewhere=COVERED
    )
    require_sound(outcome, "coordinator, key with scope admin")


@pytest.mark.parametrize("scope", ["read", "run"])
def test_the_coordinator_with_a_lesser_key(outside: Stage, scope: str) -> None:
    caller = Caller(scope, scope, outside.keys[scope])
    outcome = attack(outside.coordinator, caller, examples=2, ids=outside.ids, own_ids=outside.own_ids, phases=QUICK)
    require_sound(outcome, f"coordinator, key with scope {scope}")
    forbidden = {label for label, status in outcome.statuses if status == 403}
    assert {"GET /api/v1/keys", "POST /api/v1/keys"} <= forbidden
    assert ("POST /api/v1/experiments" in forbidden) == (scope == "read")


@pytest.mark.parametrize("key", ["", "wnw_wrong"])
def test_the_coordinator_without_a_key(outside: Stage, key: str) -> None:
    caller = Caller("stranger", "", key)
    outcome = attack(outside.coordinator, caller, examples=2, ids=outside.ids, own_ids=set(), phases=("fuzzing",))
    require_sound(outcome, f"coordinator, {'a wrong' if key else 'no'} key")
    taken = {label for label, status in outcome.statuses if status < 400}
    assert taken == {"GET /healthz", "GET /readyz", "GET /metrics"}


def test_the_coordinator_on_loopback_and_postgres(postgres_url: str, tmp_path: Path) -> None:
    with staged(tmp_path, postgres_url, outside=False) as stage:
        caller = Caller("local", "admin")
        outcome = attack(
            stage.coordinator, caller, examples=4, ids=stage.ids, own_ids=set(), phases=("examples", *QUICK)
        )
    require_sound(outcome, "coordinator on Postgres, loopback, no key")
    assert not outcome.unanswered


def test_the_sampler_with_its_token(outside: Stage) -> None:
    caller = Caller("coordinator", "admin", TOKEN)
    outcome = attack(outside.sampler, caller, examples=6, ids=["a" * 64], own_ids=set(), covered_elsewhere=COVERED)
    require_sound(outcome, "sampler, its token")


@pytest.mark.parametrize("key", ["", "wrong"])
def test_the_sampler_without_its_token(outside: Stage, key: str) -> None:
    outcome = attack(outside.sampler, Caller("stranger", "", key), examples=2, ids=["a"], own_ids=set(), phases=QUICK)
    require_sound(outcome, f"sampler, {'a wrong' if key else 'no'} token")
    taken = {label for label, status in outcome.statuses if status < 400}
    assert taken == {"GET /healthz", "GET /readyz", "GET /metrics"}
