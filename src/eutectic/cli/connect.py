"""`eutectic connect`: what lies between models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from eutectic.cli import options, scoring, screen

if TYPE_CHECKING:
    from rich.table import Table

    from eutectic.connectivity import Connection, Height


def connect(
    models: Annotated[
        list[str], typer.Argument(help="Two models or more: folders, files, hub ids or recipes.", metavar="MODEL...")
    ],
    task: Annotated[
        list[str],
        typer.Option(
            "--task",
            "--eval",
            help="A task file, or KIND:DATA, as perplexity:text.txt. Repeatable: training data and held-out data.",
            metavar="TASK",
        ),
    ],
    points: Annotated[int, typer.Option(min=3, help="Of each path, both ends among them.")] = 25,
    refine: Annotated[int, typer.Option(min=0, help="How often the gaps beside the maximum are halved.")] = 3,
    layerwise: Annotated[bool, typer.Option("--layerwise", help="Let each layer alone go over, too.")] = False,
    plane: Annotated[
        int | None, typer.Option(min=2, help="Of three models, the plane through them: N × N points.", metavar="N")
    ] = None,
    align: Annotated[
        bool, typer.Option("--align", help="Measure the lines between the models aligned by weights, too.")
    ] = False,
    html: Annotated[str | None, typer.Option(help="Write the whole report, with plots.", metavar="FILE")] = None,
    device: options.Device = "cpu",
    batch: scoring.Batch = 8,
    limit: scoring.Limit = None,
    seed: scoring.Seed = 0,
    cache: scoring.Cache = None,
    no_cache: scoring.NoCache = False,
    json: options.Json = False,
) -> None:
    """Measure loss and error on the straight lines between models: is there a barrier?"""
    with screen.refusals(json, scoring.stopped(no_cache)):
        from eutectic import api

        if html is not None:
            api.check_report_place(html)
        with _status(quiet=json) as tell:
            found = api.connect(
                models,
                task,
                points=points,
                refine=refine,
                layerwise=layerwise,
                plane=plane,
                align=align,
                settings=scoring.settings(device, batch, limit, seed),
                cache=scoring.kept(cache, no_cache),
                tell=tell,
            )
        if html is not None:
            api.write_connection(found, html)
        if json:
            screen.print_json(found.as_json())
        else:
            _show(found)


@contextmanager
def _status(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """What is being measured, and how many were before it, on standard error if that is a terminal."""
    console = screen.err()
    if quiet or not console.is_terminal:
        yield lambda label: None
        return
    with console.status("reading") as status:
        done = 0

        def tell(label: str) -> None:
            nonlocal done
            status.update(f"{screen.text(label)} [dim]({done} measured)[/]")
            done += 1

        yield tell


def _show(found: Connection) -> None:
    console = screen.out()
    for number, task in enumerate(found.tasks):
        pairs = found.barriers[task]
        metric = next(iter(pairs.values())).curve.metric
        if number:
            console.print()
        console.print(f"[bold]{screen.text(task)}[/]: {screen.text(metric)}", soft_wrap=True)
        console.print(_barriers(found, task))
        for (i, j), layers in found.layers.get(task, {}).items():
            ends = f"{found.models[i]} with one layer of {found.models[j]}"
            console.print(f"\n[bold]{screen.text(ends)}[/]", soft_wrap=True)
            rows = [(layer.name, *_height(layer.rise)) for layer in layers]
            console.print(screen.table(("layer", "rise", "95 % interval", "at t"), rows))
        if (plane := found.planes.get(task)) is not None:
            low = f"{plane.lowest[1]:.4g} at its lowest, at {plane.lowest_at}"
            console.print(f"on the plane the {plane.quantity} is {screen.text(low)}; --html draws it", soft_wrap=True)
    for one in found.alignments:
        before, after = one.distance
        said = f"{one.label}: distance² {before:.4g} before, {after:.4g} after, {100 * one.gain:.1f} % less"
        console.print(f"[dim]aligned[/] {screen.text(said)}", soft_wrap=True)
        for note in one.notes:
            console.print(f"[dim]note:[/] {screen.text(note)}", soft_wrap=True)
    for note in found.notes:
        console.print(f"[dim]note:[/] {screen.text(note)}", soft_wrap=True)


def _barriers(found: Connection, task: str) -> Table:
    head = ("path", "barrier", "95 % interval", "at t", "above the mean", "above the higher end", "lowest", "at t")
    rows = []
    for one in found.barriers[task].values():
        t, lowest = one.curve.lowest
        others = (f"{one.curve.height('frankle').value:z.4g}", f"{one.curve.height('freeman').value:z.4g}")
        rows.append((" → ".join(one.ends), *_height(one.height), *others, f"{lowest:.4g}", f"{t:.3g}"))
    return screen.table(head, rows)


def _height(height: Height) -> tuple[str, str, str]:
    bounds = "-" if height.interval is None else f"{height.interval[0]:z.4g} to {height.interval[1]:z.4g}"
    # Nothing is higher than the ends: that is so at either of them.
    return f"{height.value:z.4g}", bounds, f"{height.t:.3g}" if height.value else "-"
