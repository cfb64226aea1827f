"""`eutectic soup`: many fine-tunes in, the average of those that do it good out."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from eutectic.cli import options, scoring, screen
from eutectic.cli.merge import as_json, show

if TYPE_CHECKING:
    from eutectic.api import Soup
    from eutectic.search import Choice


class Kind(StrEnum):
    """How the ingredients are chosen."""

    greedy = "greedy"
    uniform = "uniform"
    pruned = "pruned"
    learned = "learned"


class Parts(StrEnum):
    """What has weights of its own in a learned soup."""

    model = "model"
    layer = "layer"


Checkpoints = Annotated[
    list[str], typer.Argument(help="Fine-tunes of one base, or patterns: 'runs/*'.", metavar="CHECKPOINT...")
]
Out = Annotated[str, typer.Argument(help="Folder to make.", metavar="OUT")]
Chooser = Annotated[
    str | None,
    typer.Option("--task", "--eval", help="Choose by this task: a file, or KIND:DATA.", metavar="TASK"),
]
HeldOut = Annotated[
    list[str] | None,
    typer.Option(help="Compare on this task, which has no say in the choice. Repeatable.", metavar="TASK"),
]
TieBreak = Annotated[
    str | None,
    typer.Option(help="A loss that decides between equal scores, as nll (greedy, pruned).", metavar="METRIC"),
]
Log = Annotated[
    str | None,
    typer.Option(help="Every step, one JSON object a line.", metavar="FILE", show_default="OUT.soup.jsonl"),
]


def soup(
    checkpoints: Checkpoints,
    out: Out,
    task: Chooser = None,
    method: Annotated[Kind, typer.Option(help="How ingredients are chosen.")] = Kind.greedy,
    held_out: HeldOut = None,
    tie_break: TieBreak = None,
    by: Annotated[Parts, typer.Option(help="What has weights of its own in a learned soup.")] = Parts.model,
    epochs: Annotated[int, typer.Option(min=1, help="Passes of a learned soup over the task's data.")] = 5,
    rate: Annotated[float, typer.Option(help="Learning rate of a learned soup.")] = 0.05,
    log: Log = None,
    html: scoring.Html = None,
    device: scoring.Device = "cpu",
    batch: scoring.Batch = 8,
    limit: scoring.Limit = None,
    seed: scoring.Seed = 0,
    cache: scoring.Cache = None,
    no_cache: scoring.NoCache = False,
    dtype: options.DType = None,
    threads: options.Threads = None,
    memory: options.Memory = "1GiB",
    shard_size: scoring.ShardSize = "5GB",
    replace: scoring.Replace = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Average those of many fine-tunes whose average scores best, into the folder OUT. The same command resumes."""
    with screen.refusals(json, scoring.stopped(no_cache)):
        from eutectic import api

        if html is not None:
            api.check_report_place(html)
        chosen_by = {"task": task, "method": method.value, "held_out": held_out or [], "tie_break": tie_break}
        learned = {"by": by.value, "epochs": epochs, "rate": rate}
        with scoring.watched(hidden=quiet or json) as watch:
            done = api.soup(
                checkpoints,
                out,
                settings=scoring.settings(device, batch, limit, seed),
                cache=scoring.kept(cache, no_cache),
                log=log,
                dtype=dtype,
                options=options.writing(threads, memory, shard_size, replace),
                watch=watch,
                **chosen_by,  # type: ignore[arg-type]
                **learned,  # type: ignore[arg-type]
            )
        _report(done, html, json=json, quiet=quiet)


def _report(done: Soup, html: str | None, *, json: bool, quiet: bool) -> None:
    from eutectic import api

    assert done.merge is not None
    if html is not None:
        api.write_soup_report(done.choice, html)
    if json:
        screen.print_json({**done.choice.as_json(), "merge": as_json(done.merge)})
    elif not quiet:
        _show(done.choice)
        show(done.merge)


def _show(choice: Choice) -> None:
    from eutectic.report import search_html as words

    console = screen.out()
    if choice.steps:
        console.print(scoring.table(words.STEP_HEAD, [words.step_row(step) for step in choice.steps]))
    if choice.held_out:
        console.print()
        console.print(scoring.table(words.HELD_OUT_HEAD, words.held_out_rows(choice)))
    console.print(f"\n[bold]{screen.text(words.soup_in_words(choice))}[/]", soft_wrap=True)
    console.print(screen.text(", ".join(choice.ingredients)), soft_wrap=True)
    for part, shares in (choice.weights or {}).items():
        shown = ", ".join(f"{share:.4g}" for share in shares)
        console.print(f"[dim]weights{screen.text(' of ' + part if part else '')}[/] {shown}", soft_wrap=True)
