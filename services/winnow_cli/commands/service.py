"""`winnow up`, `workers`, `key`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from winnow_cli.options import DEFAULT_STATE_DIR, AsJson, Profile, StateDir, Url, connect
from winnow_cli.output import aside, coloured, console, minute, plain, print_json, print_line, print_table, say
from winnow_cli.stack import Stack, until_told

keys = typer.Typer(
    help="API keys; needed by everyone once the coordinator is bound off loopback.", no_args_is_help=True
)


def up(
    state_dir: StateDir = None,
    data_root: Annotated[
        list[Path] | None,
        typer.Option(
            help="Datasets may be read from below this folder (of a file: its folder); may be repeated. "
            "None given: those of the last time."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="The coordinator's; by default that of the last time, 8000, or a free one.", min=1, max=65_535
        ),
    ] = None,
    profile: Profile = None,
    json: AsJson = False,
) -> None:
    """Start the embedded stack and keep it up. Ctrl-C stops it in order; a second `up` goes on where it stopped."""
    stack = Stack(state_dir or DEFAULT_STATE_DIR, data_root or [], port, say, profile=profile)
    with until_told(stack) as told:
        try:
            stack.start()
            if json:
                print_line(_addresses(stack))
            else:
                _welcome(stack)
            stack.watch(told.is_set)
            aside.print("stopping: the trainer writes a checkpoint first (Ctrl-C again: at once)")
        finally:
            stack.stop()


def workers(url: Url = None, state_dir: StateDir = None, json: AsJson = False) -> None:
    """Trainers that are alive, and what they work on."""
    with connect(url, state_dir) as client:
        found = list(client.workers())
    if json:
        print_json(found)
        return
    cells = (
        [one["id"], ", ".join(device["name"] for device in one["devices"]), _work(one["busy_with"]), one["version"]]
        for one in found
    )
    print_table(["trainer", "devices", "busy with", "version"], cells)


def storage(
    limit: Annotated[int, typer.Option(help="How many of the largest.", min=1, max=500)] = 20,
    url: Url = None,
    state_dir: StateDir = None,
    json: AsJson = False,
) -> None:
    """The datasets and experiments that take most room, and which of them can be removed."""
    with connect(url, state_dir) as client:
        found = client.storage(limit=limit)
    if json:
        print_json(found)
        return
    rows = (
        [decimal(one["bytes"]), one["kind"], plain(one["name"]), coloured(one["status"]), _goes_with(one)]
        for one in found["items"]
    )
    print_table([">takes", "what", "name", "status", "goes with"], rows)
    console.print(f"{decimal(found['free'])} free where the coordinator keeps artefacts")


@keys.command()
def create(
    name: str,
    scope: Annotated[list[str], typer.Option(help="read, run or admin; each includes those before it.")],
    url: Url = None,
    state_dir: StateDir = None,
    json: AsJson = False,
) -> None:
    """Make a key. Its text is shown this once, and stored nowhere."""
    with connect(url, state_dir) as client:
        made = client.create_key(name, scope)
    print_json(made) if json else console.print(made["key"], soft_wrap=True)


@keys.command("list")
def list_keys(url: Url = None, state_dir: StateDir = None, json: AsJson = False) -> None:
    """All keys, without their texts."""
    with connect(url, state_dir) as client:
        found = list(client.api_keys())
    if json:
        print_json(found)
        return
    print_table(["id", "name", "scopes", "created (UTC)", "revoked (UTC)"], map(_key_row, found))


@keys.command()
def revoke(id: str, url: Url = None, state_dir: StateDir = None, json: AsJson = False) -> None:
    """End a key at once."""
    with connect(url, state_dir) as client:
        client.revoke_key(id)
    print_json({"revoked": id}) if json else console.print(f"{id} is revoked")


def _key_row(key: dict[str, Any]) -> list[str]:
    ended = minute(key["revoked_at"]) or "valid"
    return [key["id"], key["name"], " ".join(key["scopes"]), minute(key["created_at"]), ended]


def _work(claimed: dict[str, Any] | None) -> str:
    """What a trainer works on, as people call it."""
    if claimed is None:
        return "-"
    number = claimed["round"]
    return claimed["name"] if number is None else f"{claimed['name']}, round {number}"


def _goes_with(holder: dict[str, Any]) -> str:
    """The command that removes a dataset or an experiment; nothing while it cannot go."""
    if not holder["may_go"]:
        return "-"
    return f"winnow dataset remove {holder['name']}" if holder["kind"] == "dataset" else f"winnow remove {holder['id']}"


def _addresses(stack: Stack) -> dict[str, str]:
    places = {"state_dir": str(stack.state_dir), "logs": str(stack.logs)}
    return {"coordinator_url": stack.url, "sampler_url": stack.sampler_url, **places}


def _welcome(stack: Stack) -> None:
    roots = ", ".join(stack.data_roots) or "none: datasets from files need --data-root FOLDER"
    console.print(
        f"[bold]Winnow is up[/bold] at {stack.url} (API description: {stack.url}/docs)\n"
        f"  sampler     {stack.sampler_url}\n"
        f"  state       {stack.state_dir}\n"
        f"  logs        {stack.logs}\n"
        f"  data roots  {roots}\n"
        "In another shell: winnow dataset add, winnow run, winnow list, winnow doctor. Ctrl-C stops.",
        soft_wrap=True,
    )
