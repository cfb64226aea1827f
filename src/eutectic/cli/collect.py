"""`eutectic collect`: statistics of a model over data, for the methods that merge with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eutectic.cli import options, screen, values
from eutectic.cli.elsewhere import Command
from eutectic.errors import Problem, RecipeError, several

if TYPE_CHECKING:
    from eutectic.statistics import Collected, Planned


class Labels(StrEnum):
    """Whose labels the Fisher information is taken with."""

    model = "model"
    data = "data"


Model = Annotated[str, typer.Argument(help="The model: a folder, a file, a hub id, or a recipe.", metavar="MODEL")]
Out = Annotated[str, typer.Argument(help="Folder to make.", metavar="OUT")]
Data = Annotated[
    list[str], typer.Option(help="Text: .jsonl has one document a line, else one document. Given once.", metavar="FILE")
]
Samples = Annotated[
    int | None, typer.Option(min=1, help="So many sequences, drawn by --seed.", metavar="N", show_default="all")
]
Field = Annotated[str, typer.Option(help="Key of the text in .jsonl.", metavar="KEY")]
Length = Annotated[int | None, typer.Option(min=2, help="Tokens a sequence at most.", metavar="N", show_default="512")]
Pack = Annotated[bool, typer.Option("--pack", help="Join documents into full sequences.")]
Size = Annotated[int, typer.Option("--batch-size", min=1, help="Sequences a forward pass.", metavar="N")]
Seed = Annotated[int, typer.Option(min=0, help="Draws the samples, and labels from the model.")]
DType = Annotated[str | None, typer.Option(help="Dtype of the arithmetic; sums are float32.", show_default="as stored")]
Memory = Annotated[
    str | None,
    typer.Option(
        help="For the model and the sums of one pass over the data; there are as many passes as that takes.",
        metavar="SIZE",
        show_default="one pass",
    ),
]
ShardSize = Annotated[str, typer.Option(help="Largest output file.", metavar="SIZE")]
Replace = Annotated[bool, typer.Option("--replace", help="Replace OUT if it exists.")]

collect = typer.Typer(help="Collect statistics of a model over data, which methods merge with.", no_args_is_help=True)


@collect.command(cls=Command)
def fisher(
    model: Model,
    out: Out,
    data: Data,
    labels: Annotated[Labels, typer.Option(help="Whose labels: the model's own, or those of the data.")] = Labels.model,
    samples: Samples = None,
    field: Field = "text",
    length: Length = None,
    pack: Pack = False,
    batch: Size = 8,
    seed: Seed = 0,
    device: options.Device = "cpu",
    dtype: DType = None,
    memory: Memory = None,
    shard_size: ShardSize = "5GB",
    replace: Replace = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Collect the diagonal Fisher information of every parameter, for fisher."""
    _collect("fisher", {**locals(), "labels": labels.value})


