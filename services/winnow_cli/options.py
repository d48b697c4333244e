"""What several commands take: options, and the coordinator they mean."""

import os
from pathlib import Path
from typing import Annotated

import typer

from winnow.client import Client
from winnow.errors import InvalidInput
from winnow.secret_files import read_secrets
from winnow_cli.output import note
from winnow_cli.stack import read_record

DEFAULT_STATE_DIR = Path(".winnow")
DEFAULT_URL = "http://127.0.0.1:8000"

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="WINNOW_COORDINATOR_URL",
        help="The coordinator. By default that of the stack in --state-dir; where none was given nor up, on port 8000.",
    ),
]
StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        envvar="WINNOW_STATE_DIR",
        help="Holds everything of the embedded stack.",
        show_default=str(DEFAULT_STATE_DIR),
    ),
]
Profile = Annotated[
    Path | None,
    typer.Option("--profile", help="Each round leaves a torch profiler trace in this folder (Perfetto reads it)."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask first.")]
Id = Annotated[str, typer.Argument(help="The experiment's id or name; `winnow list` shows them.")]
Named = Annotated[
    list[str], typer.Argument(metavar="ID", help="The experiments' ids or names; `winnow list` shows them.")
]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids or names; none given: all.")]
UnderWay = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids or names; none given: those under way.")]


class NoStack(InvalidInput):
    """A state directory that was named holds no record of a stack: none was ever up there."""

    def __init__(self, state_dir: Path) -> None:
        elsewhere = "name another one, by --state-dir or WINNOW_STATE_DIR, or a coordinator by --url"
        reason = f"no stack was ever up on {state_dir}; {elsewhere}; winnow up --state-dir {state_dir} starts one"
        super().__init__("--state-dir", reason)


def connect(url: str | None, state_dir: Path | None = None) -> Client:
    """A client for the coordinator that was named, else for the embedded one. Raises InvalidInput."""
    if url and not url.startswith(("http://", "https://")):
        raise InvalidInput("--url", f"needs an address like {DEFAULT_URL}, got {url!r}")
    return Client(find_url(url, state_dir), _find_key(), on_silence=note)


def find_url(url: str | None, state_dir: Path | None) -> str:
    """Address of the coordinator. Raises NoStack: who names a stack means no other one, which may be on port 8000."""
    if url:
        return url
    found = read_record(state_dir or DEFAULT_STATE_DIR).get("coordinator_url")
    if state_dir and not found:
        raise NoStack(state_dir)
    return found or DEFAULT_URL


def _find_key() -> str:
    """The key in WINNOW_API_KEY, or in the file that WINNOW_API_KEY_FILE names. Raises InvalidInput."""
    typed = os.environ.get("WINNOW_API_KEY")
    key = typed or _key_from_file()
    if not (key.isascii() and key.isprintable()):  # it goes into a header
        variable = "WINNOW_API_KEY" if typed else "WINNOW_API_KEY_FILE"
        raise InvalidInput(variable, "holds a character that no key has; copy the key anew, and nothing around it")
    return key


def _key_from_file() -> str:
    try:
        return str(read_secrets("WINNOW_", ["api_key"]).get("api_key", ""))
    except ValueError as error:
        raise InvalidInput.of(error) from None
