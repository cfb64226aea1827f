"""`eutectic compare`: can these models be merged, and how? From weights alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from eutectic.cli import options, screen

if TYPE_CHECKING:
    from rich.table import Table

    from eutectic.adviser import Comparison

_COLOURS = {"merge directly": "green", "align first": "yellow", "not mergeable": "red"}


def compare(
    models: Annotated[
        list[str], typer.Argument(help="Model folders, checkpoint files or hub ids.", metavar="MODEL...")
    ],
    base: Annotated[
        str | None, typer.Option(help="The model they were trained from.", metavar="BASE", show_default="looked for")
    ] = None,
    html: Annotated[
        str | None, typer.Option(help="Write the whole report, with maps by layer.", metavar="FILE")
    ] = None,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Say whether models can be merged, and how: structure, common base, statistics of their weights."""
    with screen.refusals(json):
        from eutectic import api

        if html is not None:
            api.check_report_place(html)
        with ExitStack() as bars:
            report: list[Callable[[int], None]] = []
            found = api.compare(
                models,
                base,
                threads=threads,
                on_start=lambda total: report.append(
                    bars.enter_context(screen.progress("comparing", total, quiet=json))
                ),
                progress=lambda nbytes: report[0](nbytes),
            )
        if html is not None:
            api.write_report(found, html)
        if json:
            screen.print_json(found.as_json())
        else:
            _show(found)


def _show(found: Comparison) -> None:
    console = screen.out()
    verdict = found.verdict
    console.print(f"[bold {_COLOURS[verdict.answer]}]{verdict.answer}[/]")
    for reason in verdict.reasons:
        console.print(f"- {screen.text(reason)}", soft_wrap=True)
    if found.matrices is not None:
        for table in _tables(found):
            console.print()
            console.print(table)
    if verdict.methods:
        console.print("\n[bold]methods to try, in this order[/]")
        for name, why in verdict.methods:
            console.print(f"- [bold]{screen.text(name)}[/]: {screen.text(why)}", soft_wrap=True)
    if verdict.cautions:
        console.print("\n[bold]mind[/]")
        for caution in verdict.cautions:
            console.print(f"- {screen.text(caution)}", soft_wrap=True)


def _tables(found: Comparison) -> list[Table]:
    """Over all matrices: one row a model, then one row a pair of models; without a base only how far pairs are."""
    sums = found.matrices
    assert sums is not None
    from eutectic.adviser.verdict import percent

    first = 0 if found.base.label is None else 1
    tables = []
    if first:
        rows = [
            (
                label,
                *(_shown(of(k), percent) for of in (sums.change, sums.rank, sums.lost)),
                str(len(found.untouched.get(label, ()))),
            )
            for k, label in enumerate(found.models)
        ]
        tables.append(screen.table(("model", "change", "effective rank", "lost in bf16", "untouched tensors"), rows))
    pairs = []
    for a, b in found.pairs():
        numbers = [_shown(sums.relative_distance(a + first, b + first), "{:.3g}".format)]
        if first:
            numbers += [
                _shown(sums.cosine(a, b), "{:z.2f}".format),
                *(_shown(of(a, b), percent) for of in (sums.opposed, sums.opposed_by_size, sums.overlap)),
                _shown(sums.overlap_by_chance(a, b), percent),
            ]
        pairs.append((f"{found.models[a]}, {found.models[b]}", *numbers))
    head = ("pair", "distance", "cosine", "opposed", "by size", "overlap", "by chance")
    return [*tables, screen.table(head if first else head[:2], pairs)] if pairs else tables


def _shown(value: float | None, form: Callable[[float], str]) -> str:
    return "-" if value is None else form(value)
