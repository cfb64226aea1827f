"""`eutectic plan`: what a merge would do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eutectic.cli import options, screen, values

if TYPE_CHECKING:
    from eutectic.plan import Plan
    from eutectic.run.budget import Budget


def plan(
    recipe: options.Recipe,
    set_: options.Set = None,
    seed: options.Seed = None,
    dtype: options.DType = None,
    threads: options.Threads = None,
    memory: options.Memory = "1GiB",
    device: options.Device = "cpu",
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor and its parameters.")] = False,
    json: options.Json = False,
) -> None:
    """Show what a merge would do, or every problem of the recipe. Reads headers, no weights."""
    with screen.refusals(json):
        from eutectic import api

        api.check_device(device)
        chosen = api.Options(threads=threads, memory=values.size(memory, "--memory"), device=device)
        planned = api.plan(recipe, overrides=set_ or [], seed=seed, dtype=dtype)
        budget = api.budget_for(planned, chosen)
        notes = [*planned.notes, *api.beside(planned).notes]
        if json:
            screen.print_json(as_json(planned, budget, notes))
        else:
            show(planned, budget, notes)
            if tensors:
                show_tensors(planned)
        planned.close()


def show(planned: Plan, budget: Budget, notes: Sequence[str]) -> None:
    """The plan in a dozen lines."""
    from rich.table import Table

    merged = sum(job.action == "merge" for job in planned.jobs)
    copied = len(planned.jobs) - merged
    console = screen.out()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("method", f"[bold]{planned.method.name}[/]  [dim]{planned.method.paper}[/]")
    for item in planned.inputs:
        size = sum(spec.nbytes for spec in item.specs.values())
        inside = "nested recipe, " if item.plan else ""
        about = f"{inside}{len(item.specs)} tensors, {values.shown(size)}"
        table.add_row(item.role, f"{screen.text(item.label)}  [dim]{about}[/]")
    parts = [f"{merged} merged"] + ([f"{copied} copied"] if copied else [])
    parts += [f"{len(planned.ties)} tied"] if planned.ties else []
    parts += [f"{len(planned.dropped)} dropped"] if planned.dropped else []
    table.add_row("tensors", ", ".join(parts))
    table.add_row("reads", values.shown(planned.bytes_in))
    table.add_row("writes", values.shown(planned.bytes_out))
    threads = f"{budget.threads} thread{'s' * (budget.threads > 1)}"
    table.add_row("memory", f"peak about {budget.peak_bytes >> 20} MiB with {threads}")
    unused = "" if planned.method.random else f" [dim](not used by {planned.method.name})[/]"
    table.add_row("seed", f"{planned.seed}{unused}")
    console.print(table)
    for note in notes:
        console.print(f"[yellow]note[/] {screen.text(note)}")


def show_tensors(planned: Plan) -> None:
    """One row a tensor."""
    from rich.table import Table

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in ("tensor", "dtype", "shape", "fate"):
        table.add_column(column, overflow="fold")
    for job in planned.jobs:
        fate = ", ".join(f"{name}={_value(value)}" for name, value in job.parameters.items()) or f"copied: {job.reason}"
        table.add_row(screen.text(job.name), job.spec.dtype, str(list(job.spec.shape)), screen.text(fate))
    screen.out().print(table)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join(_value(v) for v in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def as_json(planned: Plan, budget: Budget, notes: Sequence[str]) -> dict[str, Any]:
    """The whole plan as plain data."""
    return {
        "method": planned.method.name,
        "fingerprint": planned.fingerprint,
        "seed": planned.seed,
        "inputs": [{"role": item.role, **item.identity()} for item in planned.inputs],
        "bytes_in": planned.bytes_in,
        "bytes_out": planned.bytes_out,
        "threads": budget.threads,
        "peak_bytes": budget.peak_bytes,
        "tensors": [
            {
                "name": job.name,
                "dtype": job.spec.dtype,
                "shape": list(job.spec.shape),
                "action": job.action,
                "inputs": [{"model": planned.inputs[i].label, "tensor": name} for i, name in job.inputs],
                "parameters": dict(job.parameters),
                **({"reason": job.reason} if job.reason else {}),
            }
            for job in planned.jobs
        ],
        "tied": dict(planned.ties),
        "dropped": [{"model": model, "tensor": name, "reason": why} for model, name, why in planned.dropped],
        "notes": list(notes),
        "problems": [],
    }
