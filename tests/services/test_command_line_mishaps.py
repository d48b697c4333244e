"""What goes wrong around a command: another stack, a key that is none, nowhere to write to, Ctrl-C."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi import Request, Response
from processes import free_port
from services.conftest import Winnow, add_dataset, experiment_body, serving

from winnow_cli import options
from winnow_coordinator.app import make_app
from winnow_coordinator.context import Coordinator


@pytest.fixture
def port_8000(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A coordinator where one is looked for that nobody named."""
    monkeypatch.delenv("WINNOW_COORDINATOR_URL")
    monkeypatch.setattr(options, "DEFAULT_URL", url)
    return url


@pytest.mark.parametrize("by", ["--state-dir", "WINNOW_STATE_DIR"])
def test_a_state_directory_without_a_stack_means_no_other_one(
    coordinator: Coordinator, port_8000: str, winnow: Winnow, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    add_dataset(coordinator)
    assert "tissue" in winnow("dataset", "list").out, "where nobody names one it is that on port 8000"
    typed = ["--state-dir", "nowhere"] if by == "--state-dir" else []
    if not typed:
        monkeypatch.setenv(by, "nowhere")
    said = winnow("dataset", "remove", "tissue", "--yes", *typed)
    assert said.code == 1 and "--state-dir: no stack was ever up on nowhere; name another one" in said.err
    assert "winnow up --state-dir nowhere starts one" in said.err
    assert "tissue" in winnow("dataset", "list", "--url", port_8000, *typed).out, "and who names a coordinator means it"
    looked = next(one for one in winnow("doctor", "--json", *typed).json if one["what"] == "coordinator")
    assert looked["state"] == "warn" and "no stack was ever up on nowhere" in looked["advice"]
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("by", ["WINNOW_API_KEY", "WINNOW_API_KEY_FILE"])
@pytest.mark.parametrize("key", ["wnw_schlüssel", "wnw_a\nwnw_b"])
def test_what_can_be_no_key_ends_in_one_line(
    winnow: Winnow, monkeypatch: pytest.MonkeyPatch, by: str, key: str
) -> None:
    Path("key").write_text(key)
    monkeypatch.setenv(by, "key" if by.endswith("FILE") else key)
    said = winnow("list", "--url", f"http://127.0.0.1:{free_port()}")
    assert said.code == 1 and said.err.startswith(f"error: {by}: holds a character that no key has")
    assert "wnw_" not in said.err and said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "missed"),
    [
        (["dataset", "remove", "--yes", ""], "no dataset ''"),
        (["dataset", "show", "../experiments"], "no dataset '../experiments'"),
        (["dataset", "show", "tissue/skipped"], "no dataset 'tissue/skipped'"),
        (["dataset", "samples", "tissue?role=pool"], "no dataset 'tissue?role=pool'"),
        (["key", "revoke", ""], "no key ''"),
    ],
)
def test_what_can_be_no_name_is_not_there(
    coordinator: Coordinator, url: str, winnow: Winnow, command: list[str], missed: str
) -> None:
    add_dataset(coordinator)
    said = winnow(*command)
    assert (said.code, said.err) == (1, f"error: {missed}\n")
    assert winnow(*command, "--json").json["code"] == "not-found"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["--version"], ["dataset", "list"], ["dataset", "list", "--json"]])
def test_an_answer_that_cannot_be_written_ends_in_one_line(url: str, command: list[str], unbuffered: str) -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        program = [sys.executable, "-m", "winnow_cli.main", *command]
        ended = subprocess.run(program, check=False, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert (ended.returncode, ended.stderr) == (1, "error: standard output: No space left on device\n")


@contextmanager
def interrupting(coordinator: Coordinator, when: Callable[[Request], bool]) -> Iterator[str]:
    """A coordinator during whose answer somebody presses Ctrl-C."""
    app, main = make_app(coordinator, steward=False), threading.main_thread().ident
    assert main is not None
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background may not have it

    @app.middleware("http")
    async def interrupt(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        if when(request):
            signal.pthread_kill(main, signal.SIGINT)
        return await go_on(request)

    try:
        with serving(app) as url:
            yield url
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (0, "stopped; nothing was begun, but perhaps e-0: winnow list shows it"),
        (1, "stopped; begun, and going on: e-0; perhaps e-1, too: winnow list shows it"),
    ],
)
def test_ctrl_c_while_experiments_are_begun_says_which(
    coordinator: Coordinator, winnow: Winnow, at: int, said: str
) -> None:
    add_dataset(coordinator)
    begun = itertools.count()
    Path("spec.json").write_text(json.dumps(experiment_body(seeds=[0, 1])))
    with interrupting(coordinator, lambda request: request.method == "POST" and next(begun) == at) as url:
        stopped = winnow("run", "spec.json", "--url", url)
    assert stopped.code == 130 and said in stopped.err


def test_ctrl_c_leaves_an_export_that_says_it_is_incomplete(
    coordinator: Coordinator, winnow: Winnow, run_through: Callable[..., str]
) -> None:
    add_dataset(coordinator)
    id = run_through()
    with interrupting(coordinator, lambda request: "/artefacts/" in request.url.path) as url:
        stopped = winnow("export", id, "--to", "out", "--url", url)
    assert stopped.code == 130 and "out is incomplete; the same command again completes it" in stopped.err
    assert not Path("out/experiment.json").exists()
    assert winnow("export", id, "--to", "out").code == 0
    assert not list(Path("out").glob("incomplete-*"))


def test_ctrl_c_before_a_command_has_begun_says_so() -> None:
    stop = "class Stop:\n    def find_spec(name, *_):\n        if name == 'MODULE': raise KeyboardInterrupt\n"
    for module in ("typer", "winnow_cli.catalogue"):
        code = f"{stop}import sys; sys.meta_path.insert(0, Stop); import winnow_cli.main".replace("MODULE", module)
        ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (130, "stopped; nothing was begun\n")
