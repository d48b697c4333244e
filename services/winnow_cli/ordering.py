"""Orders to several things: one that is refused keeps none from the others."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import typer

from winnow.client import ApiProblem
from winnow.errors import InvalidInput, NotFound
from winnow_cli.output import aside, coloured, console, print_line, refuse

Json = dict[str, Any]


def give(order: Callable[[str], Json], noun: str, called: Iterable[str], as_json: bool) -> None:
    """Give each its order, and say what became of it: `order` returns a view with name and status.

    A refusal's line of JSON says under `noun` whose it is. Exit code 1 when there is one.
    """
    refused = False
    for one in dict.fromkeys(called):
        try:
            view = order(one)
        except (ApiProblem, InvalidInput, NotFound) as error:
            refused = True
            refuse(error, as_json, **{noun: one})
        else:
            print_line(view) if as_json else console.print(f"{view['name']}: {coloured(view['status'])}")
    if refused:
        raise typer.Exit(1)


def removed(view: Json) -> Json:
    """What something was, and that it is no more."""
    return view | {"was": view["status"], "status": "removed"}


def require_consent(to_go: Iterable[str], *, yes: bool, as_json: bool) -> None:
    """Ask whether what is listed may go for good. Raises typer.Abort, and InvalidInput where nobody can be asked."""
    if yes:
        return
    if as_json or not sys.stdin.isatty():
        raise InvalidInput("--yes", "removing asks first, which takes a terminal and no --json; say --yes")
    for line in to_go:
        aside.print(line, soft_wrap=True)
    typer.confirm("Remove for good?", abort=True, err=True)
