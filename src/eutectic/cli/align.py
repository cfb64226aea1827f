"""`eutectic align`: where the units of one model stand in another, for models that were trained apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eutectic.cli import collect, options, scoring, screen, values
from eutectic.errors import NumericError, Problem, RecipeError, several
from eutectic.names import numberless

if TYPE_CHECKING:
    from eutectic.alignment import Cost
    from eutectic.checkpoint import Alignment


class Method(StrEnum):
    """By what units are matched."""

    weights = "weights"
    orthogonal = "orthogonal"
    activations = "activations"
    universe = "universe"
    mean = "mean"


# Those for three models or more.
MANY = (Method.universe, Method.mean)
Models = Annotated[
    list[str] | None,
    typer.Argument(
        help="The model that stays, and those that move, of the same architecture.",
        metavar="A B...",
        show_default=False,
    ),
]
Out = Annotated[
    str | None, typer.Option(help="Folder for the alignment; of several models, for one folder each.", metavar="PERM")
]
Checked = Annotated[
    str | None, typer.Option(help="Prove the symmetries of this model instead, in float64.", metavar="MODEL")
]
How = Annotated[
    Method | None,
    typer.Option(
        help="How units are matched. orthogonal: by weights, the residual stream may turn; activations: with --data; "
        "universe and mean: three models or more, together.",
        show_default="weights, or universe",
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
    models: Models = None,
    out: Out = None,
    check: Checked = None,
    method: How = None,
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

        named = models or []
        few = {"restarts": restarts, "data": data, "samples": samples, "length": length}
        if check is not None:
            if named:
                raise RecipeError(Problem("M603", "proves one model and aligns none", "--check", "leave A and B out"))
            _refuse("with --check", out=out, replace=replace, method=method, **few)
            _prove(check, seed, json=json, quiet=quiet)
            return
        how = _checked(len(named), method)
        if out is None:
            _refuse("without --out", replace=replace)
        api.check_device(device)
        common: dict[str, Any] = {"method": how, "seed": seed, "memory": values.size(memory, "--memory")}
        common |= {"out": out, "replace": replace}
        if len(named) > 2:
            _refuse("with more than two models", **few)
            _align_all(named, common, json=json, quiet=quiet)
            return
        if data is None:
            _refuse("without --data", samples=samples, length=length)
        with _status(quiet=json or quiet) as tell:
            found = api.align(
                *named,
                restarts=restarts,
                data=data,
                options=Options(samples=samples, field=field, length=length, batch=batch, seed=seed, device=device),
                tell=tell,
                on_plan=lambda cost: None if json or quiet else _show_cost(cost),
                **common,
            )
        if json:
            screen.print_json({"path": out, **found.as_json()})
        elif not quiet:
            _show(found, out)


def _checked(count: int, method: Method | None) -> str:
    """The method for so many models. Raises `RecipeError` (M603)."""
    if count < 2:
        hint = "or `eutectic align --check MODEL`"
        raise RecipeError(Problem("M603", "two models are needed: A, which stays, and B", "A B", hint))
    if method is None:
        return (Method.weights if count == 2 else Method.universe).value
    if (method in MANY) != (count > 2):
        known = ", ".join(one for one in Method if (one in MANY) == (count > 2))
        takes = "three models or more" if method in MANY else "two models"
        raise RecipeError(
            Problem("M603", f"{method.value} takes {takes}, not {count}", "--method", f"choose of {known}")
        )
    return method.value


def _align_all(models: list[str], common: dict[str, Any], *, json: bool, quiet: bool) -> None:
    """Several models to the first, together."""
    from eutectic import api

    out = common["out"]
    with _status(quiet=json or quiet) as tell:
        found = api.align_all(models, tell=tell, **common)
    if json:
        screen.print_json({"path": out, "alignments": {name: one.as_json() for name, one in found.items()}})
    elif not quiet:
        _show_all(found, out)


def _show_all(found: dict[str, Alignment], out: str | None) -> None:
    console = screen.out()
    first = next(iter(found.values()))
    console.print(f"[dim]matched by[/]  {screen.text(f'{first.method}; {first.symmetries.origin}')}", soft_wrap=True)
    console.print(f"[dim]stays     [/]  {screen.text(first.reference.label)}", soft_wrap=True)
    console.print()
    rows = []
    for name, one in found.items():
        units, moved = (sum(change[key] for change in one.changes.values()) for key in ("units", "moved"))
        before, after = one.distance
        rows.append((name, f"{moved:,.0f} of {units:,.0f}", f"{before:.4g}", f"{after:.4g}", f"{100 * one.gain:.1f} %"))
    console.print(scoring.table(("model", "units moved", "distance² before", "after", "less"), rows))
    for note in dict.fromkeys(f"{name}: {note}" for name, one in found.items() for note in one.notes):
        console.print(f"[dim]note:[/] {screen.text(note)}", soft_wrap=True)
    if out is not None:
        written = " (-- for a / of its name)" if any("/" in name for name in found) else ""
        told = f"`aligned: {screen.text(out)}/MODEL`{written} beside each model in a recipe"
        console.print(f"{screen.text(out)}  [dim]{told}[/]")


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
    sweeps = (
        f"{cost.flops / 1e9:,.3g} GFLOP and {values.shown(cost.read)} a sweep, {several(cost.sweeps, 'sweep')} at most"
    )
    text = f"{sweeps}, up to {several(largest, 'unit')} at a time, {values.shown(cost.memory)} beside --memory"
    screen.out().print(f"[dim]matching  [/]  {screen.text(text)}", soft_wrap=True)


def _show(found: Alignment, out: str | None) -> None:
    console = screen.out()
    before, after = found.distance
    rows = {
        "matched by": f"{found.method}; {found.symmetries.origin}",
        "stays": found.reference.label,
        "moves": found.model.label,
        "distance²": f"{before:.4g} before, {after:.4g} after: {100 * found.gain:.1f} % less",
    }
    if found.objective:
        first, *rest = found.objective
        rows["objective"] = f"{first:.6g} → {rest[-1]:.6g} in {several(len(rest), 'sweep')}" if rest else f"{first:.6g}"
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
        sums = gathered.setdefault(numberless(name), dict.fromkeys(change, 0.0))
        for key, value in change.items():
            sums[key] += value
    for name, sums in gathered.items():
        distances = (f"{sums['before']:.4g}", f"{sums['after']:.4g}")
        yield name, f"{sums['units']:,.0f}", f"{sums['moved']:,.0f}", *distances
    bases: dict[str, list[int]] = {}
    for name, gauge in found.symmetries.gauges.items():
        count = 1 if gauge.of is None else found.symmetries.groups[gauge.of].size
        numbers = bases.setdefault(numberless(name), [0, 0])
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
