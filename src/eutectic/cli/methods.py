"""`eutectic methods`: the list of methods, and the page of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from eutectic.cli import options, screen

# The family of the steps under `post`.
AFTER = "after a method"


def methods(
    name: Annotated[str | None, typer.Argument(help="A method, for its page, or a family.", metavar="[NAME]")] = None,
    json: options.Json = False,
) -> None:
    """List the merge methods, or show one with its parameters, defaults and differences."""
    with screen.refusals(json):
        from eutectic import api

        everything = [api.method_named(known) for known in api.method_names()]
        listed = sorted((method for method in everything if name in (None, method.family)), key=_place)
        steps = [step for known in api.step_names() if (step := api.step_named(known)) is not None]
        shown = [step for step in steps if name in (None, AFTER)]
        if listed or shown:
            _list(listed, shown, json)
        elif name is not None and (step := api.step_named(name)) is not None:
            _page(_step_as_json(step), api.step_page(step), json)
        elif name is not None:
            found = api.method_named(name)
            _page(_as_json(found), api.method_page(found), json)


def _place(method: Any) -> tuple[str, str]:
    return method.family, method.name


def _page(data: dict[str, Any], text: str, json: bool) -> None:
    if json:
        screen.print_json(data)
        return
    from rich.markdown import Markdown

    screen.page().print(Markdown(text))


def _list(methods: Sequence[Any], steps: Sequence[Any], json: bool) -> None:
    if json:
        screen.print_json([*map(_as_json, methods), *map(_step_as_json, steps)])
        return
    from rich.table import Table

    from eutectic import api

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in ("method", "family", "paper", ""):
        table.add_column(column)
    rows = [(method.name, method.family, method.paper, api.first_line(method)) for method in methods]
    rows += [(step.name, AFTER, ", ".join(step.papers), step.title) for step in steps]
    for name, *about in rows:
        table.add_row(f"[bold]{screen.text(name)}[/]", *map(screen.text, about))
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
        "family": AFTER,
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
