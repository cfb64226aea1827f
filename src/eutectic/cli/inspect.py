"""`eutectic inspect`: what a checkpoint holds, from its headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eutectic.cli import options, screen, values
from eutectic.names import layer_of

if TYPE_CHECKING:
    from eutectic.checkpoint import Source


def inspect(
    checkpoint: Annotated[str, typer.Argument(help="A model folder, checkpoint file or hub id.", metavar="CHECKPOINT")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    json: options.Json = False,
) -> None:
    """Show a checkpoint's tensors, dtypes, sizes and ties. Reads headers, no weights."""
    with screen.refusals(json):
        from eutectic import api

        source = api.open_model(checkpoint)
        if json:
            screen.print_json(_as_json(source))
        else:
            _show(source)
            if tensors:
                _show_tensors(source)
        source.close()


def _show(source: Source) -> None:
    from rich.table import Table

    specs = source.specs
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("model", f"[bold]{screen.text(source.label)}[/]")
    count = Counter(spec.dtype for spec in specs.values())
    table.add_row("tensors", f"{len(specs)} ({', '.join(f'{n} {dtype}' for dtype, n in count.most_common())})")
    table.add_row("elements", f"{sum(spec.numel for spec in specs.values()):,}")
    table.add_row("bytes", values.shown(sum(spec.nbytes for spec in specs.values())))
    if specs:
        name, largest = max(specs.items(), key=lambda pair: pair[1].nbytes)
        table.add_row("largest", f"{screen.text(name)} {list(largest.shape)}, {values.shown(largest.nbytes)}")
    table.add_row("layers", screen.text(", ".join(_stacks(specs))) or "none")
    for alias, name in source.ties.items():
        table.add_row("tied", screen.text(f"{alias} = {name}"))
    screen.out().print(table)


def _stacks(names: Iterable[str]) -> Iterator[str]:
    """`model.layers × 24`; layers that begin their tensors' names by their number, `3`; with gaps, what they span."""
    stacks: dict[str, set[int]] = {}
    for stack, number in filter(None, map(layer_of, names)):
        stacks.setdefault(stack, set()).add(number)
    for stack, numbers in stacks.items():
        gaps = len(numbers) <= max(numbers) - min(numbers)
        span = f" (numbered {min(numbers)} to {max(numbers)})" if gaps else ""
        yield (f"{stack} × " if stack else "") + f"{len(numbers)}{span}"


def _show_tensors(source: Source) -> None:
    specs = source.specs.items()
    rows = ((name, spec.dtype, str(list(spec.shape)), values.shown(spec.nbytes)) for name, spec in specs)
    screen.out().print(screen.table(("tensor", "dtype", "shape", "bytes"), rows))


def _as_json(source: Source) -> dict[str, Any]:
    return {
        "identity": source.identity(),
        "metadata": dict(source.metadata),
        "tensors": {name: {"dtype": spec.dtype, "shape": list(spec.shape)} for name, spec in source.specs.items()},
        "tied": dict(source.ties),
    }
