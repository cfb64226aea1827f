"""`eutectic repair`: what averaging took from the activations of a merge is given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eutectic.cli import options, screen, values
from eutectic.cli.collect import Field, Length, Pack, Replace, Samples, ShardSize, Size
from eutectic.errors import several

if TYPE_CHECKING:
    from eutectic.api import RepairedMerge


class How(StrEnum):
    """Where the activations of the merge are taken from."""

    sequential = "sequential"
    closed_form = "closed_form"


def repair(
    merged: Annotated[
        str, typer.Argument(help="The merge: a folder, a file, a hub id, or a recipe.", metavar="MERGED")
    ],
    out: Annotated[str, typer.Argument(help="Folder to make.", metavar="OUT")],
    parent: Annotated[
        list[str], typer.Option(help="A model that it was merged from, or a recipe of it. Repeatable.", metavar="MODEL")
    ],
    data: Annotated[str, typer.Option(help="Text: .jsonl has one document a line, else one document.", metavar="FILE")],
    alignment: Annotated[
        list[str] | None,
        typer.Option(help="With what a parent was aligned for the merge. Repeatable.", metavar="FOLDER"),
    ] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="Of a parent, in their order.", metavar="W", show_default="all alike")
    ] = None,
    how: Annotated[
        How, typer.Option(help="A pass over the data for each layer, or one in all, from the parents alone.")
    ] = How.sequential,
    samples: Samples = None,
    field: Field = "text",
    length: Length = None,
    pack: Pack = False,
    batch: Size = 8,
    seed: Annotated[int, typer.Option(min=0, help="Draws the samples.")] = 0,
    device: options.Device = "cpu",
    dtype: Annotated[str, typer.Option(help="Dtype of the arithmetic.")] = "float32",
    shard_size: ShardSize = "5GB",
    replace: Replace = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Rescale the channels of a merged model so that they vary as those of its parents do (REPAIR), into OUT."""
    reading = {"samples": samples, "field": field, "length": length, "pack": pack, "batch": batch, "seed": seed}
    with screen.refusals(json):
        from eutectic import api
        from eutectic.statistics import Options

        with _status(quiet=quiet or json) as tell:
            done = api.repair(
                merged,
                parent,
                data,
                out,
                alignments=alignment or (),
                weights=weight,
                how=how.value,
                reading=Options(**reading, device=device, dtype=dtype),  # type: ignore[arg-type]
                options=api.Options(shard_bytes=values.size(shard_size, "--shard-size"), replace=replace),
                tell=tell,
            )
        if json:
            screen.print_json(as_json(done))
        elif not quiet:
            _show(done)


def as_json(done: RepairedMerge) -> dict[str, Any]:
    """What was done, as plain data."""
    return {
        "path": done.merge.path,
        "changed": dict(done.changed),
        "left": dict(done.left),
        "notes": list(done.notes),
    }


def _show(done: RepairedMerge) -> None:
    console = screen.out()
    width = max(map(len, [*done.changed, *done.left]), default=0)
    for name, text in done.changed.items():
        console.print(f"{screen.text(name.ljust(width))}  {screen.text(text)}", soft_wrap=True)
    for path, reason in done.left.items():
        console.print(f"[dim]{screen.text(path.ljust(width))}  stays: {screen.text(reason)}[/]", soft_wrap=True)
    for note in done.notes:
        console.print(f"[yellow]note[/] {screen.text(note)}", soft_wrap=True)
    count = len(done.merge.plan.jobs)
    console.print(f"[green]repaired[/] {len(done.changed)} of {several(count, 'tensor')}")
    console.print(screen.text(done.merge.path), soft_wrap=True)


@contextmanager
def _status(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """What is being measured, on standard error if that is a terminal."""
    console = screen.err()
    if quiet or not console.is_terminal:
        yield lambda what: None
        return
    with console.status("reading") as status:
        yield lambda what: status.update(screen.text(what))
