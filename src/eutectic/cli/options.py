"""Options that several commands have, said once."""

from __future__ import annotations

from typing import Annotated

import typer

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
