"""Barriers between two models: on live mixtures, with refinement, statistics and everything that is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import A, B, C, data, network, product
from torch import Tensor, nn

import eutectic
from eutectic.averaging import update_bn
from eutectic.connectivity import barrier, connect
from eutectic.errors import CheckpointError, EutecticError, NumericError, RecipeError
from eutectic.evaluate import Call, Classification, Loader, Settings, evaluation
from eutectic.testing import tiny_llama


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUTECTIC_CACHE", str(tmp_path / "scores"))


def test_the_height_of_a_known_curve() -> None:
    found = barrier(A, B, product)
    assert found.height.t == 0.5
    assert found.value == pytest.approx(1)
    assert found.curve.values == pytest.approx([4 * t * (1 - t) + 0.1 for t in found.curve.t])
    assert found.curves.keys() == {"loss"}


def test_both_ends_are_the_models_themselves_to_the_last_bit() -> None:
    draw = np.random.default_rng(0)
    ends = [{"w": torch.from_numpy(draw.normal(size=50)).to(dtype)} for dtype in (torch.float32, torch.float32)]
    seen: list[Tensor] = []
    barrier(*ends, lambda weights: seen.append(weights["w"]) or 0.0, points=3, refine=0)
    assert torch.equal(seen[0], ends[0]["w"]) and torch.equal(seen[2], ends[1]["w"])
    middle = (ends[0]["w"].double() + ends[1]["w"].double()) / 2
    assert torch.equal(seen[1], middle.float())


def test_integers_are_those_of_the_first_model() -> None:
    seen: list[int] = []
    barrier(A, B, lambda weights: seen.append(int(weights["n"])) or 0.0, points=3, refine=0)
    assert seen == [3, 3, 3]


@pytest.mark.parametrize("top", [0.21, 0.5, 0.77, 0.99])
def test_refinement_closes_in_on_the_maximum(top: float) -> None:
    def peak(weights: Mapping[str, Tensor]) -> float:
        return math.exp(-abs(float(weights["w"][1]) - top) * 20)

    coarse, fine = (barrier(A, B, peak, points=5, refine=rounds) for rounds in (0, 7))
    assert abs(fine.height.t - top) <= min(abs(coarse.height.t - top), 0.25 / 2**6)
    assert fine.value >= coarse.value
    assert len(fine.curve.t) <= 5 + 4 * 7 and list(fine.curve.t) == sorted(set(fine.curve.t))


def test_a_straight_line_of_unequal_ends() -> None:
    found = barrier(A, B, lambda weights: float(weights["w"][1]), points=9, refine=1)
    assert found.value == pytest.approx(0, abs=1e-7)
    assert found.curve.height("frankle").value == pytest.approx(0.5)
    assert found.curve.height("freeman").value == pytest.approx(0)


def test_a_valley_is_no_barrier() -> None:
    found = barrier(A, B, lambda weights: -float(weights["w"][0] * weights["w"][1]), points=5)
    assert found.value == 0 and found.curve.lowest == (0.5, -0.25)


def test_loss_and_error_of_a_live_module() -> None:
    x, y = data()
    found = barrier(network(1), network(2), Classification([(x, y)], metric="cross_entropy"), points=5, refine=1)
    assert found.curves.keys() == {"loss", "error"} and found.curve.quantity == "loss"
    for t, value, error in zip(found.curve.t, found.curve.values, found.curves["error"].values, strict=True):
        mixed = network()
        ends = zip(network(1).parameters(), network(2).parameters(), strict=True)
        with torch.no_grad():
            for own, (a, b) in zip(mixed.parameters(), ends, strict=True):
                own.copy_((1 - t) * a + t * b)
            out = mixed(x)
        assert value == pytest.approx(float(nn.functional.cross_entropy(out, y)), rel=1e-4)
        assert error == pytest.approx(float((out.argmax(1) != y).float().mean()), abs=0.026)
    accuracy = barrier(network(1), network(2), Classification([(x, y)]), points=5, refine=0)
    assert accuracy.curve.quantity == "loss" and accuracy.curve.height().interval is None
    assert accuracy.curves["error"].readings[0].items.shape == (40,)


def test_statistics_of_batch_normalisation_are_computed_at_each_point() -> None:
    x, y = data()
    ends = [network(seed, norm=True) for seed in (1, 2)]
    for model in ends:
        update_bn([3 * x + 1], model)
    task = Classification([(x, y)], metric="cross_entropy")
    mixed = barrier(*ends, task, points=3, refine=0)
    reset = barrier(*ends, task, points=3, refine=0, batches=[x])
    for t, value in zip(reset.curve.t, reset.curve.values, strict=True):
        model = network(0, norm=True)
        with torch.no_grad():
            for own, a, b in zip(model.parameters(), *(end.parameters() for end in ends), strict=True):
                own.copy_((1 - t) * a + t * b)
        update_bn([x], model)
        with torch.no_grad():
            assert value == pytest.approx(float(nn.functional.cross_entropy(model.eval()(x), y)), rel=1e-4)
    assert mixed.curve.values[0] != pytest.approx(reset.curve.values[0], rel=1e-3)
    assert "batch normalisation" in connect(ends, [task], points=3, refine=0).notes[0]
    assert connect(ends, [task], points=3, refine=0, batches=[x]).notes == ()
    before = [float(end[1].running_mean.sum()) for end in ends]
    assert before == [float(end[1].running_mean.sum()) for end in ends]


def test_a_function_of_the_source_with_statistics_computed() -> None:
    x, _ = data()
    seen: list[Tensor] = []
    settings = Settings(loader=Loader(module=lambda: network(0, norm=True)))
    ends = [dict(network(seed, norm=True).state_dict()) for seed in (1, 2)]
    loss = Call(lambda weights: seen.append(weights["1.running_mean"]) or 0.0, name="f")
    barrier(*ends, loss, points=3, refine=0, batches=[x], settings=settings)
    assert not torch.equal(seen[0], seen[1]) and float(seen[1].abs().sum()) > 0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    tiny_llama(home / "base", seed=1, layers=1)
    for seed, name in enumerate("ab", 2):
        tiny_llama(home / name, base=home / "base", seed=seed, noise=0.2)
    draw = np.random.default_rng(0)
    lines = [" ".join(f"w{i}" for i in draw.integers(3, 96, 20)) for _ in range(10)]
    (home / "text.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    (home / "t.yml").write_text("task: perplexity\ndata: text.jsonl\nblock: 64\n")
    return home


def test_a_point_scores_what_the_written_merge_scores(models: Path, tmp_path: Path) -> None:
    found = barrier(models / "a", models / "b", models / "t.yml", points=3, refine=0)
    recipe = {"merge_method": "linear", "models": [str(models / "a"), str(models / "b")]}
    eutectic.merge(recipe, tmp_path / "out")
    written = eutectic.evaluate(tmp_path / "out", models / "t.yml", cache=False)
    assert found.curve.values[1] == math.log(written.value)
    assert found.curve.readings[1].items.tolist() == written.items.tolist()


def test_known_scores_are_not_measured_again(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = barrier(models / "a", models / "b", models / "t.yml", points=3, refine=1)

    def never(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(evaluation, "measure", never)
    again = barrier(models / "a", models / "b", models / "t.yml", points=3, refine=1)
    assert again.as_json() == first.as_json()
    with pytest.raises(AssertionError, match="measured again"):
        barrier(models / "a", models / "b", models / "t.yml", points=3, cache=False)


def test_a_recipe_may_be_an_end(models: Path) -> None:
    merge = {"merge_method": "linear", "models": [str(models / "a"), str(models / "base")]}
    found = barrier(merge, models / "b", models / "t.yml", points=3, refine=0)
    assert found.ends == ("merge", "b")
    assert found.curve.values[0] == math.log(eutectic.evaluate(merge, models / "t.yml").value)


def nan_in_the_middle(weights: Mapping[str, Tensor]) -> float:
    return math.nan if 0.4 < float(weights["w"][1]) < 0.6 else 1.0


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        ((A, A, product), {}, RecipeError, "L811 models: a path needs two different models, not 1, named 2 times"),
        ((A, B, product), {"points": 2}, RecipeError, "L812 points: must be a whole number from 3 on, not 2"),
        ((A, B, product), {"points": 5.0}, RecipeError, "L812 points"),
        ((A, B, product), {"refine": -1}, RecipeError, "L812 refine"),
        ((A, {"w": torch.zeros(3), "n": torch.tensor(1)}, product), {}, RecipeError, "P301 w"),
        ((A, {"v": torch.zeros(2), "n": torch.tensor(1)}, product), {}, RecipeError, "P302 w"),
        ((A, "nowhere", product), {}, CheckpointError, "C200 'nowhere' does not exist"),
        ((A, B, "perplexty:x"), {}, RecipeError, "E901 task: 'perplexty:x' is no task; did you mean 'perplexity'?"),
        ((A, B, 3), {}, RecipeError, "E901 task"),
        ((A, B, lambda weights: "x"), {}, RecipeError, "E911"),
        ((A, B, nan_in_the_middle), {}, NumericError, "item 1 scores nan with model 'dict → dict#2 at t = 0.416667'"),
        ((A, B, product), {"batches": [1]}, RecipeError, "E905"),
        ((A, B, Classification([])), {}, RecipeError, "E905"),
        ((network(1), network(2), lambda weights: 0.0), {"batches": [data()[0]]}, RecipeError, "L814 batches"),
    ],
)  # fmt: skip
def test_mistakes(arguments: Any, options: Any, error: type[EutecticError], said: str) -> None:
    with pytest.raises(error, match=r"[A-Z]\d{3} ") as caught:
        barrier(*arguments, **options)
    assert said in str(caught.value)


def test_mistakes_come_before_long_work() -> None:
    def never(weights: Any) -> float:
        raise AssertionError("measured")

    wrong = {"w": torch.zeros(3), "n": torch.tensor(1)}
    for call in (
        lambda: connect([A, B, wrong], [never]),
        lambda: connect([A, B], [never, "perplexty:x"]),
        lambda: connect([A, B], [never], plane=3),
        lambda: connect([A, B], []),
        lambda: connect([A, B, C], [never], plane=1),
        lambda: connect("ab", [never]),
    ):
        with pytest.raises(RecipeError):
            call()
