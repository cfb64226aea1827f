"""What commands share on the screen: consoles, refusals, JSON, a progress bar in bytes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from eutectic.errors import EutecticError, Problem


def out(**keywords: Any) -> Console:
    """Results go to standard output."""
    return Console(highlight=False, **keywords)


def err() -> Console:
    """Everything else goes to standard error."""
    return Console(stderr=True, highlight=False)


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def print_problems(problems: list[Problem]) -> None:
    """Each problem on a line of its own (wrapped by the terminal), its advice below it."""
    console = err()
    for problem in problems:
        bare = Problem(problem.code, problem.message, problem.where, "", problem.file, problem.line, problem.column)
        console.print(f"[bold red]error[/] {escape(clean(str(bare)))}", soft_wrap=True)
        if problem.hint:
            console.print(f"      [dim]→[/] {escape(clean(problem.hint))}", soft_wrap=True)
    codes = list(dict.fromkeys(problem.code for problem in problems))
    console.print(f"[dim]eutectic explain {codes[0]} tells more[/]")


def clean(text: str) -> str:
    """No control characters: names come from files that anybody may have made."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


@contextmanager
def refusals(as_json: bool = False) -> Iterator[None]:
    """Turns every deliberate error into its message and exit code; anything else is a bug and keeps its traceback."""
    try:
        yield
    except EutecticError as error:
        fail(error, as_json)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # The reader of a pipe (`head`) went away; nothing is wrong.
        sys.stderr.close()
        raise typer.Exit(0) from None


def fail(error: EutecticError, as_json: bool) -> NoReturn:
    """Prints the problems and leaves with the error's exit code."""
    if as_json:
        print_json({"problems": [problem.as_json() for problem in error.problems]})
    else:
        print_problems(list(error.problems))
    raise typer.Exit(error.exit_code) from None


@contextmanager
def progress(label: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar with throughput on standard error; yields a function that takes bytes done."""
    if quiet or not total:
        yield lambda nbytes: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    speed = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), BarColumn(), *speed, console=err(), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda nbytes: bar.advance(task, nbytes)
