"""The value of every parameter for every tensor."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from planning import llama, plan_of, refused, ties_of

import eutectic.methods
from eutectic.methods import registry

Q = "model.layers.{}.self_attn.q_proj.weight"
UP = "model.layers.{}.mlp.up_proj.weight"


def slerp(t: Any) -> dict[str, Any]:
    return {"merge_method": "slerp", "base_model": "a", "models": ["a", "b"], "parameters": {"t": t}}


def values(recipe: dict[str, Any], param: str, layers: int = 3) -> dict[str, Any]:
    plan = plan_of(recipe, *(llama(label, layers) for label in ("a", "b", "c")))
    return {job.name: job.parameters[param] for job in plan.jobs}


def test_a_gradient_goes_from_the_embeddings_to_the_head() -> None:
    t = values(slerp([0, 1]), "t", layers=5)
    assert t["model.embed_tokens.weight"] == 0.0
    assert [t[Q.format(layer)] for layer in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert (t["model.norm.weight"], t["lm_head.weight"]) == (1.0, 1.0)


def test_filters_are_tried_in_order() -> None:
    t = values(
        slerp(
            [{"filter": "self_attn", "value": [0, 0.5]}, {"filter": "/layers.[01].mlp/", "value": 0.25}, {"value": 1}]
        ),
        "t",
    )
    assert [t[Q.format(layer)] for layer in range(3)] == [0.0, 0.25, 0.5]
    assert [t[UP.format(layer)] for layer in range(3)] == [0.25, 0.25, 1.0]
    assert t["lm_head.weight"] == 1.0


def test_a_value_is_looked_up_with_the_model_then_the_recipe_then_the_method() -> None:
    recipe = ties_of("a", "b", "c", parameters={"weight": 0.5, "lambda": 2})
    recipe["models"][0]["parameters"] = {"weight": [{"filter": "mlp", "value": 3}], "density": 0.5}
    weights, densities = values(recipe, "weight"), values(recipe, "density")
    assert weights[UP.format(0)] == [3.0, 0.5]
    assert weights[Q.format(0)] == [0.5, 0.5]
    assert densities[Q.format(0)] == [0.5, 0.2]
    assert set(values(recipe, "lambda").values()) == {2.0}
    assert set(values(recipe, "normalize").values()) == {True}


def test_parameters_follow_their_models_into_the_canonical_order() -> None:
    recipe = ties_of("a", "c", "b")
    recipe["models"][0]["parameters"] = {"weight": 3}
    plan = plan_of(recipe, *map(llama, "abc"))
    assert [item.label for item in plan.inputs] == ["a", "b", "c"]
    assert plan.jobs[0].parameters["weight"] == [1.0, 3.0]


def test_flags_are_stepped_not_interpolated() -> None:
    found = values(ties_of("a", "b", parameters={"normalize": [True, False]}), "normalize", layers=4)
    assert [found[Q.format(layer)] for layer in range(4)] == [True, True, True, False]


def test_defaults_that_differ_from_mergekit_are_told() -> None:
    note = "density is not given: 0.2, the paper's, is used (mergekit would use 1.0)"
    assert plan_of(ties_of("a", "b"), llama("a"), llama("b")).notes == (note,)
    assert plan_of(ties_of("a", "b", parameters={"density": 0.2}), llama("a"), llama("b")).notes == ()
    recipe = ties_of("a", "b")
    recipe["models"][0]["parameters"] = {"density": 0.2}
    assert plan_of(recipe, llama("a"), llama("b")).notes == ()


def test_a_filter_on_a_tied_tensor_has_no_effect_and_says_so() -> None:
    tied = {"ties": {"output.weight": "model.embed_tokens.weight"}}
    recipe = slerp([{"filter": "output", "value": 0.1}, {"value": 0.5}])
    plan = plan_of(recipe, llama("a", **tied), llama("b", **tied))
    why = "output.weight is tied to model.embed_tokens.weight, which is merged once"
    assert plan.notes == (f"the filter 'output' has no effect: {why}",)


def test_layer_range_of_the_whole_model_is_a_merge() -> None:
    sources = [{"model": label, "layer_range": [0, 3]} for label in "ab"]
    recipe = {"merge_method": "linear", "slices": [{"sources": sources}]}
    assert len(plan_of(recipe, llama("a"), llama("b")).jobs) == 9


def test_a_method_without_a_streamed_form_cannot_rank_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = copy.copy(eutectic.methods.ties)
    object.__setattr__(bare, "streamed", None)
    monkeypatch.setitem(registry._METHODS, "ties", bare)
    assert refused(ties_of("a", "b", parameters={"scope": "model"}), llama("a"), llama("b")) == [
        "P306 parameters.scope: ties has no streamed form, which `scope: model` needs; use `scope: tensor`"
    ]


@pytest.mark.parametrize(
    ("method", "parameters", "note"),
    [
        (
            "della",
            {"density": 0.2, "epsilon": 0.5},
            "epsilon 0.5 does not fit between 0 and 1 around density 0.2: 0.2 is used",
        ),
        ("della", {"density": 0.93, "epsilon": 0.07}, ""),
        ("della_linear", {"density": 1, "epsilon": 0.07}, ""),
        (
            "breadcrumbs",
            {"density": 0.8, "gamma": 0.5},
            "gamma 0.5 is more than density 0.8 leaves: at most 0.2 is removed",
        ),
        ("breadcrumbs_ties", {"density": 0.9, "gamma": 0.1}, ""),
    ],
)
def test_values_that_are_not_taken_as_they_are_written_are_told(method: str, parameters: Any, note: str) -> None:
    recipe = ties_of("a", "b", parameters=parameters) | {"merge_method": method}
    assert plan_of(recipe, llama("a"), llama("b")).notes == ((note,) if note else ())


def test_values_by_layer_are_told_of_once() -> None:
    recipe = ties_of("a", "b", parameters={"density": [0.2, 0.1], "epsilon": 0.5}) | {"merge_method": "della"}
    (note,) = plan_of(recipe, llama("a"), llama("b")).notes
    assert note.endswith("0.2 is used; and so for 2 other values")


def gradients(recipe: dict[str, Any]) -> list[str]:
    return [note for note in plan_of(recipe, *map(llama, "abc")).notes if "is a gradient" in note]


def test_a_gradient_that_all_models_share_may_have_been_meant_as_one_value_a_model() -> None:
    def shared(**parameters: Any) -> dict[str, Any]:
        return {"merge_method": "linear", "models": ["a", "b"], "parameters": parameters}

    start = "is a gradient over the layers, the same for every model"
    end = "; one weight a model is written beside it: `{model: MODEL, parameters: {weight: 0.9}}`"
    said = f"parameters.weight [0.9, 0.1] {start}, which has no effect under normalize{end}"
    assert gradients(shared(weight=[0.9, 0.1])) == [said]
    assert gradients(shared(weight=[0.9, 0.5, 0.1])) == [said.replace("[0.9, 0.1]", "[0.9, 0.5, 0.1]")]
    filtered = [{"filter": "mlp", "value": [0.9, 0.1]}, {"value": 1}]
    assert gradients(shared(weight=filtered)) == [said]
    assert gradients(shared(weight=[0.9, 0.1], normalize=False)) == [f"parameters.weight [0.9, 0.1] {start}{end}"]
    assert not gradients(shared(weight=[0.9, 0.5, 0.1], normalize=False))
    assert not gradients(shared(weight=0.5))


def test_a_shared_gradient_with_an_effect_is_left_alone() -> None:
    assert not gradients(slerp([0, 1]))
    assert not gradients(ties_of("a", "b", "c", parameters={"density": [0.1, 0.2, 0.3]}))
    assert len(gradients(ties_of("a", "b", "c", parameters={"density": [0.1, 0.2]}))) == 1
    recipe = ties_of("a", "b", "c", parameters={"weight": [0.9, 0.1]})
    recipe["models"][0]["parameters"] = {"weight": 3}
    assert not gradients(recipe)
