"""`eutectic merge`: models in, one folder out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eutectic.cli import options, screen, values
from eutectic.cli import plan as planning
from eutectic.errors import several

if TYPE_CHECKING:
    from eutectic.api import Merge, Sweep
    from eutectic.plan import Plan
    from eutectic.run.budget import Budget


class Nonfinite(StrEnum):
    """What to do about NaN and infinity in an input."""

    stop = "stop"
    tally = "count"


def merge(
    recipe: options.Recipe,
    out: Annotated[str, typer.Argument(help="Folder to make.", metavar="OUT")],
    set_: options.Set = None,
    seed: options.Seed = None,
    dtype: options.DType = None,
    threads: options.Threads = None,
    memory: options.Memory = "1GiB",
    device: options.Device = "cpu",
    shard_size: Annotated[str, typer.Option(help="Largest output file.", metavar="SIZE")] = "5GB",
    replace: Annotated[bool, typer.Option("--replace", help="Replace OUT if it exists.")] = False,
    nonfinite: Annotated[
        Nonfinite, typer.Option(help="NaN or infinity in an input: stop, or count and go on.")
    ] = Nonfinite.stop,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Merge models into the folder OUT, or a sweep into folders in it. The same command resumes if interrupted."""
    with screen.refusals(json, screen.RESUMES):
        from eutectic import api

        chosen = options.writing(threads, memory, shard_size, replace, device, nonfinite.value)
        with ExitStack() as bars:
            told = Told(bars, hidden=quiet or json)
            common: dict[str, Any] = {"overrides": set_ or [], "seed": seed, "dtype": dtype, "options": chosen}
            done: Merge | Sweep
            if api.is_sweep(recipe, overrides=set_ or []):
                done = api.sweep(recipe, out, on_plan=told.of_sweep, progress=told.of_bytes, **common)
            else:
                done = api.merge(recipe, out, on_plan=told.of_plan, progress=told.of_bytes, **common)
        merges = [done] if isinstance(done, api.Merge) else list(done.merges.values())
        if json:
            screen.print_json(as_json(done) if isinstance(done, api.Merge) else _sweep_as_json(done))
        for merged in [] if quiet or json else merges:
            show(merged)
        for note in [] if quiet or json or isinstance(done, api.Merge) else done.notes:
            screen.out().print(f"[yellow]note[/] {screen.text(note)}")


class Told:
    """What the user is told before and while a merge runs."""

    def __init__(self, bars: ExitStack, *, hidden: bool) -> None:
        self._bars, self._hidden = bars, hidden
        self._report: Callable[[int], None] = lambda nbytes: None

    def of_plan(self, planned: Plan, budget: Budget, notes: Sequence[str]) -> None:
        """Shows the plan of a merge."""
        self.of_sweep([], planned, budget, notes)

    def of_sweep(self, labels: Sequence[str], planned: Plan, budget: Budget, notes: Sequence[str]) -> None:
        """Shows the plan of a sweep's first merge, and starts the bar."""
        if not self._hidden:
            planning.show(planned, budget, notes)
            if labels:
                planning.show_sweep(labels, planned)
        total = planned.bytes_out * max(1, len(labels))
        self._report = self._bars.enter_context(screen.progress("merging", total, quiet=self._hidden))

    def of_bytes(self, nbytes: int) -> None:
        """Moves the bar on."""
        self._report(nbytes)


def _sweep_as_json(done: Sweep) -> dict[str, object]:
    return {
        "path": done.path,
        "notes": list(done.notes),
        "merges": {label: {"values": done.choices[label], **as_json(merged)} for label, merged in done.merges.items()},
    }


def show(done: Merge) -> None:
    """What was done, in two lines."""
    console = screen.out()
    where = screen.text(done.path)
    if done.already_complete:
        console.print(f"[green]nothing to do[/]: {where} is this merge already", soft_wrap=True)
        return
    speed = values.shown((done.plan.bytes_in + done.plan.bytes_out) / max(done.seconds, 1e-9))
    size = values.shown(done.plan.bytes_out)
    resumed = f", {several(done.resumed, 'tensor')} from the interrupted run" if done.resumed else ""
    count = several(len(done.plan.jobs), "tensor")
    console.print(f"[green]merged[/] {count}, {size}, in {done.seconds:.1f} s ({speed}/s in and out{resumed})")
    if done.nonfinite:
        found = f"{several(done.nonfinite, 'NaN or infinite value')} in the inputs"
        console.print(f"[yellow]note[/] {found}; eutectic.json says where")
    console.print(f"{where}  [dim]eutectic verify checks it[/]", soft_wrap=True)


def as_json(done: Merge) -> dict[str, object]:
    """What was done, as plain data."""
    return {
        "path": done.path,
        "method": done.plan.method.name,
        "tensors": len(done.plan.jobs),
        "bytes_in": done.plan.bytes_in,
        "bytes_out": done.plan.bytes_out,
        "seconds": round(done.seconds, 3),
        "resumed": done.resumed,
        "already_complete": done.already_complete,
        "nonfinite": done.nonfinite,
        "seed": done.plan.seed,
        "notes": list(done.notes),
    }
