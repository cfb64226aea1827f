"""Labels, the order of models, and the fingerprint: what it depends on, and what it does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning import Header, linear, llama, plan_of, ties_of

from eutectic.checkpoint import Source
from eutectic.methods import get
from eutectic.plan import make_plan
from eutectic.plan.labels import unique_labels
from eutectic.recipe import load


def dare(**more: Any) -> dict[str, Any]:
    models = [{"model": "a"}, {"model": "b"}]
    return {"merge_method": "dare_linear", "base_model": "base", "models": models, **more}


def fingerprint(recipe: dict[str, Any], *models: Header) -> str:
    return plan_of(recipe, *(models or tuple(map(llama, ("base", "a", "b"))))).fingerprint


def test_the_same_recipe_has_the_same_fingerprint_in_another_process() -> None:
    found = fingerprint(dare())
    assert found == fingerprint(dare()) and len(found) == 64
    code = (
        "import sys; sys.path.insert(0, 'tests/plan'); import test_plan_identity as t; print(t.fingerprint(t.dare()))"
    )
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == found


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"dtype": "bfloat16"},
        {"out_dtype": "float16"},
        {"parameters": {"density": 0.9}},
        {"parameters": {"weight": [{"filter": "norm", "value": 0.5}, {"value": 1}]}},
        {"parameters": {"lambda": 0.5}},
        {"merge_method": "dare_ties"},
        {"models": [{"model": "a"}]},
    ],
)
def test_what_changes_the_output_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprint(dare(**change)) != fingerprint(dare())


@pytest.mark.parametrize(
    "change",
    [
        {"name": "my merge"},
        {"seed": 0},
        {"parameters": {"weight": 1}},
        {"models": [{"model": "b"}, {"model": "a"}]},
        {"missing": "copy"},
        {"buffers_from": "a"},
    ],
)
def test_what_does_not_change_it_does_not(change: dict[str, Any]) -> None:
    assert fingerprint(dare(**change)) == fingerprint(dare())


def test_other_inputs_have_another_fingerprint() -> None:
    base, a = llama("base"), llama("a")
    assert fingerprint(dare(), base, a, llama("b", size=1)) != fingerprint(dare(), base, a, llama("b"))
    assert fingerprint(dare(), base, a, llama("b", layers=3)) == fingerprint(dare(), base, a, llama("b"))


def test_a_seed_matters_to_random_methods_only() -> None:
    models = llama("a"), llama("b")
    assert fingerprint(linear("a", "b", seed=1), *models) == fingerprint(linear("a", "b"), *models)
    nested = {"merge_method": "linear", "models": [{"model": dare(name="x")}, {"model": "a"}]}
    assert fingerprint({**nested, "seed": 1}) != fingerprint(nested)


def test_scope_is_part_of_the_fingerprint() -> None:
    models = llama("base"), llama("a")
    assert fingerprint(ties_of("base", "a", parameters={"scope": "model"}), *models) != fingerprint(
        ties_of("base", "a"), *models
    )


def test_a_nested_recipe_is_known_by_its_fingerprint() -> None:
    def nested(**more: Any) -> str:
        inner = {**linear("a", "b"), "name": "inner", **more}
        return fingerprint(linear(inner, "base"))

    assert nested() == nested(missing="copy")
    assert nested(out_dtype="bfloat16") != nested()


def test_order_means_nothing_to_symmetric_methods_and_something_to_slerp() -> None:
    def slerp(*models: str) -> dict[str, Any]:
        return {"merge_method": "slerp", "base_model": models[0], "models": [*models], "parameters": {"t": 0.3}}

    models = llama("a"), llama("b")
    assert fingerprint(linear("a", "b"), *models) == fingerprint(linear("b", "a"), *models)
    assert fingerprint(slerp("a", "b"), *models) != fingerprint(slerp("b", "a"), *models)


@pytest.mark.parametrize("size", [0, 1])
def test_models_of_one_name_keep_their_numbers_when_the_recipe_is_turned_round(size: int) -> None:
    here, there = llama("model"), llama("model", size=size)
    opener: Callable[[Any, str | None], Source] = lambda model, folder: {"x/m": here, "y/m": there}[model]  # noqa: E731
    plans = [make_plan(load(linear(*models), methods=_Methods), opener) for models in (("x/m", "y/m"), ("y/m", "x/m"))]
    for plan in plans:
        assert [item.label for item in plan.inputs] == ["model", "model#2"]
        assert [item.source for item in plan.inputs] == [here, there]
    assert plans[0].fingerprint == plans[1].fingerprint


class _Methods:
    get = staticmethod(get)
    names = staticmethod(lambda: ["linear"])
    steps = staticmethod(dict)


def test_live_models_are_told_apart_by_identity() -> None:
    import torch

    import eutectic

    one, two = {"w": torch.ones(3)}, {"w": torch.zeros(3)}
    plan = eutectic.plan({"merge_method": "slerp", "base_model": two, "models": [one, two], "parameters": {"t": 0.0}})
    assert [(item.label, item.role) for item in plan.inputs] == [("dict", "base"), ("dict#2", "model")]


@given(st.lists(st.sampled_from(["a", "a#2", "a#3", "b"]), max_size=8))
def test_labels_are_unique(labels: list[str]) -> None:
    unique = unique_labels(labels)
    assert len(set(unique)) == len(labels)
    assert all(new.startswith(old) for new, old in zip(unique, labels, strict=True))
    # The first of a name has it unchanged.
    assert all(unique[labels.index(label)] == label for label in labels)


def test_planning_imports_neither_torch_nor_numba() -> None:
    code = "import sys, eutectic.plan; print(sorted({'torch', 'numba', 'rich', 'transformers'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
