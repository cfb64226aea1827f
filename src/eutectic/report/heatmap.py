"""A table of numbers as an SVG heat map: every cell has its number, so that no colour need be told apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

_CELL_WIDTH, _CELL_HEIGHT = 58, 18
_LETTER = 7
# Longer names of columns are cut; the cells have them in full.
_LONGEST = 18
# From dark to light at an even pace, so that it reads as grey too (viridis, at eight points).
_RISING = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")
# Blue to orange by way of white: the pair that all common colour blindnesses keep apart.
_BOTH_WAYS = ("#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fdd0a2", "#fd8d3c", "#b35806")


def clean(text: str) -> str:
    """Foreign text for HTML: escaped, and nothing in it that a reader would not see."""
    return escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), quote=True)


def heatmap(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    shown: Callable[[float], str],
    *,
    low: float,
    high: float,
    centred: bool = False,
) -> str:
    """An `<svg>` element with `rows` × `columns` cells; None is an empty cell.

    Colours go from `low` to `high`; `centred` ones have their white in the middle between them.
    """
    heads = [column if len(column) <= _LONGEST else f"{column[: _LONGEST - 1]}…" for column in columns]
    left = 12 + _LETTER * max((len(row) for row in rows), default=0)
    wide = max(_CELL_WIDTH, 8 + _LETTER * max((len(head) for head in heads), default=0))
    width, height = left + wide * len(columns), 18 + _CELL_HEIGHT * len(rows)
    parts = [f'<svg role="img" aria-label="{clean(title)}" viewBox="0 0 {width} {height}" width="{width}">']
    for x, head in enumerate(heads):
        at = left + wide * (x + 0.5)
        parts.append(f'<text class="label" x="{at}" y="12" text-anchor="middle">{clean(head)}</text>')
    for y, (row, line) in enumerate(zip(rows, values, strict=True)):
        top = 18 + _CELL_HEIGHT * y
        parts.append(f'<text class="label" x="{left - 6}" y="{top + 13}" text-anchor="end">{clean(row)}</text>')
        for x, value in enumerate(line):
            if value is not None:
                name = f"{row}, {columns[x]}"
                colour = _colour(
                    (value - low) / (high - low) if high > low else 0.0, _BOTH_WAYS if centred else _RISING
                )
                parts.append(_cell((left + wide * x, top, wide - 2), shown(value), name, colour))
    return "".join([*parts, "</svg>"])


def _cell(place: tuple[int, int, int], text: str, name: str, colour: tuple[int, int, int]) -> str:
    x, y, width = place
    ink = "#000" if _luminance(colour) > 0.4 else "#fff"
    fill = "#{:02x}{:02x}{:02x}".format(*colour)
    return (
        f'<g><title>{clean(name)}: {clean(text)}</title><rect x="{x}" y="{y}" width="{width}" '
        f'height="{_CELL_HEIGHT - 2}" rx="2" fill="{fill}"/><text x="{x + width / 2}" y="{y + 12}" '
        f'text-anchor="middle" fill="{ink}">{clean(text)}</text></g>'
    )


def _colour(share: float, scale: Sequence[str]) -> tuple[int, int, int]:
    """The colour at a share of the scale, mixed from its two neighbours."""
    place = min(max(share, 0.0), 1.0) * (len(scale) - 1)
    first = min(int(place), len(scale) - 2)
    near, far = (_rgb(scale[i]) for i in (first, first + 1))
    mixed = [round(a + (b - a) * (place - first)) for a, b in zip(near, far, strict=True)]
    return mixed[0], mixed[1], mixed[2]


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _luminance(colour: tuple[int, int, int]) -> float:
    """Roughly how bright the eye finds it, 0 to 1: black text on what is brighter than the rest, white on the rest."""
    red, green, blue = ((part / 255) ** 2.2 for part in colour)
    return float(0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.15)
