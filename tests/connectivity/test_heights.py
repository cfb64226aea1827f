"""How high a curve rises: three definitions, their errors, and what a score says of loss and error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eutectic.connectivity import DEFINITIONS, Curve
from eutectic.connectivity.heights import Reading, curves_of, error_of, loss_of
from eutectic.evaluate import Score

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=12)


def curve(values: Any, items: Any = None, weights: Any = None, ts: Any = None) -> Curve:
    ts = np.linspace(0, 1, len(values)) if ts is None else ts
    items = [np.empty(0)] * len(values) if items is None else items
    weights = np.empty(0) if weights is None else weights
    readings = tuple(Reading(value, None, own, weights) for value, own in zip(values, items, strict=True))
    return Curve("loss", "nll", tuple(ts), readings)


def oracle(values: np.ndarray, ts: np.ndarray, definition: str) -> tuple[float, float]:
    first, last = values[0], values[-1]
    level = {
        "entezari": (1 - ts) * first + ts * last,
        "frankle": np.full(len(ts), (first + last) / 2),
        "freeman": np.full(len(ts), max(first, last)),
    }[definition]
    return float(np.max(values - level)), float(ts[np.argmax(values - level)])


@given(VALUES)
def test_heights_are_those_of_an_oracle(values: list[float]) -> None:
    ts = np.linspace(0, 1, len(values))
    for definition in DEFINITIONS:
        found = curve(values).height(definition)
        wanted = oracle(np.array(values), ts, definition)
        assert found.value == pytest.approx(wanted[0], abs=1e-9)
        assert definition == "frankle" or found.value >= 0
    assert curve(values).rise.value == pytest.approx(max(values) - values[0])


@given(st.floats(-10, 10), st.floats(-10, 10), st.integers(3, 40))
def test_a_straight_line_has_no_barrier_by_the_definition_that_decides(first: float, last: float, count: int) -> None:
    line = [first + (last - first) * t for t in np.linspace(0, 1, count)]
    assert curve(line).height().value == pytest.approx(0, abs=1e-12)
    # The reason why it decides: the mean of unequal ends is no level that a line stays below.
    assert curve(line).height("frankle").value == pytest.approx(abs(first - last) / 2, abs=1e-12)


def test_errors_come_from_the_same_items() -> None:
    draw = np.random.default_rng(0)
    items = draw.normal(size=(5, 40)) + np.array([0, 1, 3, 1, 0])[:, None]
    weights = draw.integers(1, 9, 40).astype(float)
    ts = np.array([0, 0.2, 0.5, 0.8, 1])
    found = curve(np.average(items, 1, weights), items, weights, ts).height()
    moved = items[2] - 0.5 * items[0] - 0.5 * items[4]
    mean = np.average(moved, weights=weights)
    error = math.sqrt(np.sum((weights * (moved - mean) / weights.sum()) ** 2) * 40 / 39)
    assert found.t == 0.5
    assert (found.value, found.stderr) == (pytest.approx(mean), pytest.approx(error))
    assert found.interval == pytest.approx((mean - 2.0227 * error, mean + 2.0227 * error), rel=1e-4)


def test_at_an_end_there_is_nothing_to_be_uncertain_of() -> None:
    items = [np.array([1.0, 2.0]), np.array([0.0, 1.0]), np.array([1.0, 3.0])]
    found = curve([1.5, 0.5, 2.0], items, np.ones(2)).height()
    assert (found.value, found.t, found.stderr, found.interval) == (0, 0, None, None)


def test_the_lowest_point() -> None:
    assert curve([2, 1, 1, 3]).lowest == (pytest.approx(1 / 3), 1)


def score(metric: str, higher: bool, value: float, **more: Any) -> Score:
    given = {"stderr": 0.1, "interval": (value - 0.1, value + 0.1), "items": np.array([value]), "weights": np.ones(1)}
    return Score("task", metric, higher, value, **(given | more))


def test_what_a_score_says_of_the_loss() -> None:
    name, reading = loss_of(score("cross_entropy", False, 0.5)) or ("", None)
    assert (name, reading.value, reading.interval) == ("cross_entropy", 0.5, (0.4, 0.6))
    items = np.array([1.0, 2.0])
    name, reading = loss_of(score("perplexity", False, math.exp(1.5), items=items, scale="exp")) or ("", None)
    assert (name, reading.value) == ("log perplexity", pytest.approx(1.5))
    assert reading.items is items and reading.interval[0] == pytest.approx(math.log(math.exp(1.5) - 0.1))
    name, reading = loss_of(score("acc", True, 0.5, details={"nll": 2.0})) or ("", None)
    assert (name, reading.value, len(reading.items)) == ("nll", 2.0, 0)
    assert loss_of(score("acc", True, 0.5)) is None


def test_what_a_score_says_of_the_error() -> None:
    name, reading = error_of(score("acc", True, 0.75)) or ("", None)
    assert (name, reading.value, reading.items.tolist()) == ("1 - acc", 0.25, [0.25])
    assert reading.interval == (pytest.approx(0.15), pytest.approx(0.35))
    name, reading = error_of(score("cross_entropy", False, 0.5, details={"accuracy": 0.9})) or ("", None)
    assert (name, reading.value) == ("1 - accuracy", pytest.approx(0.1))
    assert error_of(score("perplexity", False, 3.0)) is None


def test_what_is_no_mean_of_items_has_the_error_of_its_resamples() -> None:
    draw = np.random.default_rng(0)
    ups = [draw.normal(0.8, 0.02, 500), draw.normal(0.3, 0.02, 500), draw.normal(0.7, 0.02, 500)]
    scores = [
        score("spearman", True, value, scale="resampled", replicates=up)
        for value, up in zip((0.8, 0.3, 0.7), ups, strict=True)
    ]
    found = curves_of((0, 0.5, 1), scores)
    assert found.keys() == {"error"}
    height = found["error"].height()
    assert height.value == pytest.approx(0.45)
    assert height.stderr == pytest.approx(np.std(0.5 * ups[0] + 0.5 * ups[2] - ups[1], ddof=1))
