"""`winnow doctor`: what is missing or misconfigured, and what to do about it."""

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import httpx
import typer
from pydantic import ValidationError

from winnow.client import ApiProblem, Client
from winnow.errors import Unavailable
from winnow.settings import Settings, is_loopback
from winnow_cli.options import DEFAULT_STATE_DIR, AsJson, NoStack, StateDir, Url, connect
from winnow_cli.output import console, plain, print_json, print_table
from winnow_cli.stack import read_record

LEAST_FREE_GB, FULL_GB = 10, 0.5
PACKAGES = {
    **{name: name for name in ("numpy", "faiss", "pyarrow", "torch", "torchvision", "safetensors", "matplotlib")},
    **{name: name for name in ("sqlalchemy", "celery", "redis", "fastapi")},
    **{"pillow": "PIL", "scikit-learn": "sklearn"},
}
"""By the name it is installed under: the one it is imported by."""
MARKS = {"ok": "[green]ok[/green]", "warn": "[yellow]warn[/yellow]", "fail": "[red]fail[/red]"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `advice` says what to do when it is not ok."""

    what: str
    state: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def doctor(url: Url = None, state_dir: StateDir = None, json: AsJson = False) -> None:
    """Say what is missing or misconfigured. Exit code 1 when something fails."""
    findings = list(examine(url, state_dir))
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table(["", "what", "found"], ([MARKS[one.state], one.what, plain(one.found)] for one in findings))
        for one in findings:
            if one.advice:
                console.print(f"{MARKS[one.state]} {one.what}: {one.advice}", soft_wrap=True)
    if any(one.state == "fail" for one in findings):
        raise typer.Exit(1)


def examine(url: str | None, state_dir: Path | None) -> Iterator[Finding]:
    """Everything that is looked at."""
    yield _python()
    yield from (_package(name, module) for name, module in PACKAGES.items())
    try:
        settings = Settings(state_dir=state_dir or DEFAULT_STATE_DIR)
    except ValidationError as error:
        reasons = "; ".join(f"WINNOW_{'.'.join(map(str, one['loc'])).upper()}: {one['msg']}" for one in error.errors())
        yield Finding("settings", "fail", reasons, "correct these variables; .env.example explains each")
        return
    yield _accelerator(settings.device)
    yield from _settings(settings)
    try:
        client = connect(url, state_dir)
    except NoStack as error:  # who looks before the first `up` is not mistaken
        yield Finding("coordinator", "warn", "none", error.reason)
        return
    with client:
        if not client.is_ready():
            found = f"{client.url} does not answer"
            if url:
                yield Finding("coordinator", "fail", found, "is it up, and --url or WINNOW_COORDINATOR_URL right?")
            else:
                yield Finding("coordinator", "warn", found, "`winnow up` starts the embedded stack")
            return
        yield Finding("coordinator", "ok", client.url)
        yield _sampler(_sampler_url(settings, client))
        yield _trainers(client)


def _python() -> Finding:
    version = platform.python_version()
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    advice = "" if fits else "Winnow is tested on Python 3.11 to 3.13: make setup PYTHON=python3.12"
    return Finding("python", "ok" if fits else "warn", f"{version}, {os.cpu_count()} CPUs", advice)


def _package(name: str, imported: str) -> Finding:
    try:
        module = importlib.import_module(imported)
    except ImportError as error:
        return Finding(name, "fail", f"cannot be imported: {error}", "make setup installs everything")
    return Finding(name, "ok", str(getattr(module, "__version__", "installed")))


def _accelerator(wanted: str) -> Finding:
    try:
        import torch
    except ImportError:
        return Finding("GPU", "warn", "unknown without torch", "make setup installs everything")
    if wanted == "cpu":
        return Finding("GPU", "ok", "not wanted: WINNOW_DEVICE=cpu")
    if torch.cuda.is_available():
        return Finding("GPU", "ok", ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))))
    if wanted != "auto":
        found = f"WINNOW_DEVICE={wanted}, and none that torch can use"
        return Finding("GPU", "fail", found, "no trainer starts: set WINNOW_DEVICE to auto or cpu, or mend the driver")
    return Finding("GPU", "warn", "none that torch can use: training runs on the CPU, slowly")


def _settings(settings: Settings) -> Iterable[Finding]:
    if settings.failpoint:
        advice = "unset WINNOW_FAILPOINT unless you test durability"
        yield Finding("failpoint", "warn", f"services die at {settings.failpoint}", advice)
    yield _writable("state directory", settings.state_dir)
    for root in settings.data_roots:
        there = root.is_dir() and os.access(root, os.R_OK | os.X_OK)
        advice = "" if there else "mount it, or correct WINNOW_DATA_ROOTS"
        yield Finding("data root", "ok" if there else "fail", str(root), advice)
    if not is_loopback(settings.coordinator_host) and not settings.bootstrap_key.get_secret_value():
        host = settings.coordinator_host
        yield Finding("keys", "warn", f"bound to {host}", "set WINNOW_BOOTSTRAP_KEY, or nobody can make the first key")
    yield _attempt("database", lambda: _ping(settings), "is it up, and WINNOW_DATABASE_URL right?")
    yield _attempt("broker", lambda: _ring(settings), "is it up, and WINNOW_BROKER_URL right?")


def _writable(what: str, folder: Path) -> Finding:
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(place, os.W_OK):
        return Finding(what, "fail", f"{folder} is not writable", "change its owner, or set WINNOW_STATE_DIR")
    free = shutil.disk_usage(place).free / 1e9
    if free < LEAST_FREE_GB:
        state: Literal["warn", "fail"] = "fail" if free < FULL_GB else "warn"
        found = f"{folder}, {free:.1f} GB free"
        return Finding(what, state, found, "`winnow storage` shows what takes room, and what can go")
    return Finding(what, "ok", f"{folder}, {free:.0f} GB free")


def _attempt(what: str, act: Callable[[], str], advice: str) -> Finding:
    try:
        return Finding(what, "ok", act())
    except Exception as error:  # whatever a driver raises, the advice is the same
        reason = str(getattr(error, "orig", error)).strip().splitlines()
        return Finding(what, "fail", reason[0] if reason else type(error).__name__, advice)


def _ping(settings: Settings) -> str:
    from sqlalchemy import make_url

    from winnow.store import Database

    if settings.database_url.startswith("sqlite") and not Path(make_url(settings.database_url).database or "").exists():
        return "SQLite; none there yet, `winnow up` makes it"  # nor is its folder made by looking
    database = Database(settings.database_url)
    try:
        database.ping()
    finally:
        database.close()
    return database.engine.url.render_as_string(hide_password=True)


def _ring(settings: Settings) -> str:
    if settings.broker_url.startswith("filesystem"):
        return f"folder {settings.broker_url.removeprefix('filesystem://')}"
    from winnow.queue import make_app

    with make_app(settings).connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, timeout=5)
        return connection.as_uri()


def _trainers(client: Client) -> Finding:
    try:
        alive = list(client.workers())
    except ApiProblem as error:
        return Finding("API key", "fail", str(error), "set WINNOW_API_KEY to a key with scope read, run or admin")
    except Unavailable as error:
        return Finding("coordinator", "fail", str(error), "its log says why")
    if not alive:
        return Finding("trainers", "fail", "none", "rounds wait until one starts; its log says why it does not")
    devices = ", ".join(device["name"] for one in alive for device in one["devices"])
    return Finding("trainers", "ok", f"{len(alive)} alive: {devices}")


def _sampler_url(settings: Settings, client: Client) -> str | None:
    """Where the coordinator's sampler is, as far as that is known here."""
    record = read_record(settings.state_dir)
    if record.get("coordinator_url") == client.url:
        return record.get("sampler_url")
    return settings.sampler_url if "sampler_url" in settings.model_fields_set else None


def _sampler(url: str | None) -> Finding:
    if url is None:
        return Finding(
            "sampler", "warn", "where it is, is not known here", "set WINNOW_SAMPLER_URL to have it looked at"
        )
    try:
        answer = httpx.get(f"{url}/readyz", timeout=5, trust_env=False)
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        return Finding("sampler", "fail", f"{url} does not answer ({reason})", "rounds stay `trained` until it does")
    if answer.is_success:
        return Finding("sampler", "ok", url)
    return Finding("sampler", "fail", f"{url} answers {answer.status_code}: {answer.text}", "its log says more")
