"""Options that several commands have, said once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from eutectic.cli import values

if TYPE_CHECKING:
    from eutectic.api import Options

Recipe = Annotated[str, typer.Argument(help="Recipe: a YAML file.", metavar="RECIPE")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Change a value of the recipe: --set parameters.t=0.4. Repeatable.", metavar="KEY=VALUE"
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of random masks; overrides the recipe's.")]
DType = Annotated[
    str | None,
    typer.Option(help="Dtype of the output: bfloat16, float16, float32 or float64.", metavar="DTYPE"),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Worker threads.", show_default="all cores")]
Memory = Annotated[str, typer.Option(help="Bound on resident memory; it is kept.", metavar="SIZE")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def writing(
    threads: int | None, memory: str, shard_size: str, replace: bool, device: str = "cpu", nonfinite: str = "stop"
) -> Options:
    """How to write a merge, as the options say."""
    from eutectic import api

    return api.Options(
        threads=threads,
        memory=values.size(memory, "--memory"),
        shard_bytes=values.size(shard_size, "--shard-size"),
        replace=replace,
        device=device,
        nonfinite=nonfinite,
    )
