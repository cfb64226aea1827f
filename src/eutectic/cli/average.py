"""`eutectic average`: the checkpoints of a training run in, their average out."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from typing import Annotated

import typer

from eutectic.cli import options, screen
from eutectic.cli.merge import Told, as_json, show


class Kind(StrEnum):
    """How much each checkpoint counts."""

    uniform = "uniform"
    exponential = "exponential"
    ema = "ema"


def average(
    checkpoints: Annotated[
        list[str],
        typer.Argument(help="Checkpoints of one run, or patterns: 'run/checkpoint-*'.", metavar="CHECKPOINT..."),
    ],
    out: Annotated[str, typer.Argument(help="Folder to make.", metavar="OUT")],
    window: Annotated[
        Kind, typer.Option(help="uniform, exponential (by place), or ema (by step; the last two need --decay).")
    ] = Kind.uniform,
    decay: Annotated[
        float | None, typer.Option(help="Of a checkpoint (exponential) or of a step (ema), between 0 and 1.")
    ] = None,
    last: Annotated[int | None, typer.Option(help="Only so many, the latest.", metavar="N")] = None,
    until: Annotated[int | None, typer.Option(help="Only checkpoints up to this step.", metavar="STEP")] = None,
    dtype: options.DType = None,
    threads: options.Threads = None,
    memory: options.Memory = "1GiB",
    device: options.Device = "cpu",
    shard_size: Annotated[str, typer.Option(help="Largest output file.", metavar="SIZE")] = "5GB",
    replace: Annotated[bool, typer.Option("--replace", help="Replace OUT if it exists.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Average checkpoints of a training run into the folder OUT, in the order of the steps in their names."""
    with screen.refusals(json, screen.RESUMES):
        from eutectic import api

        chosen = options.writing(threads, memory, shard_size, replace, device)
        with ExitStack() as bars:
            told = Told(bars, hidden=quiet or json)
            done = api.average(
                checkpoints,
                out,
                window=window.value,
                decay=decay,
                last=last,
                until=until,
                dtype=dtype,
                options=chosen,
                on_plan=told.of_plan,
                progress=told.of_bytes,
            )
        if json:
            screen.print_json(as_json(done))
        elif not quiet:
            show(done)
