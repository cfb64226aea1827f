"""What commands share that choose by scores: their options, what is shown meanwhile, tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eutectic.cli import screen

if TYPE_CHECKING:
    from rich.table import Table

    from eutectic.evaluate import Settings

Device = Annotated[str, typer.Option("--device", help="Where models are evaluated: cpu, cuda or cuda:N.")]
Batch = Annotated[int, typer.Option(min=1, help="Items a forward pass.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Items of each task.", show_default="all")]
Seed = Annotated[int, typer.Option(min=0, help="Draws the items of --limit, and the resamples.")]
Cache = Annotated[
    str | None, typer.Option(help="Where scores are kept.", metavar="DIR", show_default="~/.cache/eutectic/scores")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Measure anew, and keep nothing.")]


def settings(device: str, batch: int, limit: int | None, seed: int) -> Settings:
    """How to evaluate, as the options say."""
    from eutectic.evaluate import Settings

    return Settings(device=device, batch=batch, limit=limit, seed=seed)


def kept(cache: str | None, no_cache: bool) -> str | bool:
    """Where scores are kept, as the options say."""
    return False if no_cache else cache or True


class Watched:
    """Says on a terminal which score is being measured."""

    def __init__(self, status: Any) -> None:
        self._status = status

    def start(self, model: str, task: str) -> None:
        """The score of a model in a task is about to be measured."""
        if self._status is not None:
            self._status.update(screen.text(f"{task} of {model}"))

    def stop(self) -> None:
        """Nothing more is measured."""
        if self._status is not None:
            self._status.stop()


@contextmanager
def watched(*, hidden: bool) -> Iterator[Watched]:
    """A line on standard error while scores are measured, if that is a terminal."""
    console = screen.err()
    if hidden or not console.is_terminal:
        yield Watched(None)
        return
    with console.status("reading the data") as status:
        yield Watched(status)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table; columns without any content are left out."""
    from rich.table import Table

    made = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    for i in used:
        made.add_column(head[i], overflow="fold")
    for row in rows:
        made.add_row(*(screen.text(row[i]) for i in used), style="bold" if row[-1] == "chosen" else None)
    return made
