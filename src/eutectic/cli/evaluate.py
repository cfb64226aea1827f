"""`eutectic evaluate`: what models and merges score, with intervals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eutectic.cli import options, scoring, screen

if TYPE_CHECKING:
    from rich.table import Table

    from eutectic.evaluate import Difference, Evaluation, Score


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(help="Models and recipes: a recipe's merge is evaluated unwritten.", metavar="MODEL..."),
    ],
    task: Annotated[
        list[str],
        typer.Option(
            "--task",
            "--eval",
            help="A task file, or KIND:DATA, as perplexity:text.txt. Repeatable.",
            metavar="TASK",
        ),
    ],
    device: options.Device = "cpu",
    batch: scoring.Batch = 8,
    limit: scoring.Limit = None,
    seed: scoring.Seed = 0,
    cache: scoring.Cache = None,
    no_cache: scoring.NoCache = False,
    json: options.Json = False,
) -> None:
    """Score models, and merges that are never written: perplexity, choices, answers, similarity, your own functions."""
    with screen.refusals(json, scoring.stopped(no_cache)):
        from eutectic import api
        from eutectic.evaluate import Settings

        with _progress(len(models) * len(task), quiet=json) as told:
            run = Settings(device=device, batch=batch, limit=limit, seed=seed, tell=told.done)
            found = api.evaluate_models(
                models, task, settings=run, cache=scoring.kept(cache, no_cache), on_start=told.start
            )
        if json:
            screen.print_json(found.as_json())
        else:
            _show(found)


class _Told:
    """What is shown while models are scored; a bar where there is one."""

    def __init__(self, bar: Any = None, number: Any = None) -> None:
        self._bar, self._number = bar, number

    def start(self, model: str, task: str) -> None:
        if self._bar is not None:
            self._bar.update(self._number, description=screen.text(f"{task} of {model}"))

    def done(self, share: float) -> None:
        if self._bar is not None:
            self._bar.advance(self._number, share)


@contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[_Told]:
    """A bar over models and tasks on standard error, if that is a terminal."""
    console = screen.err()
    if quiet or not console.is_terminal:
        yield _Told()
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Told(bar, bar.add_task("reading the data", total=total))


def _show(found: Evaluation) -> None:
    console = screen.out()
    for number, name in enumerate(found.tasks):
        scores = found.scores[name]
        first = next(iter(scores.values()))
        order = "higher" if first.higher_is_better else "lower"
        if number:
            console.print()
        console.print(f"[bold]{screen.text(name)}[/]: {screen.text(first.metric)} ({order} is better)", soft_wrap=True)
        console.print(_table(found, name))
        if any(gap is None and label != found.best(name) for label, gap in found.to_best(name).items()):
            said = "some models have other tokens, so their scores are not of the same items"
            console.print(f"[yellow]note[/] {said}; perplexity with `metric: bits_per_byte` compares them")
    for note in found.notes:
        console.print(f"[yellow]note[/] {screen.text(note)}", soft_wrap=True)
    if found.cached:
        console.print(f"[dim]{found.cached} of these scores were known; --no-cache measures anew[/]")


def _table(found: Evaluation, name: str) -> Table:
    scores, best, gaps = found.scores[name], found.best(name), found.to_best(name)
    head = ("model", "score", "95 % interval", "items", "less the best", "95 % interval", "")
    table = screen.table(head if len(scores) > 1 else head[:4])
    for label, score in scores.items():
        own = label == best and len(scores) > 1
        measured = (screen.text(label), _number(score.value), _interval(score), str(len(score.items)))
        row = (*measured, *(("-", "-", "best") if own else _gap(gaps[label])))
        table.add_row(*row[: len(table.columns)], style="bold" if own else None)
    return table


def _gap(gap: Difference | None) -> tuple[str, str, str]:
    if gap is None:
        return "-", "-", "other items"
    said = "undecided" if gap.better is None else "worse" if not gap.better else "better"
    return f"{gap.value:+.4g}", _interval(gap), said


def _interval(thing: Score | Difference) -> str:
    return "-" if thing.interval is None else f"{_number(thing.interval[0])} to {_number(thing.interval[1])}"


def _number(value: float) -> str:
    return f"{value:.4g}"
