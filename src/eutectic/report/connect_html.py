"""What lies between models as one HTML file: curves of loss and error, matrices of barriers, layers, planes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from eutectic.connectivity import DEFINITIONS, Barrier, Connection, Curve, Height, Plane
from eutectic.report import html
from eutectic.report.curves import Point, Series, chart
from eutectic.report.heatmap import clean, heatmap


def page(found: Connection) -> str:
    """The whole report."""
    body = [html.bullets(found.notes), *_table(found)]
    if len(found.models) > 2:
        body += _matrices(found)
    for pair in next(iter(found.barriers.values())):
        body += _charts([pairs[pair] for pairs in found.barriers.values()])
    body += _layers(found)
    body += _alignments(found)
    body += [_plane(one) for one in found.planes.values()]
    return html.document(" · ".join(found.models), body, "from mixtures that were never written")


def write_connection(found: Connection, path: str | os.PathLike[str]) -> None:
    """Writes the report, whole or not at all. Raises `RecipeError` or `OutputError` (A802)."""
    html.write(page(found), path)


def path_chart(barriers: Sequence[Barrier], quantity: str) -> str:
    """One quantity along a path, for several tasks, with the line between the ends of each; empty if none has it."""
    known = [(one.task, one.curves[quantity]) for one in barriers if quantity in one.curves]
    if not known:
        return ""
    series = []
    for task, curve in known:
        series.append(Series(f"{task}: {curve.metric}", _points(curve)))
        ends = [Point(curve.t[at], curve.values[at]) for at in (0, -1)]
        series.append(Series(f"{task}: between its ends", ends, "rule"))
    first, last = barriers[0].ends
    return chart(f"{quantity} from {first} to {last}", series, x=f"share of {last}", y=quantity)


def shown(height: Height) -> str:
    """A height with its interval and its place."""
    bounds = "" if height.interval is None else f" ({height.interval[0]:z.3g} to {height.interval[1]:z.3g})"
    return f"{height.value:z.3g}{bounds} at t = {height.t:.3g}"


def _table(found: Connection) -> Iterable[str]:
    yield "<h2>Barriers</h2>"
    yield html.bullets(f"{name}: {about}" for name, about in DEFINITIONS.items())
    rows = []
    for pairs in found.barriers.values():
        for one in pairs.values():
            for curve in one.curves.values():
                heights = [shown(curve.height(definition)) for definition in DEFINITIONS]
                t, value = curve.lowest
                lowest = f"{value:.4g} at t = {t:.3g}"
                rows.append([" – ".join(one.ends), f"{one.task}: {curve.metric}", *heights, lowest])
    yield html.table(["models", "of", *DEFINITIONS, "lowest"], rows)


def _matrices(found: Connection) -> Iterable[str]:
    yield '<div class="maps">'
    for task in found.tasks:
        yield _map(task, found.models, found.models, found.matrix(task), f"barriers: {task}")
    yield "</div>"


def _charts(barriers: Sequence[Barrier]) -> Iterable[str]:
    yield f"<h2>{clean(' – '.join(barriers[0].ends))}</h2>"
    yield '<div class="maps">'
    yield from (f"<figure>{drawn}</figure>" for name in ("loss", "error") if (drawn := path_chart(barriers, name)))
    yield "</div>"


def _points(curve: Curve) -> list[Point]:
    bounds = [reading.interval or (None, None) for reading in curve.readings]
    return [Point(t, value, *ends) for t, value, ends in zip(curve.t, curve.values, bounds, strict=True)]


def _layers(found: Connection) -> Iterable[str]:
    if not found.layers:
        return
    yield "<h2>Layer by layer</h2>"
    yield (
        '<p class="dim">How high loss or error rises above the first model\'s when this layer alone goes over to the '
        "second's (arXiv:2307.06966).</p>"
    )
    yield '<div class="maps">'
    for task, pairs in found.layers.items():
        names = list(dict.fromkeys(layer.name for layers in pairs.values() for layer in layers))
        columns = [f"{found.models[i]} – {found.models[j]}" for i, j in pairs]
        rises = [{layer.name: layer.rise.value for layer in layers} for layers in pairs.values()]
        values = [[column.get(name) for column in rises] for name in names]
        yield _map(task, names, columns, values, task)
    yield "</div>"


def _alignments(found: Connection) -> Iterable[str]:
    """What the models that are there twice were moved by."""
    if not found.alignments:
        return
    yield "<h2>Alignments</h2>"
    rows = [
        [
            one.model.label,
            one.reference.label,
            one.method,
            *(f"{value:.4g}" for value in one.distance),
            f"{100 * one.gain:.1f} %",
        ]
        for one in found.alignments
    ]
    yield html.table(["model", "to", "by", "squared distance before", "after", "less"], rows)
    yield html.bullets(f"{one.model.label}: {note}" for one in found.alignments for note in one.notes)


def _plane(one: Plane) -> str:
    """With the second axis upwards."""
    corners = zip(one.models, one.places, one.corners, strict=True)
    places = ", ".join(f"{model} at ({x:.3g}, {y:.3g}) with {value:.4g}" for model, (x, y), value in corners)
    rows, columns = ([f"{value:.3g}" for value in axis] for axis in (one.y, one.x))
    about = f"{one.task}: {one.metric} on the plane through {places}; lowest {one.lowest[1]:.4g} at {one.lowest_at}"
    return "<h2>The plane</h2>" + _map(one.task, rows[::-1], columns, one.values[::-1], about)


def _map(
    title: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]], about: str
) -> str:
    """A heat map whose colours span its values."""
    known = [value for row in values for value in row if value is not None]
    drawn = heatmap(title, rows, columns, values, "{:z.3g}".format, low=min(known), high=max(known))
    return f"<figure><figcaption>{clean(about)}</figcaption>{drawn}</figure>"
