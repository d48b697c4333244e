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
        help="The coordinator. By default that of the stack in --state-dir, else on port 8000.",
    ),
]
StateDir = Annotated[
    Path,
    typer.Option("--state-dir", envvar="WINNOW_STATE_DIR", help="Holds everything of the embedded stack."),
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


def connect(url: str | None, state_dir: Path = DEFAULT_STATE_DIR) -> Client:
    """A client for the coordinator that was named, else for the embedded one.

    The key comes from WINNOW_API_KEY, or from the file that WINNOW_API_KEY_FILE names. Raises InvalidInput.
    """
    if url and not url.startswith(("http://", "https://")):
        raise InvalidInput("--url", f"needs an address like {DEFAULT_URL}, got {url!r}")
    key = os.environ.get("WINNOW_API_KEY") or _key_from_file()
    return Client(find_url(url, state_dir), key, on_silence=note)


def _key_from_file() -> str:
    try:
        return str(read_secrets("WINNOW_", ["api_key"]).get("api_key", ""))
    except ValueError as error:
        raise InvalidInput.of(error) from None


def find_url(url: str | None, state_dir: Path) -> str:
    """Address of the coordinator."""
    return url or read_record(state_dir).get("coordinator_url") or DEFAULT_URL