@collect.command(cls=Command)
def gram(
    model: Model,
    out: Out,
    data: Data,
    samples: Samples = None,
    field: Field = "text",
    length: Length = None,
    pack: Pack = False,
    batch: Size = 8,
    seed: Seed = 0,
    device: options.Device = "cpu",
    dtype: DType = None,
    memory: Memory = None,
    shard_size: ShardSize = "5GB",
    replace: Replace = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Collect Gram matrices of the inputs of linear layers and convolutions, for regmean."""
    _collect("gram", locals())


@collect.command(cls=Command)
def activations(
    model: Model,
    out: Out,
    data: Data,
    samples: Samples = None,
    field: Field = "text",
    length: Length = None,
    pack: Pack = False,
    batch: Size = 8,
    seed: Seed = 0,
    device: options.Device = "cpu",
    dtype: DType = None,
    memory: Memory = None,
    shard_size: ShardSize = "5GB",
    replace: Replace = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Collect mean and mean square of every input of linear layers and convolutions."""
    _collect("activations", locals())


@collect.command(cls=Command)
def merge(
    parts: Annotated[
        list[str], typer.Argument(help="Folders of statistics, of one model over different data.", metavar="PART...")
    ],
    out: Out,
    shard_size: ShardSize = "5GB",
    replace: Replace = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Merge statistics that were collected of one model over parts of the data."""
    with screen.refusals(json):
        from eutectic import statistics

        done = statistics.merge(parts, out, replace=replace, shard_bytes=values.size(shard_size, "--shard-size"))
        if json:
            screen.print_json(asdict(done))
        elif not quiet:
            console, where = screen.out(), screen.text(done.path)
            if done.already_complete:
                console.print(f"[green]nothing to do[/]: {where} holds these statistics already", soft_wrap=True)
                return
            found = f"{several(done.tensors, 'tensor')}, {several(done.samples, 'sample')}"
            console.print(f"[green]merged[/] {several(done.parts, 'part')}, {found}")
            console.print(where, soft_wrap=True)


def _collect(kind: Any, given: dict[str, Any]) -> None:
    """Does what a command was asked; its arguments are those of `statistics.Options`, sizes as text."""
    model, out, data = (given.pop(key) for key in ("model", "out", "data"))
    json, quiet = given.pop("json"), given.pop("quiet")
    with screen.refusals(json, screen.RESUMES):
        from eutectic import api
        from eutectic.statistics import Options

        if len(data) > 1:
            hint = "join the files, or collect of each and join the statistics with `eutectic collect merge`"
            raise RecipeError(Problem("M603", f"takes one file, not {len(data)}", "--data", hint))
        given["shard_bytes"] = values.size(given.pop("shard_size"), "--shard-size")
        if given["memory"] is not None:
            given["memory"] = values.size(given["memory"], "--memory")
        with ExitStack() as bars:
            told = _Told(bars, hidden=quiet or json)
            done = api.collect(
                kind, model, data[0], out, options=Options(**given), on_plan=told.of_plan, progress=told.of_samples
            )
        if json:
            screen.print_json(as_json(done))
        elif not quiet:
            show(done)


class _Told:
    """What is told before and while data are gone through."""

    def __init__(self, bars: ExitStack, *, hidden: bool) -> None:
        self._bars, self._hidden = bars, hidden
        self._report: Callable[[int], None] = lambda samples: None

    def of_plan(self, planned: Planned) -> None:
        """Shows what will be done, and starts the bar."""
        if not self._hidden:
            show_plan(planned)
        total = (planned.samples or 0) * len(planned.passes.units)
        self._report = self._bars.enter_context(_bar(total, quiet=self._hidden))

    def of_samples(self, samples: int) -> None:
        """Moves the bar on."""
        self._report(samples)


@contextmanager
def _bar(total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar over samples on standard error, if that is a terminal."""
    console = screen.err()
    if quiet or not total or not console.is_terminal:
        yield lambda samples: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("samples", total=total)
        yield lambda samples: bar.advance(task, samples)


def show_plan(planned: Planned) -> None:
    """The plan, a line a fact."""
    console, passes = screen.out(), planned.passes
    shared = f", {several(planned.shared, 'weight', 'shares', 'share')} theirs" if planned.shared else ""
    more = len(passes.units) > 1
    rows = {
        "statistics": f"{planned.kind} of {planned.model}",
        "samples": f"{planned.samples:,}" + (f", gone through {len(passes.units)} times" if more else ""),
        "tensors": f"{planned.tensors}, {values.shown(passes.total_bytes)}{shared}",
        "memory": f"model {values.shown(passes.model_bytes)}, sums {values.shown(passes.sums_bytes)}"
        + (f" in each of {len(passes.units)} passes" if more else ""),
    }
    for key, value in rows.items():
        console.print(f"[dim]{key:<10}[/]  {screen.text(value)}", soft_wrap=True)
    for note in planned.notes:
        console.print(f"[yellow]note[/] {screen.text(note)}", soft_wrap=True)
    for reason in dict.fromkeys(planned.left_out.values()):
        names = [name for name, why in planned.left_out.items() if why == reason]
        console.print(f"[yellow]note[/] left out: {screen.text(_listed(names))}: {screen.text(reason)}", soft_wrap=True)


def show(done: Collected) -> None:
    """What was done."""
    console, where = screen.out(), screen.text(done.path)
    if done.already_complete:
        console.print(f"[green]nothing to do[/]: {where} holds these statistics already", soft_wrap=True)
        return
    if done.unseen:
        zero = several(len(done.unseen), "tensor", "is", "are")
        message = f"{zero} zero, as no data reached their layers: {_listed(list(done.unseen))}"
        console.print(f"[yellow]note[/] {screen.text(message)}", soft_wrap=True)
    count = several(done.planned.tensors, "tensor")
    console.print(f"[green]collected[/] {count} from {several(done.samples or 0, 'sample')}")
    console.print(where, soft_wrap=True)


def as_json(done: Collected) -> dict[str, Any]:
    """What was done, as plain data."""
    planned = done.planned
    return {
        "path": done.path,
        "kind": planned.kind,
        "samples": done.samples,
        "tensors": planned.tensors,
        "bytes": planned.passes.total_bytes,
        "passes": len(planned.passes.units),
        "left_out": planned.left_out,
        "unseen": list(done.unseen),
        "already_complete": done.already_complete,
    }


def _listed(names: list[str]) -> str:
    from eutectic.errors import listed

    return listed(names)
