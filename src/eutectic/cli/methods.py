"""`eutectic methods`: the list of methods, and the page of each."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from eutectic.cli import options, screen


def methods(
    name: Annotated[str | None, typer.Argument(help="A method, for its page.", metavar="[NAME]")] = None,
    json: options.Json = False,
) -> None:
    """List the merge methods, or show one with its parameters, defaults and differences."""
    with screen.refusals(json):
        from eutectic import api

        if name is not None and (step := api.step_named(name)) is not None:
            if json:
                screen.print_json(_step_as_json(step))
            else:
                from rich.markdown import Markdown

                screen.page().print(Markdown(api.step_page(step)))
            return
        if name is not None:
            found = api.method_named(name)
            if json:
                screen.print_json(_as_json(found))
            else:
                from rich.markdown import Markdown

                screen.page().print(Markdown(api.method_page(found)))
            return
        steps = [step for known in api.step_names() if (step := api.step_named(known)) is not None]
        everything = [api.method_named(known) for known in api.method_names()]
        if json:
            screen.print_json([*map(_as_json, everything), *map(_step_as_json, steps)])
            return
        from rich.table import Table

        table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
        for column in ("method", "family", "paper", ""):
            table.add_column(column)
        for method in sorted(everything, key=lambda m: (m.family, m.name)):
            about = (method.family, method.paper, api.first_line(method))
            table.add_row(f"[bold]{screen.text(method.name)}[/]", *map(screen.text, about))
        for step in steps:
            about = ("after a method", ", ".join(step.papers), step.title)
            table.add_row(f"[bold]{screen.text(step.name)}[/]", *map(screen.text, about))
        screen.out().print(table)


def _as_json(method: Any) -> dict[str, Any]:
    return {
        "name": method.name,
        "family": method.family,
        "paper": method.paper,
        "space": method.space,
        "base": method.base,
        "scopes": list(method.scopes),
        "parameters": _parameters(method),
        "accepted": dict(method.accepted),
    }


def _step_as_json(step: Any) -> dict[str, Any]:
    return {
        "name": step.name,
        "family": "after a method",
        "paper": ", ".join(step.papers),
        "scopes": list(step.scopes),
        "parameters": _parameters(step),
    }


def _parameters(owner: Any) -> dict[str, Any]:
    return {
        p.name: {
            "kind": p.kind,
            "per_model": p.per_model,
            "required": p.required,
            "default": p.default,
            "allowed": p.allowed.text if p.allowed else None,
            "choices": list(p.choices),
        }
        for p in owner.params.values()
    }
