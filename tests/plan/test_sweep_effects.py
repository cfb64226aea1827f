"""Swept values that change nothing, and merges of a sweep that are one and the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import eutectic
from eutectic.errors import RecipeError
from eutectic.evaluate import Call
from eutectic.plan.effects import same_merges

BASE, ONE, TWO = ({"w": torch.tensor(values)} for values in ([0.0, 0.0], [1.0, 4.0], [3.0, -1.0]))
OWN = [{"model": ONE, "parameters": {"density": 0.5}}, {"model": TWO, "parameters": {"density": 1.0}}]


def swept(method: str, models: Any, **parameters: Any) -> dict[str, Any]:
    base = {} if method == "linear" else {"base_model": BASE}
    return {"merge_method": method, **base, "models": models, "parameters": parameters}


IDLE = [
    (
        swept("ties", OWN, density={"sweep": [0.5, 1.0]}),
        "P317 parameters.density: is swept and changes nothing: every model has its own density; "
        "sweep one of those, as models[0].parameters.density",
    ),
    (
        swept("linear", [ONE, TWO], weight={"sweep": [0.3, 0.5, 7]}),
        "P317 parameters.weight: is swept and changes nothing: under normalize only the proportions of the weights "
        "count; sweep the weight of one model, or set `normalize: false`",
    ),
    (
        swept("ties", [ONE, TWO], int8_mask={"sweep": [True, False]}, density={"sweep": [0.5, 1.0]}),
        "P317 parameters.int8_mask: is swept and changes nothing: sign masks take no memory here; leave it out",
    ),
    (
        swept("linear", [ONE, TWO], weight=[{"filter": "w", "value": {"sweep": [0.3, 0.5]}}, {"value": 1}]),
        "P317 parameters.weight[0].value: is swept and changes nothing: under normalize only the proportions",
    ),
    (
        swept("multislerp", [ONE, TWO], weight={"sweep": [0.3, 0.5]}, normalize_weights={"sweep": [True]}),
        "only the proportions of the weights count",
    ),
]


@pytest.mark.parametrize(("recipe", "message"), IDLE)
def test_a_sweep_that_changes_nothing_is_refused(recipe: Any, message: str, tmp_path: Path) -> None:
    def never(source: Any) -> float:
        raise AssertionError("measured")

    task = Call(never)
    for ask in (
        lambda: eutectic.sweep(recipe, tmp_path / "out"),
        lambda: eutectic.plan_sweep(recipe),
        lambda: eutectic.tune(recipe, tasks=[task], cache=False),
        lambda: eutectic.api.evaluate_models([recipe], [task], cache=False),
    ):
        with pytest.raises(RecipeError) as caught:
            ask()
        assert message in str(caught.value)
        assert len(caught.value.problems) == 1
    assert not (tmp_path / "out").exists()


def test_every_sweep_that_changes_nothing_is_told() -> None:
    recipe = swept("ties", OWN, density={"sweep": [0.5, 1.0]}, int8_mask={"sweep": [True, False]})
    with pytest.raises(RecipeError) as caught:
        eutectic.plan_sweep(recipe)
    assert [problem.where for problem in caught.value.problems] == ["parameters.density", "parameters.int8_mask"]


@pytest.mark.parametrize(
    "recipe",
    [
        swept("linear", [ONE, TWO], weight={"sweep": [0.3, 0.5]}, normalize=False),
        swept("linear", [ONE, TWO], weight={"sweep": [0.3, 0.5]}, normalize={"sweep": [True, False]}),
        swept("linear", [ONE, {"model": TWO, "parameters": {"weight": 1}}], weight={"sweep": [0.3, 0.5]}),
        swept("ties", [ONE, TWO], weight={"sweep": [1, -1]}),
        swept("ties", [OWN[0], TWO], density={"sweep": [0.5, 1.0]}),
        swept("linear", [ONE, TWO], weight={"sweep": [0.3]}),
    ],
)
def test_a_sweep_that_changes_something_is_not(recipe: Any) -> None:
    assert len(eutectic.plan_sweep(recipe)) >= 1


def test_merges_that_are_the_same_are_noted(tmp_path: Path) -> None:
    models = [{"model": ONE, "parameters": {"weight": {"sweep": [1, 2]}}}, TWO]
    recipe = swept("linear", models, weight={"sweep": [3, 6]})
    one, two = "models[0].parameters.weight=1,parameters.weight=3", "models[0].parameters.weight=2,parameters.weight=6"
    note = f"one and the same merge: {one}, {two}"
    assert same_merges(eutectic.plan_sweep(recipe)) == [note]
    done = eutectic.sweep(recipe, tmp_path / "out")
    assert note in done.notes and len(done.merges) == 4
    same = [(tmp_path / "out" / label / "model.safetensors").read_bytes() for label in (one, two)]
    assert same[0] == same[1]
    found = eutectic.tune(recipe, tasks=[Call(lambda source: float(source["w"][0]))], cache=False).found
    assert found.notes == (note,) and found.as_json()["notes"] == [note]


def test_a_tie_is_called_one() -> None:
    from eutectic.report.search_html import tuning_in_words, tuning_rows

    recipe = swept("linear", [ONE, TWO], weight={"sweep": [1, 2, 3]}, normalize=False)
    task = Call(lambda source: min(float(source["w"][0]), 8.0), name="skill")
    found = eutectic.tune(recipe, tasks=[task], cache=False).found
    assert (found.best, found.equals) == ("weight=2", ("weight=3",)) and not found.notes
    assert found.as_json()["equals"] == ["weight=3"]
    assert tuning_in_words(found).endswith("a tie: weight=3 has the same score, the first of the sweep is taken")
    assert [row[-1] for row in tuning_rows(found, "skill")] == ["", "chosen", "the same score"]
    free = eutectic.tune(recipe, tasks=[task], keep=["skill <= 4"], cache=False).found
    assert (free.best, free.equals) == ("weight=1", ()) and "tie" not in tuning_in_words(free)
    assert eutectic.tune(recipe, tasks=[task], keep=["skill <= 1"], cache=False).found.equals == ()
