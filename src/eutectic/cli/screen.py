"""What commands share on the screen: consoles, refusals, JSON, a progress bar in bytes."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from eutectic.cli import arguments, interrupts
from eutectic.errors import EutecticError, Problem

if TYPE_CHECKING:
    from rich.table import Table

# Told after Ctrl-C where the work goes on.
RESUMES = "stopped; the same command resumes"
# Of a console that is no terminal: nothing that people write is longer.
_UNBOUNDED = 1 << 20


class _Piped(Console):
    """A console for programs and files: a row of a table is one line, however long, without blanks at its end."""

    def print(self, *objects: Any, **options: Any) -> None:
        with self.capture() as said:
            super().print(*objects, **options)
        self.file.write(re.sub(r" +$", "", said.get(), flags=re.MULTILINE))
        self.file.flush()


def out() -> Console:
    """Results go to standard output."""
    console = Console(highlight=False, emoji=False)
    return console if console.is_terminal else _Piped(highlight=False, emoji=False, width=_UNBOUNDED)


def page() -> Console:
    """As `out`, for running text: lines of at most 100 characters, and of `COLUMNS` where that is less."""
    console = out()
    asked = os.environ.get("COLUMNS", "")
    console.width = min(console.width, 100, int(asked) if asked.isdecimal() and int(asked) else 100)
    return console


def err() -> Console:
    """Everything else goes to standard error."""
    return Console(stderr=True, highlight=False, emoji=False)


def print_json(data: Any) -> None:
    """One JSON document on standard output, in ASCII: names of files need not be text in any encoding."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")
    sys.stdout.flush()


def print_problems(problems: list[Problem]) -> None:
    """Each problem on a line of its own (wrapped by the terminal), its advice below it."""
    console = err()
    for problem in problems:
        bare = Problem(problem.code, problem.message, problem.where, "", problem.file, problem.line, problem.column)
        console.print(f"[bold red]error[/] {text(str(bare))}", soft_wrap=True)
        if problem.hint:
            console.print(f"      [dim]→[/] {text(problem.hint)}", soft_wrap=True)
    codes = list(dict.fromkeys(problem.code for problem in problems))
    console.print(f"[dim]eutectic explain {codes[0]} tells more[/]")


def text(written: str) -> str:
    """Foreign text for a console: no control characters and no markup, as names may have been made by anybody."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in written)
    return escape(shown)


def table(head: Sequence[str], rows: Iterable[Sequence[str]] = ()) -> Table:
    """A table with these words over its columns, and foreign text in its rows."""
    from rich.table import Table

    made = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in head:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*map(text, row))
    return made


@contextmanager
def refusals(as_json: bool = False, stopped: str = "stopped; nothing was written") -> Iterator[None]:
    """Turns every deliberate error into its message and exit code; anything else is a bug and keeps its traceback.

    `stopped` is told after Ctrl-C.
    """
    try:
        interrupts.listen()
        yield
    except EutecticError as error:
        fail(error, as_json)
    except KeyboardInterrupt:
        err().print(stopped, soft_wrap=True)
        raise typer.Exit(130) from None


def fail(error: EutecticError, as_json: bool) -> NoReturn:
    """Prints the problems, in the words of the command line, and leaves with the error's exit code."""
    problems = [arguments.as_options(problem) for problem in error.problems]
    if as_json:
        print_json({"problems": [problem.as_json() for problem in problems]})
    else:
        print_problems(problems)
    raise typer.Exit(error.exit_code) from None


@contextmanager
def progress(label: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar with throughput on standard error, if that is a terminal; yields a function that takes bytes done."""
    console = err()
    if quiet or not total or not console.is_terminal:
        yield lambda nbytes: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    speed = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), BarColumn(), *speed, console=console, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda nbytes: bar.advance(task, nbytes)
