"""Standard errors, intervals and paired differences, against formulas written out and against coin flips."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eutectic.errors import RecipeError
from eutectic.evaluate import Score, paired
from eutectic.evaluate.evaluation import Evaluation
from eutectic.evaluate.intervals import (
    difference,
    mean_interval,
    of_replicates,
    t_quantile,
    weighted_mean,
)


def made(items: Any, weights: Any = None, **others: Any) -> Score:
    """A score with these items, as `score_of` would make it."""
    values = np.array(items, float)
    counts = np.ones(len(values)) if weights is None else np.array(weights, float)
    mean, error = weighted_mean(values, counts)
    exp = others.get("scale") == "exp"
    kept = {"higher_is_better": True, "metric": "acc", "basis": "b", **others}
    return Score(
        "t", value=math.exp(mean) if exp else mean, stderr=error, interval=mean_interval(values, counts), items=values,
        weights=counts, **kept,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [
        (1, 12.7062),
        (2, 4.30265),
        (5, 2.57058),
        (10, 2.22814),
        (11, 2.20099),
        (15, 2.13145),
        (30, 2.04227),
        (100, 1.98397),
    ],
)
def test_quantiles_are_those_of_the_table(freedom: int, quantile: float) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, rel=1e-5)


def test_quantiles_fall_towards_the_normal() -> None:
    values = [t_quantile(freedom) for freedom in range(1, 200)]
    assert values == sorted(values, reverse=True) and t_quantile(10**9) == pytest.approx(1.959964)


def test_scores_show_themselves_in_a_line() -> None:
    one = made([0, 1, 1, 1])
    low, high = one.interval or (0, 0)
    assert repr(one) == f"<Score t: acc 0.75 ({low:.4g} to {high:.4g}), 4 items; see .details>"
    found = Evaluation(("a", "b"), ("t",), {"t": {"a": one, "b": made([1])}})
    assert repr(found) == "<Evaluation of a, b on t; see .scores>"


def test_a_plain_mean() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    mean, error = weighted_mean(values, np.ones(4))
    assert mean == 4.0 and error == pytest.approx(values.std(ddof=1) / 2)
    low, high = mean_interval(values, np.ones(4))  # type: ignore[misc]
    assert (low + high) / 2 == pytest.approx(4.0) and high - 4.0 == pytest.approx(
        3.18245 * values.std(ddof=1) / 2, rel=1e-5
    )


def test_a_weighted_mean_is_a_ratio_of_sums() -> None:
    draw = np.random.default_rng(0)
    values, weights = draw.normal(size=50), draw.integers(1, 20, 50).astype(float)
    mean, error = weighted_mean(values, weights)
    assert mean == pytest.approx(np.average(values, weights=weights))
    residual = weights * (values - mean)
    assert error == pytest.approx(math.sqrt((residual**2).sum() / 49 * 50) / weights.sum())
    # Scaling all weights says nothing new; a weight of 0 is an item that does not count.
    assert weighted_mean(values, 3 * weights)[1] == pytest.approx(error)


def test_one_item_tells_no_error() -> None:
    assert weighted_mean(np.array([3.0]), np.ones(1)) == (3.0, None)
    assert mean_interval(np.array([3.0]), np.ones(1)) is None
    assert of_replicates(np.empty(0)) == (None, None)
    found = paired(made([1.0]), made([0.0]))
    assert (found.value, found.stderr, found.interval, found.better) == (1.0, None, None, None)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"), [(8, 10, 0.4902, 0.9433), (10, 10, 0.7225, 1.0), (0, 10, 0.0, 0.2775)]
)
def test_shares_have_wilsons_interval(right: int, count: int, low: float, high: float) -> None:
    values = np.array([1.0] * right + [0.0] * (count - right))
    assert mean_interval(values, np.ones(count)) == pytest.approx((low, high), abs=1e-4)


def test_intervals_hold_what_they_say() -> None:
    """Of 95 % intervals of a share of 0.3 and of a weighted mean, 95 in a hundred hold it."""
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        low, high = mean_interval((draw.random(40) < 0.3).astype(float), np.ones(40))  # type: ignore[misc]
        held += low <= 0.3 <= high
    assert 930 <= held <= 980
    held = 0
    for _ in range(1000):
        weights = draw.integers(1, 10, 60).astype(float)
        low, high = mean_interval(draw.normal(2.0, 1.0, 60) + 0 * weights, weights)  # type: ignore[misc]
        held += low <= 2.0 <= high
    assert 925 <= held <= 975


def test_pairs_see_what_two_intervals_do_not() -> None:
    draw = np.random.default_rng(2)
    hard = draw.normal(0, 5, 200)
    a, b = made(hard + 0.5 + draw.normal(0, 0.1, 200)), made(hard)
    assert a.interval is not None and b.interval is not None and a.interval[0] < b.interval[1]
    found = paired(a, b)
    assert found.better is True and found.interval is not None and found.interval[0] > 0.4
    assert found.stderr == pytest.approx(np.std(a.items - b.items, ddof=1) / math.sqrt(200))
    assert paired(b, a).better is False
    assert paired(a, a).better is None and paired(a, a).value == 0


def test_lower_may_be_better() -> None:
    a = made([1.0, 1.1, 0.9, 1.0, 1.05], higher_is_better=False)
    b = made([2.0, 2.1, 1.9, 2.1, 2.0], higher_is_better=False)
    assert paired(a, b).better is True and paired(a, b).value < 0


def test_a_few_answers_prove_nothing() -> None:
    """s/√n of (1, 1) - (0, 0) is 0; Bonett and Price's interval is not."""
    found = paired(made([1, 1]), made([0, 0]))
    assert found.value == 1 and found.stderr == 0 and found.better is None
    assert paired(made([1] * 20), made([0] * 20)).better is True
    # 15 won and 5 lost of 100: (16 - 6) / 102 ± z √(...).
    a, b = [1] * 15 + [0] * 5 + [1] * 80, [0] * 15 + [1] * 5 + [1] * 80
    won, lost = 16 / 102, 6 / 102
    half = 1.959964 * math.sqrt((won + lost - (won - lost) ** 2) / 102)
    assert paired(made(a), made(b)).interval == pytest.approx((won - lost - half, won - lost + half))


