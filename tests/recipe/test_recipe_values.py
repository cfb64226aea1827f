"""Settings against values computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

import eutectic.methods
from eutectic.names import Depths
from eutectic.recipe import Setting, load


def setting(value: Any, *, method: str = "linear", name: str = "weight") -> Setting:
    recipe = {"merge_method": method, "base_model": "base", "models": ["a", "b"], "parameters": {name: value}}
    return load(recipe, methods=eutectic.methods).parameters[name]


@pytest.mark.parametrize(
    ("anchors", "depth", "expected"),
    [
        (0.3, 0.0, 0.3),
        (0.3, 1.0, 0.3),
        ([0.7], 0.5, 0.7),
        ([0, 1], 0.0, 0.0),
        ([0, 1], 0.25, 0.25),
        ([0, 1], 1.0, 1.0),
        ([1, 0.7, 0.1], 0.25, 0.85),
        ([1, 0.7, 0.1], 0.5, 0.7),
        ([1, 0.7, 0.1], 0.75, 0.4),
        ([0, 0.5, 0.3, 0.7, 1], 0.125, 0.25),
        ([0, 0.5, 0.3, 0.7, 1], 0.25, 0.5),
        ([0, 0.5, 0.3, 0.7, 1], 0.375, 0.4),
        ([0, 0.5, 0.3, 0.7, 1], 0.9375, 0.925),
        ([0, 0.3, 0.7, 1], 1 / 3, 0.3),
        ([-1, "1e-5"], 1.0, 1e-5),
    ],
)
def test_gradients_are_piecewise_linear(anchors: Any, depth: float, expected: float) -> None:
    found = setting(anchors).at("any.weight", depth)
    assert isinstance(found, float)
    assert found == pytest.approx(expected, abs=1e-15)


def test_a_gradient_over_the_layers_of_a_model() -> None:
    names = [f"model.layers.{i}.mlp.weight" for i in range(5)]
    depths = Depths.of(names)
    gradient = setting([0, 1])
    assert [gradient.at(name, depths(name)) for name in names] == [0, 0.25, 0.5, 0.75, 1]
    assert gradient.at("model.embed_tokens.weight", depths("model.embed_tokens.weight")) == 0
    assert gradient.at("lm_head.weight", depths("lm_head.weight")) == 1


@pytest.mark.parametrize(("depth", "expected"), [(0.0, True), (0.49, True), (0.5, False), (0.99, False), (1.0, "l1")])
def test_booleans_and_choices_pick_an_anchor(depth: float, expected: object) -> None:
    found = setting([True, False, "l1"], method="dare_linear", name="rescale")
    assert found.at("x", depth) == expected
    assert found.stepped


def test_the_first_filter_that_matches_wins() -> None:
    found = setting(
        [{"filter": "self_attn", "value": [0, 1]}, {"filter": "/layers\\.[01]\\./", "value": 5}, {"value": 9}]
    )
    assert found.at("layers.0.self_attn.q.weight", 0.25) == 0.25
    assert found.at("layers.1.mlp.weight", 0.25) == 5
    assert found.at("layers.10.mlp.weight", 0.25) == 9
    assert [pattern for pattern, _ in found.filters] == ["self_attn", "/layers\\.[01]\\./"]
    assert [place.path for _, place in found.filters] == ["parameters.weight[0].filter", "parameters.weight[1].filter"]
    assert found.covers_all
    assert found.constant is None


def test_no_match_is_none_and_falls_back() -> None:
    found = setting({"filter": "mlp", "value": 0.5})
    assert found.at("attn.weight", 0.0) is None
    assert not found.covers_all
    assert found.over(setting(2)).at("attn.weight", 0.0) == 2
    assert found.over(None) is found
    assert setting(1).over(found) == setting(1)


def test_a_star_is_everything() -> None:
    for value in (
        {"filter": "*", "value": 2},
        [{"filter": "*", "value": 2}],
        [{"value": [2]}],
        {"filter": None, "value": 2},
    ):
        found = setting(value)
        assert found == setting(2)
        assert found.filters == []
        assert found.constant == 2


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (2, 2.0),
        ("0.5", 0.5),
        ([0, 1], [0.0, 1.0]),
        ({"filter": "mlp", "value": [0, 1]}, [{"filter": "mlp", "value": [0.0, 1.0]}]),
        ([{"filter": "mlp", "value": 1}, {"value": 0}], [{"filter": "mlp", "value": 1.0}, {"value": 0.0}]),
    ],
)
def test_canonical_form(value: Any, plain: Any) -> None:
    assert setting(value).to_plain() == plain
    assert setting(plain) == setting(value)


def test_the_constant_of_equal_values() -> None:
    assert setting([1, 1]).constant == 1
    assert setting([{"filter": "x", "value": 3}, {"value": 3}]).constant == 3
    assert setting([{"filter": "x", "value": 3}]).constant is None
