"""`eutectic verify`: is an output what its recipe gives?"""

from __future__ import annotations

from typing import Annotated

import typer

from eutectic.cli import options, screen
from eutectic.errors import listed, several


def verify(
    out: Annotated[str, typer.Argument(help="Folder that `eutectic merge` made.", metavar="OUT")],
    stored_only: Annotated[
        bool, typer.Option("--stored-only", help="Compare with the manifest only; the models need not be there.")
    ] = False,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Merge only this many tensors again.", show_default="all")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check an output against its manifest, then merge again and compare every tensor."""
    with screen.refusals(json):
        from eutectic import api

        total = api.verify_bytes(out, stored_only=stored_only)
        with screen.progress("verifying", total, quiet=quiet or json) as done:
            found = api.verify(out, stored_only=stored_only, sample=sample, progress=done)
        if json:
            screen.print_json(
                {
                    "path": found.path,
                    "ok": not found.problems,
                    "stored": found.stored,
                    "derived": found.derived,
                    "near": found.near,
                    "files": found.files,
                    "added": found.added,
                    "problems": [problem.as_json() for problem in found.problems],
                }
            )
        elif found.problems:
            screen.print_problems(found.problems)
        elif not quiet:
            again = f", {found.derived} merged again and equal" if found.derived else ""
            again += f" ({found.near} of them but for the last digits of a GPU)" if found.near else ""
            count = f"{several(found.stored, 'tensor')} and {several(found.files, 'file')}"
            screen.out().print(f"[green]verified[/] {count} as written{again}")
            if found.added:
                verb = "is" if len(found.added) == 1 else "are"
                screen.out().print(
                    f"[yellow]note[/] no merge wrote {screen.text(listed(found.added))}, which {verb} in the folder"
                )
        if found.problems:
            raise typer.Exit(1)
