"""Writes the pages that follow from the code: one a method, every problem's code, the command line.

mkdocs runs this as a hook before each build (see `mkdocs.yml`); `python docs/build_pages.py` does the same by hand.
The pages are not kept in the repository.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

import eutectic
from eutectic import api
from eutectic.cli.commands import app

DOCS = Path(__file__).parent
FAMILIES = {
    "R": "Recipes",
    "C": "Checkpoints",
    "P": "Plans",
    "W": "Writing the output",
    "N": "Numbers",
    "M": "Memory and machine",
    "V": "Verifying",
    "A": "Comparing",
    "T": "Averaging along a run",
    "E": "Evaluating",
    "S": "Soups and sweeps",
    "L": "Between models",
    "F": "Statistics",
    "G": "Alignment",
    "X": "Asking for help",
}


def pages() -> dict[str, str]:
    """Path below `docs/` → Markdown, of every generated page."""
    found = {f"methods/{name}.md": api.method_page(api.method_named(name)) for name in api.method_names()}
    found |= {f"methods/{name}.md": api.step_page(step) for name in api.step_names() if (step := api.step_named(name))}
    return {
        **found,
        "methods/index.md": methods_index(),
        "problems.md": problems_page(),
        "cli.md": cli_page(),
        "source.md": source_page(),
    }


def methods_index() -> str:
    """A table of all methods."""
    head = (
        "# Methods\n\nOne page a method, made from its own docstring and signature; `eutectic methods NAME` prints "
        "the same page. [How to choose](../how-to-choose.md) compares them, and "
        "[adding a method](../adding-a-method.md) shows how to write another."
    )
    rows = []
    for method in sorted(map(api.method_named, api.method_names()), key=lambda m: (m.family, m.name)):
        rows.append((method.family, f"[`{method.name}`]({method.name}.md)", method.paper, api.first_line(method)))
    for name in api.step_names():
        if step := api.step_named(name):
            rows.append(("after a method", f"[`{name}`]({name}.md)", ", ".join(step.papers), step.title))
    return f"{head}\n\n{table(('family', 'method', 'paper', 'in one sentence'), rows)}\n"


def source_page() -> str:
    """Every file of the package with the first sentence of its docstring."""
    root = Path(eutectic.__file__).parent
    rows = []
    for path in sorted(root.rglob("*.py"), key=lambda p: (len(p.relative_to(root).parts), p)):
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        rows.append((f"`{path.relative_to(root).as_posix()}`", plain(about.split("\n", 1)[0])))
    head = (
        "# The source\n\nOne line a file, from the file itself. Imports go one way, and a test keeps them so: "
        "cli → api → choosing, codes, repairing → merging → testing, report → search → connectivity → alignment → "
        "statistics → adviser, averaging, evaluate → run → plan → recipe, methods, checkpoint → kernels, names, "
        "dtypes, paths → lazy → errors."
    )
    return f"{head}\n\n{table(('file', 'what is in it'), rows)}\n"


def problems_page() -> str:
    """Every code with its explanation, by family."""
    lines = [
        "# Problems",
        "",
        "Every refusal begins with a code. `eutectic explain CODE` prints what stands here.",
    ]
    for letter, family in FAMILIES.items():
        lines += ["", f"## {family}"]
        for code, (title, text) in sorted(api.CODES.items()):
            if code.startswith(letter):
                lines += ["", f"### {code}: {title} {{ #{code.lower()} }}", "", plain(text)]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Text of a terminal as Markdown: what is not code keeps its backslashes and asterisks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_<])", r"\\\1", part) for part in parts)


def cli_page() -> str:
    """Every command with its arguments and options."""
    root = typer.main.get_command(app)
    lines = [
        "# Command line",
        "",
        "Results go to standard output, everything else to standard error; "
        "[exit codes and JSON](exit-codes.md) says what scripts can rely on. "
        "A `SIZE` is written `2GiB`, `500MB` or `5G`.",
        "",
        options_table(root.params),
    ]
    for name, command in commands().items():
        arguments = [p for p in command.params if not p.opts[0].startswith("-")]
        usage = " ".join(["eutectic", name, "[OPTIONS]", *(str(p.metavar) for p in arguments)])
        lines += ["", f"## eutectic {name}", "", str(command.help), "", f"```text\n{usage}\n```", ""]
        rows = [(f"`{str(p.metavar).strip('[]')}`", p.help) for p in arguments]
        lines += [table(("argument", "what it is"), rows), "", options_table(command.params)]
    return "\n".join(lines) + "\n"


def commands() -> dict[str, Any]:
    """Every command by its name; one that has commands of its own stands for these."""
    found = {}
    for name, command in typer.main.get_command(app).commands.items():
        within = getattr(command, "commands", None)
        found |= {name: command} if within is None else {f"{name} {own}": one for own, one in within.items()}
    return found


def options_table(params: Iterable[Any]) -> str:
    """Options with their defaults."""
    rows = []
    for param in params:
        if param.opts[0].startswith("-"):
            names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
            value = "" if param.is_flag else f" `{param.metavar or param.name.strip('_').upper()}`"
            rows.append((names + value, shown_default(param), param.help))
    return table(("option", "default", "what it does"), rows)


def shown_default(param: Any) -> str:
    """The default as a reader would write it."""
    if isinstance(param.show_default, str):
        return param.show_default
    value = getattr(param.default, "value", param.default)
    if param.is_flag:
        return f"`{(param.opts if value else param.secondary_opts)[0]}`" if param.secondary_opts else ""
    return "" if value is None else f"`{value}`"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(docs: Path = DOCS) -> None:
    """Writes the pages whose text has changed (so that `mkdocs serve` does not build for ever)."""
    for name, text in pages().items():
        path = docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def on_config(config: Any) -> Any:
    """mkdocs calls this first: makes the pages, and adds those with names of their own to the navigation."""
    write()
    names = [*api.method_names(), *api.step_names()]
    section(config["nav"], "Methods").extend(f"methods/{name}.md" for name in names)
    reports = sorted(path.relative_to(DOCS).as_posix() for path in (DOCS / "experiments").glob("*.md"))
    section(config["nav"], "Evidence").extend(reports)
    return config


def section(nav: list[Mapping[str, list[Any]]], title: str) -> list[Any]:
    """The pages of one section of the navigation."""
    return next(entry[title] for entry in nav if title in entry)


if __name__ == "__main__":
    write()
