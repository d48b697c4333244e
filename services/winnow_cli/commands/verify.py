"""`winnow verify`: whether an experiment's files and picks are what they were."""

from dataclasses import asdict
from typing import Annotated

import typer

from winnow_cli.naming import id_of
from winnow_cli.options import AsJson, Id, StateDir, Url, connect
from winnow_cli.output import aside, console, count, plain, print_json, print_table
from winnow_cli.verification import Verdict, Verification


def verify(
    id: Id,
    round: Annotated[int | None, typer.Option(min=0, help="This round alone.")] = None,
    url: Url = None,
    state_dir: StateDir = None,
    json: AsJson = False,
) -> None:
    """Recompute every digest and replay every batch; say what differs. Exit code 1 when something does."""
    with connect(url, state_dir) as client:
        id = id_of(client, id)
        verification = Verification(client, id)
        verdicts = list(verification.run(round))
    problems = [problem for verdict in verdicts for problem in verdict.problems]
    if json:
        print_json({"experiment": id, "ok": not problems, "rounds": [asdict(verdict) for verdict in verdicts]})
    else:
        print_table([">round", ">files", ">bytes", ">picks", "replay", ">problems"], map(_row, verdicts))
        if not any(verdict.files for verdict in verdicts):
            aside.print("nothing of it is stored: no file was compared", soft_wrap=True)
        for one in problems:
            console.print(f"[red]round {one.round}, {plain(one.what)}:[/red] {plain(one.reason)}", soft_wrap=True)
    if problems:
        raise typer.Exit(1)


def _row(verdict: Verdict) -> list[str]:
    sizes = [count(verdict.files), count(verdict.bytes), count(verdict.picks)]
    return [str(verdict.round), *sizes, verdict.replay, count(len(verdict.problems))]
