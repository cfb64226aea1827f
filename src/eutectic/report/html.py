"""Reports as one HTML file: the page, tables and lists, without a script and with nothing from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable

from eutectic._version import __version__
from eutectic.errors import OutputError, Problem, RecipeError
from eutectic.report.heatmap import clean

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #5b6470; --paper: #fff; --line: #d5dae0; --note: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --dim: #9aa4b0; --paper: #15181c; --line: #363c44; --note: #1e2329; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 68rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } h3 { font-size: 1rem; margin-bottom: .3rem; }
.answer { border: 2px solid var(--ink); border-radius: 6px; padding: .6rem 1rem; font-size: 1.2rem; font-weight: 600; }
.dim, figcaption { color: var(--dim); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.maps { display: flex; flex-wrap: wrap; gap: 1.2rem 2rem; } figure { margin: 0; overflow-x: auto; max-width: 100%; }
svg text { font: 11px ui-monospace, monospace; } svg .label { fill: var(--ink); }
li { margin: .15rem 0; }
"""


def document(title: str, body: Iterable[str], made: str) -> str:
    """The whole file: the title, which may be foreign text, the elements of `body`, and how it was `made`."""
    name = clean(title)
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    foot = f'<p class="dim">Made by Eutectic {__version__} {made}.</p>'
    return "\n".join([f"{head}{view}</head><body>", f"<h1>{name}</h1>", *body, foot, "</body></html>"]) + "\n"


def bullets(lines: Iterable[str]) -> str:
    """A list of foreign text."""
    return "<ul>" + "".join(f"<li>{clean(line)}</li>" for line in lines) + "</ul>"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of foreign text."""
    lines = ["".join(f"<td>{clean(cell)}</td>" for cell in row) for row in rows]
    names = "".join(f"<th>{clean(name)}</th>" for name in head)
    return (
        f"<table><thead><tr>{names}</tr></thead><tbody>"
        + "".join(f"<tr>{line}</tr>" for line in lines)
        + "</tbody></table>"
    )


def check_report_place(path: str | os.PathLike[str]) -> None:
    """Raises before any work what `write` would raise after it: A802."""
    where = os.fspath(path)
    if not where.lower().endswith((".html", ".htm")):
        raise RecipeError(Problem("A802", f"{where!r} does not end in .html", "path", "name an HTML file"))
    if os.path.isdir(where):
        raise OutputError(Problem("A802", "is a folder, and the report is a file", where, "name a file in it"))
    if not os.path.isdir(folder := os.path.dirname(where) or os.curdir):
        raise OutputError(Problem("A802", f"the folder {folder} does not exist", where, "make it first"))


def write(page: str, path: str | os.PathLike[str]) -> None:
    """Writes a report, whole or not at all. Raises `RecipeError` or `OutputError` (A802)."""
    check_report_place(path)
    where = os.fspath(path)
    try:
        with open(f"{where}.partial", "w", encoding="utf-8") as file:
            file.write(page)
        os.replace(f"{where}.partial", where)
    except OSError as error:
        raise OutputError(Problem("A802", f"cannot be written: {error.strerror or error}", where)) from error
