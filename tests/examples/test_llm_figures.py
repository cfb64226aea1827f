"""The tables of the language model demonstration say what the scores say."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import numpy as np
import pytest

from eutectic.evaluate import Evaluation, Score
from eutectic.search import Tuning

ROOT = Path(__file__).parents[2]
LOSSES = {"base": 2.0, "code": 1.0, "arithmetic": 1.5, "biomedical": 2.5, "merge": 2.01}
NOISE = np.linspace(-0.5, 0.5, 21)


@pytest.fixture(scope="module")
def figures():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples" / "llm")
        yield importlib.import_module("figures")


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("transformers")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples" / "llm")
        yield importlib.import_module("statistics_llm")


def score(loss, task="code", wobble=0.0):
    """A perplexity on 21 items of the mean loss `loss`; `wobble` is what is not shared with the other models."""
    items = loss + NOISE + wobble * NOISE[::-1] ** 3
    return Score(
        task, "perplexity", False, math.exp(loss), 0.1, (1.0, 9.0), items, np.ones(21), scale="exp", basis=task
    )


def cells(lines, name):
    return next(row for line in lines if (row := line.strip("| ").split(" | "))[0] == name)


def test_the_overview_marks_what_is_surely_better_or_worse_than_the_base(figures):
    scores = {model: score(loss, wobble=0.5 if model == "merge" else 0.0) for model, loss in LOSSES.items()}
    lines = list(figures.overview(Evaluation(tuple(LOSSES), ("code",), {"code": scores})))
    assert [cells(lines, model)[1] for model in LOSSES] == ["7.39", "2.72 ↓", "4.48 ↓", "12.18 ↑", "7.46"]


def test_what_is_kept_is_told_of_the_loss(figures):
    tasks = ("code", "arithmetic", "biomedical")
    losses = {**LOSSES, "merge": 1.25}
    scores = {
        task: {
            model: score(1.0 if model == task else 2.0 if model in tasks else loss) for model, loss in losses.items()
        }
        for task in tasks
    }
    lines = list(figures.kept(Evaluation(tuple(losses), tasks, scores)))
    assert lines[2:] == ["| merge | 75 % | 75 % | 75 % |"]


def test_each_model_is_paired_with_the_base_and_with_the_best_parent(figures):
    lines = list(figures.by_task({model: score(loss) for model, loss in LOSSES.items()}))
    assert cells(lines, "model")[-1] == "less code, the best parent"
    assert cells(lines, "base")[3] == cells(lines, "code")[4] == "-"
    assert cells(lines, "arithmetic")[3].startswith(f"{math.exp(1.5) - math.exp(2):+.3f} (")
    assert cells(lines, "arithmetic")[4].startswith(f"{math.exp(1.5) - math.exp(1):+.3f} (")
    assert cells(lines, "base")[2] == "1.00 to 9.00"


def test_a_sweep_says_which_merge_keeps_the_guard_and_which_was_chosen(figures):
    losses = {"w=1": (1.0, 2.0), "w=2": (0.9, 2.01), "w=3": (0.8, 2.5)}
    scores = {label: {"t": score(a, "t"), "g": score(b, "g")} for label, (a, b) in losses.items()}
    base = {"t": score(1.5, "t"), "g": score(2.0, "g")}
    failed = {"w=1": (), "w=2": (), "w=3": ("g <= base + 1",)}
    found = Tuning(("t", "g"), {label: {} for label in losses}, scores, base, ("g <= base + 1",), failed, "w=2")
    lines = list(figures.of_sweep(found))
    assert [cells(lines, label)[-1] for label in losses] == ["yes", "chosen", "no"]
    assert cells(lines, "w=1")[2].startswith(f"{math.exp(1) - math.exp(1.5):+.3f} (")
    assert len({line.count("|") for line in lines}) == 1


def test_merges_with_statistics_are_paired_with_the_average(script):
    losses = {**LOSSES, "linear": 1.9, "task_arithmetic-tuned": 1.7, "regmean-64": 1.8}
    del losses["merge"]
    found = Evaluation(tuple(losses), ("code",), {"code": {model: score(loss) for model, loss in losses.items()}})
    lines = list(script.shown(found))
    assert [cells(lines, model)[1] for model in ("base", "linear", "regmean-64")] == ["7.39 ↑", "6.69", "6.05 ↓"]
    less = [line for line in lines if line.startswith("| regmean-64")][1:]
    assert [cells([line], "regmean-64")[1].partition(" (")[0] for line in less] == [
        f"{math.exp(1.8) - math.exp(other):+.3f}" for other in (1.9, 1.7)
    ]
    assert script.BEGIN in script.PAGE.read_text(encoding="utf-8")


def test_the_recipes_are_of_the_statistics_that_are_collected(script):
    for merge in script.MERGES.values():
        for domain, entry in zip(script.DOMAINS, merge.recipe()["models"], strict=True):
            assert entry["model"].endswith(f"models/{domain}")
            assert entry["statistics"] == str(script.place(merge.kind, domain, merge.samples))


def test_the_merge_that_was_chosen_is_the_best_target_of_those_that_keep_the_guard(figures):
    def tuning(best, **losses):
        scores = {label: {"t": score(loss, "t")} for label, loss in losses.items()}
        return Tuning(("t",), {}, scores, {}, (), {}, best)

    sweeps = {"a": tuning("x", x=1.5, y=1.0), "b": tuning("x", x=1.2), "c": tuning(None, x=0.5)}
    assert figures.chosen(sweeps) == "b-tuned"
    assert figures.chosen({"c": sweeps["c"]}) is None
    scores = {"code": {model: score(loss) for model, loss in LOSSES.items()}}
    lines = list(figures.beside(Evaluation(tuple(LOSSES), ("code",), scores), "code"))
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| base", "| arithmetic", "| biomedical", "| merge"]
    assert cells(lines, "base")[1].startswith(f"{math.exp(2) - math.exp(1):+.3f} (")
