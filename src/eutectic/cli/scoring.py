"""What commands share that choose by scores: their options, what is shown meanwhile, tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from eutectic.cli import screen
from eutectic.cli.merge import Told

if TYPE_CHECKING:
    from rich.table import Table

    from eutectic.api import Watch
    from eutectic.evaluate import Settings
    from eutectic.plan import Plan
    from eutectic.run.budget import Budget

Device = Annotated[str, typer.Option("--device", help="Where models are evaluated: cpu, cuda or cuda:N.")]
Batch = Annotated[int, typer.Option(min=1, help="Items a forward pass.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Items of each task.", show_default="all")]
Seed = Annotated[int, typer.Option(min=0, help="Draws the items of --limit, and the resamples.")]
Cache = Annotated[
    str | None, typer.Option(help="Where scores are kept.", metavar="DIR", show_default="~/.cache/eutectic/scores")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Measure anew, and keep nothing.")]
Html = Annotated[str | None, typer.Option(help="Write a report with curves.", metavar="FILE")]
ShardSize = Annotated[str, typer.Option(help="Largest output file.", metavar="SIZE")]
Replace = Annotated[bool, typer.Option("--replace", help="Replace OUT if it exists.")]


def settings(device: str, batch: int, limit: int | None, seed: int) -> Settings:
    """How to evaluate, as the options say."""
    from eutectic.evaluate import Settings

    return Settings(device=device, batch=batch, limit=limit, seed=seed)


def kept(cache: str | None, no_cache: bool) -> str | bool:
    """Where scores are kept, as the options say."""
    return False if no_cache else cache or True


def stopped(no_cache: bool) -> str:
    """What is told after Ctrl-C."""
    kept = "no score was kept" if no_cache else "the same command goes on from the scores that were measured"
    return f"stopped; {kept}"


@contextmanager
def watched(*, hidden: bool) -> Iterator[Watch]:
    """Says on a terminal which score is being measured, and then shows the merge that is written."""
    from eutectic import api

    console = screen.err()
    with ExitStack() as bars:
        told = Told(bars, hidden=hidden)
        if hidden or not console.is_terminal:
            yield api.Watch(on_plan=told.of_plan, progress=told.of_bytes)
            return
        status = bars.enter_context(console.status("reading the data"))

        def planned(plan: Plan, budget: Budget, notes: Sequence[str]) -> None:
            status.stop()
            told.of_plan(plan, budget, notes)

        yield api.Watch(
            on_start=lambda model, task: status.update(screen.text(f"{task} of {model}")),
            on_plan=planned,
            progress=told.of_bytes,
        )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table; columns without any content are left out."""
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    made = screen.table([head[i] for i in used])
    for row in rows:
        made.add_row(*(screen.text(row[i]) for i in used), style="bold" if row[-1] == "chosen" else None)
    return made
