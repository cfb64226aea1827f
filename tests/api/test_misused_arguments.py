"""Functions to call and changes to a recipe that are none, before anything is read."""

from __future__ import annotations

import pytest

import eutectic
from eutectic.choosing import Watch
from eutectic.errors import RecipeError

RECIPE = {"merge_method": "linear", "models": ["a", "b"]}


def places(call):
    with pytest.raises(RecipeError) as caught:
        call()
    return [(problem.code, problem.where) for problem in caught.value.problems]


def test_what_is_called_meanwhile_is_a_function(tmp_path):
    out, wrong = tmp_path / "out", {"on_plan": 3, "progress": True}
    both = [("M603", "on_plan"), ("M603", "progress")]
    assert places(lambda: eutectic.merge(RECIPE, out, **wrong)) == both
    assert places(lambda: eutectic.sweep(RECIPE, out, **wrong)) == both
    assert places(lambda: eutectic.api.average(["a", "b"], out, **wrong)) == both
    assert places(lambda: eutectic.tune(RECIPE, out, watch=Watch(**wrong))) == both
    assert places(lambda: eutectic.merge(RECIPE, out, options=3, **wrong)) == [("M603", "options"), *both]


def test_overrides_are_a_list_of_texts():
    with pytest.raises(RecipeError) as caught:
        eutectic.plan(RECIPE, overrides={"dtype": "float32", "parameters.weight": 2})
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == ("R140", "overrides")
    assert problem.hint == "write ['dtype=float32', 'parameters.weight=2']"
