"""Mistakes on the command line itself, as an option that does not exist: under `--json` told like any other mistake."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from typer.core import TyperGroup

from eutectic.cli import screen
from eutectic.errors import Problem


class Program(TyperGroup):
    """The group of all commands, which tells what Typer refuses as every other mistake is told."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **named: Any) -> Any:
        """Runs a command and leaves with its exit code."""
        given = sys.argv[1:] if args is None else list(args)
        if "--json" not in given:
            return super().main(given, *more, **named)
        try:
            code = super().main(given, *more, **{**named, "standalone_mode": False})
        except Exception as error:
            # Typer has a `click` of its own from some version on: the error is told by what it carries.
            if not hasattr(error, "format_message"):
                raise
            screen.print_json({"problems": [_problem(error).as_json()]})
            code = error.exit_code  # type: ignore[attr-defined]
        sys.exit(code)


def _problem(error: Any) -> Problem:
    said, context = error.format_message().rstrip("."), getattr(error, "ctx", None)
    hint = f"`{context.command_path} --help` says what it takes" if context else ""
    return Problem("X903", said[:1].lower() + said[1:], _place(error), hint)


def _place(error: Any) -> str:
    """The option as it is written, or the argument as the help calls it."""
    param = getattr(error, "param", None)
    if param is None:
        return str(getattr(error, "option_name", ""))
    return str(param.opts[0] if param.param_type_name == "option" else param.metavar or param.name)
