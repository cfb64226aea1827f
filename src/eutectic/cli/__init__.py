"""The command `eutectic`: each verb a thin shell over one function of `api`. Imports nothing heavy by itself."""

from __future__ import annotations

import gc
import os
import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from eutectic._version import __version__
from eutectic.cli.align import align
from eutectic.cli.average import average
from eutectic.cli.cite import cite
from eutectic.cli.collect import collect
from eutectic.cli.compare import compare
from eutectic.cli.connect import connect
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
from eutectic.cli.verify import verify

app = typer.Typer(
    name="eutectic",
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
    app.command()(command)
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


def main() -> None:
    """Entry point."""
    # Imports make many objects and no garbage: looking for it among them is a good part of the start-up.
    gc.set_threshold(100_000, 50, 100)
    # numpy's linear algebra is not used, and its idle threads would spin on the cores that merge.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows its number.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.argv[1:2] == ["merge"]:
        # numba looks for SciPy's linear algebra, which no kernel uses, and which takes a sixth of the start-up to load.
        sys.modules["scipy.linalg"] = None  # type: ignore[assignment]
    try:
        app()
    finally:
        # At its end Python looks for garbage among all that was imported: a quarter of a second for memory that is
        # given back anyway.
        gc.freeze()
