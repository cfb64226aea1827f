"""`eutectic cite`: what to cite for a merge."""

from __future__ import annotations

from typing import Annotated

import typer

from eutectic.cli import options, screen


def cite(
    recipe: Annotated[
        str, typer.Argument(help="A recipe, a finished merge, or the name of a method.", metavar="RECIPE")
    ],
    json: options.Json = False,
) -> None:
    """Print BibTeX for what a recipe uses, or for a method. Needs no model."""
    with screen.refusals(json):
        from eutectic import api

        found = api.cite(recipe)
        if json:
            entries = [
                {"paper": one.paper, "used_by": list(one.used_by), "key": one.key, "bibtex": one.bibtex}
                for one in found
            ]
            screen.print_json(entries)
        else:
            screen.out().print("\n\n".join(one.bibtex for one in found), markup=False, soft_wrap=True)