def test_a_difference_of_perplexities() -> None:
    draw = np.random.default_rng(3)
    weights = draw.integers(10, 90, 40)
    nll = draw.normal(3, 0.4, 40)
    a, b = made(nll - 0.05, weights, scale="exp"), made(nll, weights, scale="exp")
    found = paired(a, b)
    assert found.value == a.value - b.value < 0
    boot = []
    for _ in range(2000):
        pick = draw.integers(0, 40, 40)
        boot.append(
            math.exp(np.average(a.items[pick], weights=weights[pick]))
            - math.exp(np.average(b.items[pick], weights=weights[pick]))
        )
    assert found.stderr == pytest.approx(np.std(boot), rel=0.1)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.integers(1, 50)), min_size=2, max_size=30))
def test_differences_are_antisymmetric(rows: list[tuple[float, float, int]]) -> None:
    a, b = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    weights = np.array([float(r[2]) for r in rows])
    error, bounds = difference(a, b, weights, (1.0, 1.0))
    back, mirrored = difference(b, a, weights, (1.0, 1.0))
    assert error == back and bounds is not None and mirrored is not None
    assert mirrored == pytest.approx((-bounds[1], -bounds[0]), rel=1e-9, abs=1e-9)


def test_only_like_is_paired() -> None:
    for other in (made([1, 0], basis="c"), made([1, 0], metric="f1")):
        with pytest.raises(RecipeError, match=r"^E909 .* are not of the same items"):
            paired(made([1, 0]), other)
    for other in (made([1, 0, 1]), made([1, 0], [1, 2])):
        with pytest.raises(RecipeError, match=r"^E909 the items of 't' weigh differently"):
            paired(made([1, 0]), other)


@pytest.mark.parametrize("items", [[0.1, 1 / 3, 5e-324], [1.0]])
def test_a_score_comes_back_bit_for_bit(items: list[float]) -> None:
    score = made(items, details={"x": 0.1})
    again = Score.from_json(json.loads(json.dumps(score.as_json(items=True))))
    assert again.as_json(items=True) == score.as_json(items=True)
    assert again.items.tolist() == items and again.interval == score.interval
