"""`winnow`: every command, and what a person sees when one of them fails."""

import sys
from typing import Annotated, Any, NoReturn

try:
    import typer
    from pydantic import ValidationError
    from typer.exceptions import TyperException

    from winnow import __version__
    from winnow.errors import WinnowError
    from winnow_cli.commands.select import select
    from winnow_cli.output import finish, print_problem, refuse
except ModuleNotFoundError as error:
    sys.exit(f"winnow's command line needs {error.name}: install winnow with its extras; make setup does")
except KeyboardInterrupt:  # importing takes a second or two
    sys.stderr.write("stopped; nothing was begun\n")
    sys.exit(130)

app = typer.Typer(
    help="Train SimCLR encoders for histopathology on the patches that matter.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},  # which commands inherit
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(rich_help_panel="The library")(select)


def _add_the_rest() -> str:
    """Add the commands that talk to services; the name of a module that they lack, else nothing."""
    try:
        from winnow_cli.catalogue import add_all
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("winnow"):
            raise
        return error.name or "a module"
    add_all(app)
    return ""


try:
    missing = _add_the_rest()
except KeyboardInterrupt:
    sys.stderr.write("stopped; nothing was begun\n")
    sys.exit(130)


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
    try:
        _run()
    except OSError:
        finish("\n")  # it names no file: what cannot be written to may be standard output
        raise
    finally:
        finish()


def _run() -> NoReturn:
    as_json = "--json" in sys.argv
    asked = next((word for word in sys.argv[1:] if not word.startswith("-")), "select")
    if missing and asked != "select":
        sys.exit(f"winnow {asked} needs {missing}: install winnow with its extras; make setup does")
    try:
        sys.exit(app(standalone_mode=not as_json))
    except WinnowError as error:
        refuse(error, as_json)
        sys.exit(1)
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
    print_problem(words, problem, as_json)
    sys.exit(code)


if __name__ == "__main__":
    main()
