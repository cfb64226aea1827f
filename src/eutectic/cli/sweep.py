"""`eutectic sweep`: what every merge of a sweep scores, and the best of them, written if asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from eutectic.cli import options, scoring, screen
from eutectic.cli.merge import as_json, show

if TYPE_CHECKING:
    from eutectic.search import Tuning


Out = Annotated[
    str | None, typer.Argument(help="Folder for the chosen merge; without it nothing is written.", metavar="[OUT]")
]
Over = Annotated[
    list[str] | None,
    typer.Option(
        help="Values to try: parameters.t=0:1:0.1 or 'parameters.t=[0.1, 0.3]'. Repeatable.", metavar="KEY=VALUES"
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task", "--eval", help="A task file, or KIND:DATA; the first is the target. Repeatable.", metavar="TASK"
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(help="What must hold of the chosen: 'TASK <= base + 0.02'. Repeatable.", metavar="CONDITION"),
]


def sweep(
    recipe: options.Recipe,
    out: Out = None,
    over: Over = None,
    task: Tasks = None,
    keep: Keep = None,
    html: scoring.Html = None,
    set_: options.Set = None,
    device: scoring.Device = "cpu",
    batch: scoring.Batch = 8,
    limit: scoring.Limit = None,
    seed: scoring.Seed = 0,
    cache: scoring.Cache = None,
    no_cache: scoring.NoCache = False,
    threads: options.Threads = None,
    memory: options.Memory = "1GiB",
    shard_size: scoring.ShardSize = "5GB",
    replace: scoring.Replace = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Score the merges of a sweep without writing them, and choose the best. `eutectic merge` writes all of them."""
    with screen.refusals(json, scoring.stopped(no_cache)):
        from eutectic import api

        if html is not None:
            api.check_report_place(html)
        with scoring.watched(hidden=quiet or json) as watch:
            done = api.tune(
                recipe,
                out,
                over=over or [],
                tasks=task or [],
                keep=keep or [],
                overrides=set_ or [],
                settings=scoring.settings(device, batch, limit, seed),
                cache=scoring.kept(cache, no_cache),
                options=options.writing(threads, memory, shard_size, replace),
                watch=watch,
            )
        if html is not None:
            api.write_tuning_report(done.found, html)
        if json:
            screen.print_json({**done.found.as_json(), "merge": as_json(done.merge) if done.merge else None})
        elif not quiet:
            _show(done.found)
            if done.merge is not None:
                show(done.merge)


def _show(found: Tuning) -> None:
    from eutectic.report import search_html as words

    console = screen.out()
    for task in found.tasks:
        first = next(iter(found.scores.values()))[task]
        order = "higher" if first.higher_is_better else "lower"
        console.print(f"[bold]{screen.text(task)}[/]: {screen.text(first.metric)} ({order} is better)", soft_wrap=True)
        console.print(scoring.table(words.tuning_head(found, task), words.tuning_rows(found, task)))
        console.print()
    console.print(f"[bold]{screen.text(words.tuning_in_words(found))}[/]", soft_wrap=True)
    for note in found.notes:
        console.print(f"[yellow]note[/] {screen.text(note)}", soft_wrap=True)
