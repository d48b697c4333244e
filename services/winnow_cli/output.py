"""Tables, JSON and errors on the terminal."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from winnow.errors import WinnowError

WIDE = 160
"""Columns where there is no terminal to fit into."""
GAP = 2
"""Columns between a table's own."""
LINE = 22
"""Columns that a table leaves at least to what may take several lines."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
aside = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else WIDE)
"""For what is not the answer: notes, warnings, errors."""

COLOURS = {"completed": "green", "done": "green", "ready": "green", "failed": "red", "cancelled": "yellow"}


def finish(more: str = "") -> None:
    """Write what standard output still holds. Where it takes no more, say so and end; a reader that left knows."""
    try:
        sys.stdout.write(more)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again at its end, and tells
        if not isinstance(error, BrokenPipeError):
            print_problem(f"standard output: {error.strerror}", {}, as_json=False)
        sys.exit(1)


def print_json(value: object) -> None:
    """The answer for programs: one JSON document, unadorned."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def print_line(value: object) -> None:
    """One of many answers for programs: a line of JSON, at once."""
    print_lines([value])
    sys.stdout.flush()


def print_lines(values: Iterable[object]) -> None:
    """Several of them."""
    sys.stdout.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def print_problem(words: str, problem: Mapping[str, Any], as_json: bool) -> None:
    """Why something was refused: a line of JSON for programs, with the problem's own members, else a sentence."""
    if as_json:
        print_line({"detail": words} | dict(problem))
    else:
        aside.print(f"[red]error:[/red] {plain(words)}", soft_wrap=True)


def refuse(error: WinnowError, as_json: bool, **about: Any) -> None:
    """Why something was refused, with what it is `about` where programs read it."""
    print_problem(str(error), about | getattr(error, "problem", {"code": error.code}), as_json)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, spare: Sequence[str] = ()) -> None:
    """A table as `make_table` makes it. On a narrow terminal it goes without the columns it can `spare`, in order."""
    console.print(fit_table(console, columns, list(rows), spare=spare))


def fit_table(
    screen: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    spare: Sequence[str] = (),
) -> Table:
    """A table without as many of the columns that it can `spare` as it takes to fit `screen`, if that is a terminal."""
    if not spare or not screen.is_terminal or _width(columns, rows) <= screen.width:
        return make_table(columns, rows)
    kept = [number for number, name in enumerate(columns) if name != spare[0]]
    narrower = [[row[number] for number in kept] for row in rows]
    return fit_table(screen, [columns[number] for number in kept], narrower, spare=spare[1:])


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table; columns whose name starts with > are aligned right, those with ~ take as many lines as they need."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        if name.startswith("~"):
            table.add_column(name[1:], overflow="fold")
        else:
            table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    return table


def _width(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> int:
    """Terminal columns that a table takes at least."""
    widest = [max(Text.from_markup(str(cell)).cell_len for cell in cells) for cells in zip(columns, *rows, strict=True)]
    least = (min(width, LINE) if name.startswith("~") else width for name, width in zip(columns, widest, strict=True))
    return sum(least) + GAP * (len(columns) - 1)


def say(words: str) -> None:
    """What happens, on a line of its own however long it is: a log of it is searched by line."""
    aside.print(words, soft_wrap=True)


def note(words: str) -> None:
    """What is well to know beside the answer. Under a live table it comes above it, and stays."""
    with aside.capture() as told:
        aside.print(f"[yellow]note:[/yellow] {plain(words)}", soft_wrap=True)
    sys.stderr.write(told.get())  # a live table takes it from there; a console would write into the table
    sys.stderr.flush()


def plain(text: str) -> str:
    """Text from elsewhere, whose brackets are no markup."""
    return escape(text)


def coloured(status: str) -> str:
    """A status with its colour."""
    colour = COLOURS.get(status)
    return f"[{colour}]{status}[/{colour}]" if colour else status


def count(number: Any) -> str:
    """1234567 as 1,234,567."""
    return "" if number is None else f"{number:,}"


def score(value: Any) -> str:
    """A metric; empty where it was not measured."""
    return "" if value is None else f"{value:.3f}"


def minute(moment: str | None) -> str:
    """2026-07-01T12:34:56.789Z as 2026-07-01 12:34."""
    return "" if moment is None else f"{datetime.fromisoformat(moment).astimezone(UTC):%Y-%m-%d %H:%M}"


def duration(seconds: float | None) -> str:
    """Seconds as 12.3 s, 4:05 or 1:02:03."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    text = str(timedelta(seconds=round(seconds)))
    return text.removeprefix("0:").removeprefix("0")
