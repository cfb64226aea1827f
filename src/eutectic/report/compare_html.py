"""A comparison as one HTML file: verdict, tables and heat maps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from eutectic.adviser import Comparison, Sums
from eutectic.adviser.verdict import percent
from eutectic.names import OTHER, gathered
from eutectic.report import html
from eutectic.report.heatmap import clean, heatmap

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


def _distance(value: float) -> str:
    return f"{value:.2g}" if 0 < value < 0.1 else _two_digits(value)


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
    title = " · ".join([*names, *found.models])
    body = [*_verdict(found), *_structure(found)]
    if found.whole is not None and found.matrices is not None:
        body += _overview(found, found.matrices)
        if found.base.label is not None:
            body += _maps(found)
    return html.document(title, body, "from weights alone")


def write_report(found: Comparison, path: str | os.PathLike[str]) -> None:
    """Writes the report, whole or not at all. Raises `RecipeError` or `OutputError` (A802)."""
    html.write(page(found), path)


def _verdict(found: Comparison) -> Iterable[str]:
    verdict = found.verdict
    yield f'<p class="answer">{clean(verdict.answer)}</p>'
    yield html.bullets(verdict.reasons)
    if verdict.methods:
        yield "<h2>Methods to try, in this order</h2>"
        yield html.table(("method", "why"), verdict.methods)
    if verdict.cautions:
        yield "<h2>Mind</h2>"
        yield html.bullets(verdict.cautions)


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
    rows += [(f"untouched in {model}", ", ".join(gathered(names))) for model, names in found.untouched.items()]
    rows += [(f"not finite in {model}", ", ".join(gathered(names))) for model, names in found.broken.items()]
    yield html.table(("", ""), rows)


def _overview(found: Comparison, sums: Sums) -> Iterable[str]:
    """The whole model: one line a model, then matrices of pairs."""
    based = found.base.label is not None
    yield "<h2>All matrices together</h2>"
    if based:
        head = ["model", *(one.title for one in OF_ONE)]
        yield html.table(
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
        "distance", "‖a - b‖ / √(‖a‖‖b‖): unrelated trainings have about 1.4", Sums.relative_distance, _distance
    )
    values = [[apart.of(sums, a, b) for b in rows] for a in rows]
    yield _figure(apart, heatmap(apart.title, found.models, found.models, values, _distance, low=0.0, high=1.5))
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
