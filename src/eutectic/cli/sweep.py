"""`eutectic sweep`: what every merge of a sweep scores, and the best of them, written if asked for."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eutectic.cli import options, scoring, screen, values
from eutectic.cli.merge import Told, as_json, show

if TYPE_CHECKING:
    from eutectic.search import Tuning


def sweep(
    recipe: options.Recipe,
    out: Annotated[
        str | None, typer.Argument(help="Folder for the chosen merge; without it nothing is written.", metavar="[OUT]")
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            help="Values to try: parameters.t=0:1:0.1 or 'parameters.t=[0.1, 0.3]'. Repeatable.", metavar="KEY=VALUES"
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", "--eval", help="A task file, or KIND:DATA; the first is the target. Repeatable.", metavar="TASK"
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="What must hold of the chosen: 'TASK <= base + 0.02'. Repeatable.", metavar="CONDITION"),
    ] = None,
    html: Annotated[str | None, typer.Option(help="Write a report with curves.", metavar="FILE")] = None,
    set_: options.Set = None,
    eval_device: scoring.Device = "cpu",
    batch: scoring.Batch = 8,
    limit: scoring.Limit = None,
    seed: scoring.Seed = 0,
    cache: scoring.Cache = None,
    no_cache: scoring.NoCache = False,
    threads: options.Threads = None,
    memory: options.Memory = "1GiB",
    shard_size: Annotated[str, typer.Option(help="Largest output file.", metavar="SIZE")] = "5GB",
    replace: Annotated[bool, typer.Option("--replace", help="Replace OUT if it exists.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Score the merges of a sweep without writing them, and choose the best. `eutectic merge` writes all of them."""
    with screen.refusals(json):
        from eutectic import api

        if html is not None:
            api.check_report_place(html)
        chosen = api.Options(
            threads=threads,
            memory=values.size(memory, "--memory"),
            shard_bytes=values.size(shard_size, "--shard-size"),
            replace=replace,
        )
        hidden = quiet or json
        with ExitStack() as bars:
            told = Told(bars, hidden=hidden)
            watched = bars.enter_context(scoring.watched(hidden=hidden))

            def planned(*arguments: Any) -> None:
                watched.stop()
                told.of_plan(*arguments)

            done = api.tune(
                recipe,
                out,
                over=over or [],
                tasks=task or [],
                keep=keep or [],
                overrides=set_ or [],
                settings=scoring.settings(eval_device, batch, limit, seed),
                cache=scoring.kept(cache, no_cache),
                options=chosen,
                on_start=watched.start,
                on_plan=planned,
                progress=told.of_bytes,
            )
        if html is not None:
            api.write_tuning_report(done.found, html)
        if json:
            merged = None if done.merge is None else as_json(done.merge)
            screen.print_json({**done.found.as_json(), "merge": merged})
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
