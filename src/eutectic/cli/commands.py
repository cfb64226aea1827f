"""The verbs of `eutectic`: each a thin shell over one function of `api`."""

from __future__ import annotations

from typing import Annotated

import typer

from eutectic._version import __version__
from eutectic.cli.align import align
from eutectic.cli.average import average
from eutectic.cli.cite import cite
from eutectic.cli.collect import collect
from eutectic.cli.compare import compare
from eutectic.cli.connect import connect
from eutectic.cli.elsewhere import Command
from eutectic.cli.evaluate import evaluate
from eutectic.cli.explain import explain
from eutectic.cli.inspect import inspect
from eutectic.cli.learn import learn
from eutectic.cli.merge import merge
from eutectic.cli.methods import methods
from eutectic.cli.plan import plan
from eutectic.cli.repair import repair
from eutectic.cli.soup import soup
from eutectic.cli.sweep import sweep
from eutectic.cli.usage import Program
from eutectic.cli.verify import verify

app = typer.Typer(
    name="eutectic",
    cls=Program,
    help="Merges the weights of trained neural networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    merge,
    average,
    soup,
    sweep,
    learn,
    repair,
    plan,
    verify,
    inspect,
    compare,
    evaluate,
    connect,
    align,
    methods,
    cite,
    explain,
):
    app.command(cls=Command)(command)
app.add_typer(collect, name="collect")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"eutectic {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
