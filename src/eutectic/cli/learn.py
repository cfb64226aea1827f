"""`eutectic learn`: a recipe in, the same recipe with learned weights out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from eutectic.cli import options, scoring, screen, values
from eutectic.errors import several

if TYPE_CHECKING:
    from eutectic.search import Learned, LearnStep


class Parts(StrEnum):
    """What has weights of its own."""

    task = "task"
    layer = "layer"
    tensor = "tensor"


class Objective(StrEnum):
    """What is made small."""

    entropy = "entropy"
    cross_entropy = "cross-entropy"


Out = Annotated[str, typer.Argument(help="Recipe to write: a .yml file.", metavar="OUT")]
Data = Annotated[
    list[str],
    typer.Option(help="Text, .jsonl, or a perplexity task file. Repeatable: a batch of each a step.", metavar="FILE"),
]
Learn = Annotated[Parts, typer.Option("--learn", help="One weight for each model, or each model and layer or tensor.")]
Aim = Annotated[Objective, typer.Option(help="Entropy of the outputs, or cross-entropy of the text.")]
Steps = Annotated[int, typer.Option(min=1, help="Steps of Adam, at most.")]
Rate = Annotated[float, typer.Option("--lr", help="Rate of Adam.")]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Windows of text a batch.")]
Init = Annotated[
    float | None,
    typer.Option(help="What every weight begins at.", show_default="the recipe's, else 0.3, or equal if normalised"),
]
Clamp = Annotated[bool, typer.Option("--clamp/--no-clamp", help="Keep weights in [0, 1].")]
HeldOut = Annotated[float, typer.Option(help="Share of the data to choose the step by; 0 takes the last step.")]
Patience = Annotated[int, typer.Option(min=1, help="Stop after so many looks (one in ten steps) without gain.")]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Bound on resident memory, activations not counted.", metavar="SIZE", show_default="the machine's"
    ),
]
Log = Annotated[
    str | None,
    typer.Option(help="Every step, one JSON object a line.", metavar="FILE", show_default="OUT.learn.jsonl"),
]
Seed = Annotated[int, typer.Option(min=0, help="Draws the items of --limit, those held out, and the batches.")]
Replace = Annotated[bool, typer.Option("--replace", help="Write over OUT if it exists.")]


def learn(
    recipe: options.Recipe,
    out: Out,
    data: Data,
    learn_: Learn = Parts.task,
    objective: Aim = Objective.entropy,
    steps: Steps = 500,
    lr: Rate = 1e-3,
    batch_size: Batch = 16,
    init: Init = None,
    clamp: Clamp = True,
    held_out: HeldOut = 0.2,
    patience: Patience = 10,
    log: Log = None,
    html: scoring.Html = None,
    set_: options.Set = None,
    device: scoring.Device = "cpu",
    limit: scoring.Limit = None,
    seed: Seed = 0,
    memory: Memory = None,
    replace: Replace = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Learn the weights of a recipe by gradient, and write the recipe with the numbers in it for `eutectic merge`."""
    with screen.refusals(json, "stopped; the same command goes on after the last step"):
        from eutectic import api

        if html is not None:
            api.check_report_place(html)
        asked = {"by": learn_.value, "objective": objective.value, "steps": steps, "lr": lr, "init": init}
        asked |= {"clamp": clamp, "held_out": held_out, "patience": patience}
        with _watched(steps, hidden=quiet or json) as told:
            done = api.learn(
                recipe,
                out,
                data=data,
                overrides=set_ or [],
                settings=scoring.settings(device, batch_size, limit, seed),
                memory=None if memory is None else values.size(memory, "--memory"),
                log=log,
                replace=replace,
                on_step=told,
                **asked,  # type: ignore[arg-type]
            )
        if html is not None:
            api.write_learning_report(done, html)
        if json:
            screen.print_json({**done.as_json(), "path": out})
        elif not quiet:
            _show(done, out)


@contextmanager
def _watched(steps: int, *, hidden: bool) -> Iterator[Callable[[LearnStep], None]]:
    """A bar over the steps with the latest losses, on a terminal."""
    console = screen.err()
    if hidden or not console.is_terminal:
        yield lambda step: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console, transient=True) as bar:
        task = bar.add_task("reading the data", total=steps)
        held_out = ""

        def told(step: LearnStep) -> None:
            nonlocal held_out
            if step.held_out is not None:
                held_out = f", held out {step.held_out:.4g}"
            loss = "" if step.loss is None else f"loss {step.loss:.4g}"
            bar.update(task, completed=step.number, description=f"{loss}{held_out}".lstrip(", "))

        yield told


def _show(done: Learned, out: str) -> None:
    from eutectic.report import search_html as words

    console = screen.out()
    if done.already_complete:
        console.print(f"[green]nothing to do[/]: {screen.text(out)} has these weights already", soft_wrap=True)
        return
    console.print(scoring.table(words.LOOK_HEAD, words.look_rows(done)))
    console.print()
    console.print(scoring.table(words.weights_head(done), words.weights_rows(done)))
    console.print(f"\n[bold]{screen.text(words.learning_in_words(done))}[/]", soft_wrap=True)
    if done.resumed:
        console.print(f"[dim]{several(done.resumed, 'step', 'is', 'are')} from the interrupted run[/]")
    for note in done.notes:
        console.print(f"[yellow]note[/] {screen.text(note)}", soft_wrap=True)
    console.print(f"{screen.text(out)}  [dim]eutectic merge runs it[/]", soft_wrap=True)
