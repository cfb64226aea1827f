"""A comparison as one HTML file: verdict, tables and heat maps, without a script and with nothing from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from eutectic._version import __version__
from eutectic.adviser import Comparison, Sums
from eutectic.adviser.verdict import percent
from eutectic.errors import OutputError, Problem, RecipeError
from eutectic.names import OTHER
from eutectic.report.heatmap import clean, heatmap

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


# In the order in which a model has them.
_KINDS = ("embedding", "attention", "mlp", "norm", "head", OTHER)


class Statistic(NamedTuple):
    """One statistic of the report: its title, what it says, and how it is shown."""

    title: str
    about: str
    of: Callable[..., float | None]
    shown: Callable[[float], str]
    span: tuple[float, float] | None = None
    centred: bool = False


def _two_digits(value: float) -> str:
    return f"{value:z.2f}"


OF_ONE = (
    Statistic("change", "‖θ - θ₀‖ / ‖θ₀‖: how far a model moved from the base", Sums.change, percent),
    Statistic(
        "effective rank",
        "(Σσ²)² / Σσ⁴ of the change of each matrix, as a share of its smaller side; an estimate",
        Sums.rank,
        percent,
        (0.0, 1.0),
    ),
    Statistic(
        "lost in bfloat16",
        "share of Σ|δ| at entries where θ₀ + δ/2, rounded to bfloat16, is θ₀ rounded to bfloat16",
        Sums.lost,
        percent,
    ),
)
OF_TWO = (
    Statistic(
        "cosine", "of two models' changes: 1 the same direction, 0 independent", Sums.cosine, _two_digits, (-1, 1), True
    ),
    Statistic(
        "opposed",
        "of the entries that both change, the share changed in opposite directions; a half is what chance gives",
        Sums.opposed,
        percent,
        (0.0, 1.0),
        True,
    ),
    Statistic(
        "opposed, by size",
        "the same, with each entry counted by the product of the two changes",
        Sums.opposed_by_size,
        percent,
        (0.0, 1.0),
        True,
    ),
    Statistic(
        "overlap",
        "how many of the largest 1 % of the changes of two models are in the same places",
        Sums.overlap,
        percent,
    ),
)


def page(found: Comparison) -> str:
    """The whole report."""
    names = [found.base.label] if found.base.label is not None else []
    title = clean(" · ".join([*names, *found.models]))
    body = [f"<h1>{title}</h1>", *_verdict(found), *_structure(found)]
    if found.whole is not None and found.matrices is not None:
        body += _overview(found, found.matrices)
        if found.base.label is not None:
            body += _maps(found)
    foot = f'<p class="dim">Made by Eutectic {__version__} from weights alone.</p>'
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return "\n".join([f"{head}{view}</head><body>", *body, foot, "</body></html>"]) + "\n"


def check_report_place(path: str | os.PathLike[str]) -> None:
    """Raises before any work what `write_report` would raise after it: A802."""
    where = os.fspath(path)
    if not where.lower().endswith((".html", ".htm")):
        raise RecipeError(Problem("A802", f"{where!r} does not end in .html", "--html", "name an HTML file"))
    if not os.path.isdir(os.path.dirname(where) or os.curdir) or os.path.isdir(where):
        raise OutputError(Problem("A802", "its folder does not exist, or it is one", where, "make the folder first"))


def write_report(found: Comparison, path: str | os.PathLike[str]) -> None:
    """Writes the report, whole or not at all. Raises `RecipeError` or `OutputError` (A802)."""
    check_report_place(path)
    where = os.fspath(path)
    try:
        with open(f"{where}.partial", "w", encoding="utf-8") as file:
            file.write(page(found))
        os.replace(f"{where}.partial", where)
    except OSError as error:
        raise OutputError(Problem("A802", f"cannot be written: {error.strerror or error}", where)) from error


def _verdict(found: Comparison) -> Iterable[str]:
    verdict = found.verdict
    yield f'<p class="answer">{clean(verdict.answer)}</p>'
    yield _list(verdict.reasons)
    if verdict.methods:
        yield "<h2>Methods to try, in this order</h2>"
        yield _table(("method", "why"), verdict.methods)
    if verdict.cautions:
        yield "<h2>Mind</h2>"
        yield _list(verdict.cautions)


def _structure(found: Comparison) -> Iterable[str]:
    same = {True: "the same", False: "different", None: "not known"}[found.structure.vocabulary]
    yield "<h2>What is compared</h2>"
    base = f"{found.base.label} ({found.base.reason})" if found.base.label is not None else f"none: {found.base.reason}"
    rows = [
        ("base", base),
        ("models", ", ".join(found.models)),
        ("tensors in all of them", str(len(found.structure.matched))),
        ("vocabularies", same),
    ]
    rows += [(f"untouched in {model}", ", ".join(names)) for model, names in found.untouched.items()]
    rows += [(f"not finite in {model}", ", ".join(names)) for model, names in found.broken.items()]
    yield _table(("", ""), rows)


def _overview(found: Comparison, sums: Sums) -> Iterable[str]:
    """The whole model: one line a model, then matrices of pairs."""
    based = found.base.label is not None
    yield "<h2>All matrices together</h2>"
    if based:
        head = ["model", *(one.title for one in OF_ONE)]
        yield _table(
            head, [[label, *(_shown(one, one.of(sums, k)) for one in OF_ONE)] for k, label in enumerate(found.models)]
        )
    numbers = range(len(found.models))
    yield '<div class="maps">'
    for one in OF_TWO if based and len(found.models) > 1 else ():
        values = [[one.of(sums, a, b) for b in numbers] for a in numbers]
        low, high = one.span or (0.0, 1.0)
        yield _figure(
            one,
            heatmap(one.title, found.models, found.models, values, one.shown, low=low, high=high, centred=one.centred),
        )
    rows = range(1 if based else 0, sums.models + 1)
    apart = Statistic(
        "distance", "‖a - b‖ / √(‖a‖‖b‖): unrelated trainings have about 1.4", Sums.relative_distance, _two_digits
    )
    values = [[apart.of(sums, a, b) for b in rows] for a in rows]
    yield _figure(apart, heatmap(apart.title, found.models, found.models, values, _two_digits, low=0.0, high=1.5))
    yield "</div>"


def _maps(found: Comparison) -> Iterable[str]:
    """Layer × kind, a map a model, and for pairs a map of the mean over all pairs."""
    yield "<h2>By layer and kind</h2>"
    for one in OF_ONE:
        functions = [(label, _of_model(one, k)) for k, label in enumerate(found.models)]
        yield from _row_of_maps(found, one, functions)
    if len(found.models) > 1:
        for one in OF_TWO:
            yield from _row_of_maps(found, one, [("mean of all pairs", _mean_of_pairs(one, list(found.pairs())))])


def _of_model(one: Statistic, model: int) -> Callable[[Sums], float | None]:
    return lambda sums: one.of(sums, model)


def _mean_of_pairs(one: Statistic, pairs: Sequence[tuple[int, int]]) -> Callable[[Sums], float | None]:
    def mean(sums: Sums) -> float | None:
        known = [value for a, b in pairs if (value := one.of(sums, a, b)) is not None]
        return sum(known) / len(known) if known else None

    return mean


def _row_of_maps(
    found: Comparison, one: Statistic, functions: Sequence[tuple[str, Callable[[Sums], float | None]]]
) -> Iterable[str]:
    rows = list(dict.fromkeys(place.row for place in found.cells))
    kinds = [kind for kind in _KINDS if any(place.kind == kind for place in found.cells)]
    tables = []
    for _, function in functions:
        values = {(place.row, place.kind): function(sums) for place, sums in found.cells.items()}
        tables.append([[values.get((row, kind)) for kind in kinds] for row in rows])
    known = [value for table in tables for line in table for value in line if value is not None]
    low, high = one.span or (0.0, max(known, default=1.0))
    yield f'<h3>{clean(one.title)}</h3><p class="dim">{clean(one.about)}</p><div class="maps">'
    for (label, _), table in zip(functions, tables, strict=True):
        drawn = heatmap(f"{one.title}, {label}", rows, kinds, table, one.shown, low=low, high=high, centred=one.centred)
        yield f"<figure><figcaption>{clean(label)}</figcaption>{drawn}</figure>"
    yield "</div>"


def _figure(one: Statistic, drawn: str) -> str:
    return f"<figure><figcaption>{clean(one.title)}: {clean(one.about)}</figcaption>{drawn}</figure>"


def _shown(one: Statistic, value: float | None) -> str:
    return "" if value is None else one.shown(value)


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{clean(line)}</li>" for line in lines) + "</ul>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = ["".join(f"<td>{clean(cell)}</td>" for cell in row) for row in rows]
    names = "".join(f"<th>{clean(name)}</th>" for name in head)
    return (
        f"<table><thead><tr>{names}</tr></thead><tbody>"
        + "".join(f"<tr>{line}</tr>" for line in lines)
        + "</tbody></table>"
    )
