"""`winnow`: every command, and what a person sees when one of them fails."""

import sys
from typing import Annotated, Any, NoReturn

try:
    import typer
    from pydantic import ValidationError
    from typer.exceptions import TyperException

    from winnow import __version__
    from winnow.client import ApiProblem
    from winnow.errors import WinnowError
    from winnow_cli.commands import datasets, demo, doctor, experiments, results, service
    from winnow_cli.output import aside, plain, print_json
except ModuleNotFoundError as error:
    sys.exit(f"winnow's command line needs {error.name}: install winnow with its extras; make setup does")

app = typer.Typer(
    help="Train SimCLR encoders for histopathology on the patches that matter.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(rich_help_panel="The stack")(service.up)
app.command(rich_help_panel="The stack")(demo.demo)
app.command(rich_help_panel="The stack")(doctor.doctor)
app.command(rich_help_panel="The stack")(service.workers)
app.add_typer(service.keys, name="key", rich_help_panel="The stack")
app.add_typer(datasets.app, name="dataset", rich_help_panel="Experiments")
for command in (experiments.run, experiments.watch):
    app.command(rich_help_panel="Experiments")(command)
app.command("list", rich_help_panel="Experiments")(experiments.list_all)
for command in (experiments.pause, experiments.resume, experiments.cancel, results.compare, results.export):
    app.command(rich_help_panel="Experiments")(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"winnow {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run a command. Errors that a person can mend end in one line, or in JSON where JSON was asked for."""
    as_json = "--json" in sys.argv
    try:
        sys.exit(app(standalone_mode=not as_json))
    except ApiProblem as error:
        _end(error.problem, str(error), as_json)
    except WinnowError as error:
        _end({"code": error.code}, str(error), as_json)
    except TyperException as error:  # a command that was typed wrong; without --json typer explains it itself
        words: str = getattr(error, "format_message", error.__str__)()
        _end({"code": "usage"}, words, as_json, getattr(error, "exit_code", 2))
    except ValidationError as error:  # settings from the environment
        found = (f"WINNOW_{'.'.join(map(str, one['loc'])).upper()}: {one['msg']}" for one in error.errors())
        _end({"code": "settings"}, "; ".join(found), as_json)
    except OSError as error:
        if error.filename is None:
            raise
        _end({"code": "file"}, f"{error.filename}: {error.strerror}", as_json)
    except KeyboardInterrupt:
        sys.exit(130)


def _end(problem: dict[str, Any], words: str, as_json: bool, code: int = 1) -> NoReturn:
    if as_json:
        print_json({"detail": words} | problem)
    else:
        aside.print(f"[red]error:[/red] {plain(words)}", soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
