"""Lines over an axis as an SVG chart: intervals as bands, every point with its numbers, for light and dark pages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from eutectic.report.heatmap import clean

_WIDTH, _HEIGHT = 640, 360
_TOP, _BOTTOM, _RIGHT = 30, 46, 24
_LETTER = 6.7
# Okabe and Ito's colours but black and yellow: told apart with any common colour blindness, on white and on black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# The second way to tell series apart, once the colours repeat and on paper.
_DASHES = ("none", "7 4", "9 3 2 3")
_STYLE = """
.curves { --ink: #1b1f24; --faint: #d5dae0; background: #fff; max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) { .curves { --ink: #e6e9ed; --faint: #3a414a; background: #15181c; } }
.curves text { font: 11px ui-monospace, monospace; fill: var(--ink); } .curves .title { font-weight: 600; }
.curves .grid { stroke: var(--faint); } .curves .axis { stroke: var(--ink); fill: none; }
"""


class Point(NamedTuple):
    """A point of a series, with its interval, if it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


class Series(NamedTuple):
    """Points in the order in which the line goes through them.

    `dots`: points alone, without a line. `rule`: a line that is compared with, dashed and without dots.
    """

    label: str
    points: Sequence[Point]
    kind: Literal["line", "dots", "rule"] = "line"


class _Scale(NamedTuple):
    """From values to places on the page."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def chart(title: str, series: Sequence[Series], *, x: str, y: str) -> str:
    """An `<svg>` element that needs no style from elsewhere: it may stand in a page or be a file of its own.

    Args:
        title: above the chart.
        series: what is drawn, with a legend where there are several. What is not finite is left out.
        x: what the horizontal axis is.
        y: what the vertical axis is.
    """
    kept = [one._replace(points=[p for p in one.points if math.isfinite(p.x + p.y)]) for one in series]
    points = [point for one in kept for point in one.points]
    across, up = _span([p.x for p in points]), _span(_heights(points))
    wide, tall = ticks(*across), ticks(*up)
    named = dict(zip(tall, labels(tall), strict=True))
    left = 30 + _LETTER * max(map(len, named.values()))
    to_x = _Scale(*across, left, _WIDTH - _RIGHT)
    legend = _legend(kept, left) if len(kept) > 1 else []
    top = _TOP + 16 * len(legend)
    to_y = _Scale(*up, _HEIGHT - _BOTTOM, top)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="curves" role="img" aria-label="{clean(title)}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}"><style>{_STYLE}</style>',
        _text(_WIDTH / 2, 16, title, "title"),
        *itertools.chain.from_iterable(legend),
        *(_across(to_y(value), left, text) for value, text in named.items()),
        *(_text(to_x(value), _HEIGHT - _BOTTOM + 16, text) for value, text in zip(wide, labels(wide), strict=True)),
        f'<path class="axis" d="M{left:.1f} {top}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>',
        _text((left + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, x),
        _upright(12, (top + _HEIGHT - _BOTTOM) / 2, y),
    ]
    for number, one in enumerate(kept):
        parts += _drawn(one, number, to_x, to_y)
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round values within `low` and `high`, evenly spaced by 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (unit * factor) <= most - 1 + 1e-9)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def labels(values: Sequence[float]) -> list[str]:
    """The values with as few digits as tell them apart."""
    for digits in range(2, 17):
        found = [f"{value:.{digits}g}" for value in values]
        step = min((abs(b - a) for a, b in itertools.pairwise(values)), default=math.inf)
        if all(abs(float(text) - value) < step / 100 for text, value in zip(found, values, strict=True)):
            return found
    return found


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The range that an axis covers; never empty."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    margin = abs(low) / 10 or 1.0
    return low - margin, high + margin


def _heights(points: Iterable[Point]) -> list[float]:
    """All that is drawn, with bands that are endless left out."""
    found = [value for point in points for value in point[1:] if value is not None]
    return [value for value in found if math.isfinite(value)]


def _legend(series: Sequence[Series], left: float) -> list[list[str]]:
    """Rows of samples and names."""
    rows: list[list[str]] = [[]]
    at = left
    for number, one in enumerate(series):
        width = 40 + _LETTER * len(one.label)
        if rows[-1] and at + width > _WIDTH - _RIGHT:
            rows.append([])
            at = left
        height = 32 + 16 * (len(rows) - 1)
        sample = f'<path d="M{at:.1f} {height - 4}h20" stroke-width="2" {_stroke(number, one.kind)}/>'
        rows[-1].append(sample + f'<text x="{at + 25:.1f}" y="{height}">{clean(one.label)}</text>')
        at += width
    return rows


def _drawn(one: Series, number: int, to_x: _Scale, to_y: _Scale) -> list[str]:
    """Band, line and dots of a series."""
    parts = []
    colour = _COLOURS[number % len(_COLOURS)]
    if one.kind != "dots" and one.points:
        if band := _band(one.points, to_x, to_y):
            parts.append(f'<path d="{band}" fill="{colour}" fill-opacity="0.18"/>')
        line = "L".join(f"{to_x(p.x):.1f} {to_y(p.y):.1f}" for p in one.points)
        parts.append(f'<path d="M{line}" stroke-width="2" {_stroke(number, one.kind)}/>')
    for p in one.points if one.kind != "rule" else ():
        about = f"{one.label}: {p.x:.6g}, {p.y:.6g}"
        if p.low is not None and p.high is not None:
            about += f" ({p.low:.6g} to {p.high:.6g})"
            if one.kind == "dots":
                parts.append(_whisker(to_x(p.x), to_y(_inside(p.low, to_y)), to_y(_inside(p.high, to_y)), colour))
        place = f'cx="{to_x(p.x):.1f}" cy="{to_y(p.y):.1f}"'
        parts.append(f'<circle {place} r="3" fill="{colour}"><title>{clean(about)}</title></circle>')
    return parts


def _stroke(number: int, kind: str) -> str:
    dash = "2 3" if kind == "rule" else _DASHES[number // len(_COLOURS) % len(_DASHES)]
    return f'fill="none" stroke="{_COLOURS[number % len(_COLOURS)]}" stroke-dasharray="{dash}"'


def _band(points: Sequence[Point], to_x: _Scale, to_y: _Scale) -> str:
    """Along the upper ends and back along the lower ones; empty where a point has none."""
    known = [(p.x, p.low, p.high) for p in points if p.low is not None and p.high is not None]
    if not known or len(known) < len(points):
        return ""
    there = [f"{to_x(x):.1f} {to_y(_inside(high, to_y)):.1f}" for x, _, high in known]
    back = [f"{to_x(x):.1f} {to_y(_inside(low, to_y)):.1f}" for x, low, _ in reversed(known)]
    return f"M{'L'.join([*there, *back])}Z"


def _inside(value: float, scale: _Scale) -> float:
    return min(max(value, scale.low), scale.high)


def _whisker(x: float, low: float, high: float, colour: str) -> str:
    return f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" stroke-opacity="0.6"/>'


def _across(at: float, left: float, text: str) -> str:
    """A line of the grid with its number."""
    line = f'<path class="grid" d="M{left:.1f} {at:.1f}H{_WIDTH - _RIGHT}"/>'
    return f'{line}<text x="{left - 6:.1f}" y="{at + 4:.1f}" text-anchor="end">{clean(text)}</text>'


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{clean(text)}</text>'


def _upright(x: float, y: float, text: str) -> str:
    place = f'transform="translate({x} {y:.1f}) rotate(-90)"'
    return f'<text {place} text-anchor="middle">{clean(text)}</text>'
