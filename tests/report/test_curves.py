"""Line charts: well-formed whatever the names and numbers are, with round ticks."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eutectic.report.curves import Point, Series, chart, labels, ticks

NUMBERS = st.floats(-1e9, 1e9)
SVG = "{http://www.w3.org/2000/svg}"


@given(NUMBERS, NUMBERS)
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    assume(high - low > 1e-6 * max(abs(low), abs(high), 1e-3))
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    step = found[1] - found[0]
    slack = 1e-6 * step
    assert low - slack <= found[0] and found[-1] <= high + slack
    assert found[0] - step < low + slack and found[-1] + step > high - slack
    unit = step / 10 ** math.floor(math.log10(step * (1 + 1e-9)))
    assert min(abs(unit - factor) for factor in (1, 2, 5)) < 1e-4
    texts = labels(found)
    assert len(set(texts)) == len(found)
    assert [float(text) for text in texts] == pytest.approx(found, abs=step / 50)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=5))
def test_any_numbers_make_a_chart_within_its_frame(places: list[tuple[float, float]]) -> None:
    points = [Point(x, y, y - 1, y + 1) for x, y in places]
    drawn = ElementTree.fromstring(chart("title", [Series("one", points), Series("two", points, "dots")], x="x", y="y"))
    for circle in drawn.iter(f"{SVG}circle"):
        assert 0 <= float(circle.attrib["cx"]) <= 640 and 0 <= float(circle.attrib["cy"]) <= 360
    assert len(list(drawn.iter(f"{SVG}circle"))) == 2 * len(places)


def test_points_have_their_numbers_and_bands() -> None:
    series = [
        Series("measured", [Point(0, 1, 0.5, 1.5), Point(1, 2, 1.8, 2.2)]),
        Series("between", [Point(0, 1), Point(1, 2)], "rule"),
        Series("some", [Point(0.5, 1.2, 1.1, 1.3), Point(0.7, 1)], "dots"),
    ]
    drawn = ElementTree.fromstring(chart("loss", series, x="share of b", y="nats"))
    titles = [element.text for element in drawn.iter(f"{SVG}title")]
    assert titles == [
        "measured: 0, 1 (0.5 to 1.5)",
        "measured: 1, 2 (1.8 to 2.2)",
        "some: 0.5, 1.2 (1.1 to 1.3)",
        "some: 0.7, 1",
    ]
    assert sum("fill-opacity" in element.attrib for element in drawn.iter(f"{SVG}path")) == 1
    texts = [element.text for element in drawn.iter(f"{SVG}text")]
    assert {"loss", "share of b", "nats", "measured", "between", "some"} <= set(texts)


def test_one_series_needs_no_legend_and_none_no_points() -> None:
    texts = [e.text for e in ElementTree.fromstring(chart("t", [Series("one", [])], x="x", y="y")).iter(f"{SVG}text")]
    assert "one" not in texts
    assert ElementTree.fromstring(chart("t", [], x="x", y="y")).tag == f"{SVG}svg"


def test_what_is_not_finite_is_left_out() -> None:
    points = [Point(0, 1), Point(1, math.nan), Point(2, math.inf), Point(3, 2, -math.inf, math.inf)]
    drawn = chart("t", [Series("one", points)], x="x", y="y")
    assert drawn.count("<circle") == 2 and "nan" not in drawn.replace("finance", "")


def test_foreign_names_are_text() -> None:
    name = '<script>"&\x1b'
    drawn = chart(name, [Series(name, [Point(0, 1)]), Series("b", [])], x=name, y=name)
    assert "<script" not in drawn and "\x1b" not in drawn
    ElementTree.fromstring(drawn)


def test_many_series_stay_apart_and_their_legend_wraps() -> None:
    drawn = chart("t", [Series(f"a rather long name {n}", [Point(0, n), Point(1, n)]) for n in range(12)], x="x", y="y")
    lines = {part.split('"/>')[0] for part in drawn.split("<path d=") if 'stroke-width="2" fill="none"' in part}
    styles = {line.split('stroke-width="2" ')[1] for line in lines}
    assert len(styles) == 12
    assert 'y="64"' in drawn or 'y="48"' in drawn


def test_a_single_value_still_has_an_axis() -> None:
    drawn = chart("t", [Series("one", [Point(2, 5), Point(2, 5)])], x="x", y="y")
    assert drawn.count('class="grid"') >= 2
