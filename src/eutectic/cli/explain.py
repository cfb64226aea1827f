"""`eutectic explain`: what a problem's code means and what to do."""

from __future__ import annotations

from typing import Annotated

import typer

from eutectic.cli import options, screen


def explain(
    code: Annotated[str, typer.Argument(help="A code such as R102.", metavar="CODE")],
    json: options.Json = False,
) -> None:
    """Explain a problem's code."""
    with screen.refusals(json):
        from eutectic import api

        title, text = api.explain(code)
        if json:
            screen.print_json({"code": code.upper(), "title": title, "text": text})
        else:
            screen.page().print(f"[bold]{code.upper()}[/] {screen.text(title)}\n\n{screen.text(text)}")
