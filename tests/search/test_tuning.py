"""Ranges, constraints, and the choice among the merges of a sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from souping import Net, items, trained

import eutectic
from eutectic.checkpoint import Source
from eutectic.errors import EutecticError, NumericError, RecipeError
from eutectic.evaluate import Call, Classification, Loader, Score, Settings
from eutectic.search.keep import constraints_of
from eutectic.search.over import overrides_of, steps
from eutectic.testing import tiny_llama

BASE, TUNED = {"w": torch.tensor([0.0])}, {"w": torch.tensor([8.0])}
RECIPE = {"merge_method": "wise_ft", "base_model": BASE, "models": [TUNED]}
ALPHA = {"parameters.alpha": "0:1:0.125"}


def skill(source: Source) -> float:
    return float(source["w"])


def forgotten(source: Source) -> float:
    return float(source["w"]) ** 2


SKILL = Call(skill)
FORGOTTEN = Call(forgotten, metric="loss", higher_is_better=False)


def tuned(*arguments: Any, **options: Any) -> eutectic.Tuned:
    return eutectic.tune(*arguments, cache=False, **options)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0:1:0.1", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ("0:1:0.3", [0.0, 0.3, 0.6, 0.9]),
        ("0:1:0.3333333333", [0, 0.3333333333, 0.6666666666, 0.9999999999]),
        ("-1:1:1", [-1, 0, 1]),
        ("2:2:1", [2]),
        ("1e-3:3e-3:1e-3", [0.001, 0.002, 0.003]),
    ],
)
def test_a_range_has_both_ends(text: str, values: list[float]) -> None:
    assert [float(value) for value in steps(text)] == values


@given(st.integers(-50, 50), st.integers(0, 60), st.integers(1, 30), st.sampled_from([1, 10, 100]))
def test_ranges_are_decimal(start: int, count: int, step: int, scale: int) -> None:
    stop = start + count * step
    text = f"{start / scale}:{stop / scale}:{step / scale}"
    assert [float(value) for value in steps(text)] == [(start + i * step) / scale for i in range(count + 1)]


@pytest.mark.parametrize(
    "over",
    ["t", "t=", "=0:1:1", "t=1:0:1", "t=0:1:0", "t=0:1:-1", "t=0:1", "t=0:nan:1", "t=0:inf:1", "t=a:b:c", "t=0:1:1e-9"],
)
def test_no_ranges(over: str) -> None:
    with pytest.raises(RecipeError, match=r"S805|R140"):
        tuned(RECIPE, over=[over], tasks=[SKILL])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("alpha", "R128 over alpha: cannot be swept: only parameters are; did you mean 'parameters.alpha'?"),
        ("alpah", "only parameters are; did you mean 'alpha'? It stands under `parameters`"),
        ("models[0].alpha", "did you mean 'models[0].parameters.alpha'?"),
        ("seed", "R128 over seed: cannot be swept: only parameters are; merge once for each value"),
        ("merge_method", "R128 over merge_method: cannot be swept"),
        ("parameters.alpah", "R121 over parameters.alpah: wise_ft has no parameter 'alpah'; did you mean 'alpha'?"),
        ("", "S805 no key is named"),
    ],
)
def test_what_is_no_parameter(key: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        tuned(RECIPE, over={key: [0.1, 1]}, tasks=[SKILL], overrides=["dtype=float32"])
    assert message in str(error.value) and "overrides" not in str(error.value)


def test_values_from_python() -> None:
    assert overrides_of({"a.b": (0.1, 0.5), "c": "[x, 2]"}) == ["a.b={sweep: [0.1, 0.5]}", "c={sweep: [x, 2]}"]
    arrays = [np.linspace(0, 1, 3), torch.linspace(0, 1, 3), [np.float32(0), torch.tensor(0.5), np.array(1.0)]]
    assert {overrides_of({"a": values})[0] for values in arrays} == {"a={sweep: [0.0, 0.5, 1.0]}"}
    for values in (0.5, [object()], np.eye(2)):
        with pytest.raises(RecipeError, match="S805"):
            overrides_of({"a": values})


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (
            "general.nll <= base",
            "'general.nll' is not evaluated; did you mean 'general-dev'? The tasks are general-dev, math",
        ),
        ("mth <= 3", "'mth' is not evaluated; did you mean 'math'? The tasks are general-dev, math"),
        ("code <= 3", "'code' is not evaluated; the tasks are general-dev, math"),
    ],
)
def test_a_task_that_is_not_there_is_told_with_those_that_are(text: str, hint: str) -> None:
    with pytest.raises(RecipeError) as error:
        constraints_of([text], ["general-dev", "math"], has_base=True)
    assert str(error.value).endswith(hint)


def score(value: float, **details: float) -> Score:
    return Score("general", "accuracy", True, value, None, None, *(torch.ones(1).numpy(),) * 2, details=details)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("general >= 0.7", True),
        ("general > .7", False),
        ("general>=base-0.1", True),
        ("general >= base - 0.05", False),
        ("general.nll <= base + 2e-1", True),
        ("general.nll < base", False),
        ("general.accuracy <= 7e-1", True),
        ("general.nll >= -1", True),
    ],
)
def test_constraints(text: str, holds: bool) -> None:
    (constraint,) = constraints_of([text], ["general"], has_base=True)
    assert constraint.holds({"general": score(0.7, nll=1.1)}, {"general": score(0.8, nll=1.0)}) is holds


def test_a_task_may_have_dots_in_its_name() -> None:
    (one,) = constraints_of("v1.2.nll <= 3", ["v1", "v1.2"], has_base=False)
    assert (one.task, one.metric) in (("v1", "2.nll"), ("v1.2", "nll"))
    (one,) = constraints_of("v1.2 <= 3", ["v1", "v1.2"], has_base=False)
    assert (one.task, one.metric) == ("v1.2", None)


def test_the_best_that_keeps_what_must_be_kept() -> None:
    free = tuned(RECIPE, over=ALPHA, tasks=[SKILL, FORGOTTEN])
    assert free.found.best == "alpha=1" and len(free.found.choices) == 9
    kept = tuned(RECIPE, over=ALPHA, tasks=[SKILL, FORGOTTEN], keep=["forgotten <= base + 9"])
    assert kept.found.best == "alpha=0.375" and kept.merge is None
    assert [label for label, failed in kept.found.failed.items() if not failed] == [
        "alpha=0", "alpha=0.125", "alpha=0.25", "alpha=0.375",
    ]  # fmt: skip
    assert kept.recipe is not None and float(eutectic.merged(kept.recipe)["w"]) == 3.0
    assert kept.found.base["forgotten"].value == 0.0
    json.dumps(kept.found.as_json())
    counts = "9 merges on 2 tasks, 4 keep what must be kept"
    assert repr(kept.found) == f"<Tuning: {counts}; best 'alpha=0.375'; see .scores>"
    assert repr(kept) == "<Tuned: best 'alpha=0.375' of 9 merges, not written; see .found>"


def test_lower_is_better_where_it_is() -> None:
    assert tuned(RECIPE, over=ALPHA, tasks=[FORGOTTEN]).found.best == "alpha=0"


def test_nothing_keeps_it(tmp_path: Path) -> None:
    options: dict[str, Any] = {"over": ALPHA, "tasks": [SKILL], "keep": ["skill >= 100"]}
    found = tuned(RECIPE, **options)
    assert (found.found.best, found.recipe) == (None, None)
    with pytest.raises(RecipeError, match="S808"):
        tuned(RECIPE, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_sweep_in_the_recipe_and_two_of_them() -> None:
    recipe = {**RECIPE, "parameters": {"alpha": {"sweep": [0.25, 0.5]}}}
    assert tuned(recipe, tasks=[SKILL]).found.best == "alpha=0.5"
    both = tuned(
        {"merge_method": "ties", "base_model": BASE, "models": [TUNED]},
        over=["parameters.density=[0.5, 1]", "parameters.lambda=0.5:1:0.5"],
        tasks=[SKILL],
    )
    assert len(both.found.choices) == 4


def test_it_is_the_score_of_the_merge_that_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = tiny_llama(tmp_path / "base", seed=1, layers=1)
    tiny_llama(tmp_path / "tuned", base=base, seed=2, noise=0.2)
    Path("dev.txt").write_text(" ".join(f"w{i % 90 + 3}" for i in range(120)))
    task = {"task": "perplexity", "data": "dev.txt", "block": 40}
    recipe = {"merge_method": "wise_ft", "base_model": "base", "models": ["tuned"]}
    done = tuned(recipe, "out", over={"parameters.alpha": [0.25, 0.75]}, tasks=[task])
    best = done.found.best
    assert best is not None and done.merge is not None
    assert done.found.scores[best]["dev"].value == eutectic.evaluate("out", task, cache=False).value
    assert repr(done) == f"<Tuned: best {best!r} of 2 merges, in {done.merge.path}; see .found>"
    assert not eutectic.verify("out").problems


def test_paired_with_the_base() -> None:
    """Classification of live modules: differences are item by item."""
    nets = []
    for steps_ in (0, 6):
        net = Net()
        net.load_state_dict(trained(1, steps_))
        nets.append(net)
    found = tuned(
        {"merge_method": "wise_ft", "base_model": nets[0], "models": [nets[1]]},
        over={"parameters.alpha": [0.0, 1.0]},
        tasks=[Classification(items(7, 200), name="dev")],
    ).found
    same, better = found.less("alpha=0", "dev"), found.less("alpha=1", "dev")
    assert same is not None and same.value == 0 and same.better is None
    assert better is not None and better.better is True


def test_mistakes() -> None:
    called: list[str] = []

    def never(source: Source) -> float:
        called.append(source.label)
        return 0.0

    task = Call(never, name="target")
    bare = {"merge_method": "linear", "models": [BASE, TUNED]}
    for code, arguments in (
        ("R121", {"over": {"parameters.alpah": "0:1:0.5"}}),
        ("R122|R125|R12", {"over": {"parameters.alpha": ["much"]}}),
        ("S807", {"over": {}}),
        ("S807", {"tasks": []}),
        ("S806", {"keep": ["general <= base + 1"]}),
        ("S806", {"keep": ["target <= basis"]}),
        ("S806", {"keep": ["target = 3"]}),
        ("S806", {"keep": ["target <= nan"]}),
        ("S806", {"source": bare, "over": {"models[0].parameters.weight": [1, 2]}, "keep": ["target <= base"]}),
        ("E901", {"tasks": ["perplexty:x"]}),
        ("P3", {"source": {**RECIPE, "models": [{"w": torch.ones(2)}]}}),
    ):
        with pytest.raises(EutecticError, match=code) as error:
            options = {"source": RECIPE, "over": ALPHA, "tasks": [task], **arguments}
            tuned(options.pop("source"), **options)
        assert "--" not in str(error.value) or code == "E901" or code.startswith("R1"), "options of the command"
    assert not called, "refused before anything was measured"
    with pytest.raises(RecipeError, match="S803"):
        tuned(RECIPE, over=ALPHA, tasks=[task], keep=["target.nll <= 1"])
    assert len(called) == 1, "a metric that is not there is told after the first model"


def test_a_score_that_is_not_a_number() -> None:
    with pytest.raises(NumericError, match="E908"):
        tuned(RECIPE, over=ALPHA, tasks=[Call(lambda source: float("nan"), name="broken")])


def test_settings_say_what_the_module_is() -> None:
    weights = [trained(1, steps_) for steps_ in (0, 3)]
    found = tuned(
        {"merge_method": "wise_ft", "base_model": weights[0], "models": [weights[1]]},
        over={"parameters.alpha": [0.5]},
        tasks=[Classification(items(7, 32))],
        settings=Settings(loader=Loader(Net)),
    )
    assert found.found.best == "alpha=0.5"
