"""`eutectic align`: where the units of one model stand in another, for models that were trained apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from eutectic.cli import collect, options, scoring, screen, values
from eutectic.errors import NumericError, Problem, RecipeError

if TYPE_CHECKING:
    from eutectic.alignment import Cost
    from eutectic.checkpoint import Alignment


class Method(StrEnum):
    """By what units are matched."""

    weights = "weights"
    orthogonal = "orthogonal"
    activations = "activations"


A = Annotated[str | None, typer.Argument(help="The model that stays.", metavar="A", show_default=False)]
B = Annotated[
    str | None, typer.Argument(help="The model that moves, of the same architecture.", metavar="B", show_default=False)
]
Out = Annotated[str | None, typer.Option(help="Folder to write the alignment to.", metavar="PERM")]
Checked = Annotated[
    str | None, typer.Option(help="Prove the symmetries of this model instead, in float64.", metavar="MODEL")
]
How = Annotated[
    Method,
    typer.Option(
        help="How units are matched. orthogonal: by weights, the residual stream may turn; activations: with --data."
    ),
]
Data = Annotated[
    str | None, typer.Option(help="Text: .jsonl has one document a line, else one document.", metavar="FILE")
]
Seed = Annotated[int, typer.Option(min=0, help="Draws the order of the steps, restarts and samples.")]
Restarts = Annotated[int, typer.Option(min=0, help="Further ascents from random orders; the best counts.")]
Memory = Annotated[str, typer.Option(help="For tensors that are kept between reads.", metavar="SIZE")]
Replace = Annotated[bool, typer.Option("--replace", help="Replace PERM if it exists.")]


def align(
    a: A = None,
    b: B = None,
    out: Out = None,
    check: Checked = None,
    method: How = Method.weights,
    data: Data = None,
    samples: collect.Samples = None,
    field: collect.Field = "text",
    length: collect.Length = None,
    batch: collect.Size = 8,
    seed: Seed = 0,
    restarts: Restarts = 0,
    memory: Memory = "1GiB",
    device: options.Device = "cpu",
    replace: Replace = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the order and bases of B's units in which it stands nearest to A. A recipe merges B so: `aligned: PERM`."""
    with screen.refusals(json):
        from eutectic import api
        from eutectic.statistics import Options

        if check is not None:
            if a is not None:
                raise RecipeError(Problem("M603", "proves one model and aligns none", "--check", "leave A and B out"))
            _refuse(
                "with --check", out=out, replace=replace, restarts=restarts, data=data, samples=samples, length=length
            )
            _prove(check, seed, json=json, quiet=quiet)
            return
        if a is None or b is None:
            hint = "or `eutectic align --check MODEL`"
            raise RecipeError(Problem("M603", "two models are needed: A, which stays, and B", "A B", hint))
        if data is None:
            _refuse("without --data", samples=samples, length=length)
        if out is None:
            _refuse("without --out", replace=replace)
        api.check_device(device)
        with _status(quiet=json or quiet) as tell:
            found = api.align(
                a,
                b,
                method=method.value,
                data=data,
                seed=seed,
                restarts=restarts,
                memory=values.size(memory, "--memory"),
                options=Options(samples=samples, field=field, length=length, batch=batch, seed=seed, device=device),
                tell=tell,
                on_plan=lambda cost: None if json or quiet else _show_cost(cost),
                out=out,
                replace=replace,
            )
        if json:
            screen.print_json({"path": out, **found.as_json()})
        elif not quiet:
            _show(found, out)


def _refuse(so: str, **given: object) -> None:
    """Raises `RecipeError` (M603) for options that have no effect."""
    useless = [f"--{name}" for name, value in given.items() if value]
    if useless:
        raise RecipeError([Problem("M603", f"has no effect {so}", name, "leave it out") for name in useless])


def _prove(model: str, seed: int, *, json: bool, quiet: bool) -> None:
    from eutectic import api

    table, check = api.prove(model, seed=seed)
    if json:
        screen.print_json({"symmetries": table.origin, **check.as_json()})
    if not check.holds:
        if json:
            raise typer.Exit(1)
        raise NumericError(Problem("G117", str(check), model))
    if not quiet and not json:
        screen.out().print(f"[green]proved[/] {screen.text(f'{table.origin}: {check}')}", soft_wrap=True)


def _show_cost(cost: Cost) -> None:
    largest = max(cost.assignments, default=0)
    took = f"{cost.flops / 1e9:,.3g} GFLOP and {values.shown(cost.read)} a sweep, up to {largest:,} units at a time"
    text = f"{took}, {values.shown(cost.memory)} beside --memory"
    screen.out().print(f"[dim]matching  [/]  {screen.text(text)}", soft_wrap=True)


def _show(found: Alignment, out: str | None) -> None:
    console = screen.out()
    before, after = found.distance
    rows = {
        "matched by": f"{found.method}; {found.symmetries.origin}",
        "stays": found.reference.label,
        "moves": found.model.label,
        "distance²": f"{before:.4g} before, {after:.4g} after: {found.gain:.1%} less",
    }
    if found.objective:
        first, *rest = found.objective
        sweeps = f" in {len(rest)} sweep{'s' * (len(rest) != 1)}"
        rows["objective"] = f"{first:.6g} → {rest[-1]:.6g}{sweeps}" if rest else f"{first:.6g}"
    for key, value in rows.items():
        console.print(f"[dim]{key:<10}[/]  {screen.text(value)}", soft_wrap=True)
    if found.changes:
        head = ("units", "number", "moved", "distance² before", "after")
        console.print()
        console.print(scoring.table(head, list(_rows(found))))
    for note in found.notes:
        console.print(f"[dim]note:[/] {screen.text(note)}", soft_wrap=True)
    if out is not None:
        console.print(f"{screen.text(out)}  [dim]`aligned: {screen.text(out)}` beside the model in a recipe[/]")


def _rows(found: Alignment) -> Iterator[tuple[str, ...]]:
    """Groups of all layers together, and the bases that change."""
    gathered: dict[str, dict[str, float]] = {}
    for name, change in found.changes.items():
        sums = gathered.setdefault(re.sub(r"\d+", "*", name), dict.fromkeys(change, 0.0))
        for key, value in change.items():
            sums[key] += value
    for name, sums in gathered.items():
        distances = (f"{sums['before']:.4g}", f"{sums['after']:.4g}")
        yield name, f"{sums['units']:,.0f}", f"{sums['moved']:,.0f}", *distances
    bases: dict[str, list[int]] = {}
    for name, gauge in found.symmetries.gauges.items():
        count = 1 if gauge.of is None else found.symmetries.groups[gauge.of].size
        numbers = bases.setdefault(re.sub(r"\d+", "*", name), [0, 0])
        numbers[0] += count
        numbers[1] += count if name in found.moves.matrices else 0
    for name, (count, moved) in bases.items():
        yield f"{name} (bases)", f"{count:,}", f"{moved:,}", "", ""


@contextmanager
def _status(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """How far matching is, on standard error if that is a terminal."""
    console = screen.err()
    if quiet or not console.is_terminal:
        yield lambda said: None
        return
    with console.status("reading") as status:
        yield lambda said: status.update(screen.text(said))
