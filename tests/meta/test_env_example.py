""".env.example names every setting with its default, and all that docker-compose.yml asks for."""

import os
import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from winnow.settings import SECRETS, Settings

ROOT = Path(__file__).parents[2]
LINES = re.findall(r"^#?([A-Z][A-Z0-9_]*)=(.*)$", (ROOT / ".env.example").read_text(), re.M)
COMPOSE = (ROOT / "docker-compose.yml").read_text().replace("$$", "")


def test_it_names_every_setting_once_and_nothing_else() -> None:
    named = sorted(name for name, _ in LINES if name.startswith("WINNOW_"))
    fields = [field.upper() for field in Settings.model_fields]
    assert named == sorted(f"WINNOW_{name}" for name in [*fields, *(f"{one.upper()}_FILE" for one in SECRETS)])


def test_what_it_says_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WINNOW_")]:
        monkeypatch.delenv(name)
    defaults = Settings()
    for name, value in LINES:
        monkeypatch.setenv(name, value)
    assert Settings() == defaults


def test_every_secret_may_come_from_a_file() -> None:
    secret = {name for name, field in Settings.model_fields.items() if field.annotation is SecretStr or not field.repr}
    assert secret == set(SECRETS)


def test_it_holds_no_secret() -> None:
    secret = {f"WINNOW_{name.upper()}{suffix}" for name in SECRETS for suffix in ("", "_FILE")}
    filled = [name for name, value in LINES if (name in secret or "PASSWORD" in name) and value]
    assert not filled, "whoever copies the file would run with these"


def test_compose_asks_for_nothing_it_does_not_name() -> None:
    asked = set(re.findall(r"\$\{?(\w+)", COMPOSE))
    assert asked
    assert asked <= {name for name, _ in LINES}
