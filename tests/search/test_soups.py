"""Soups: the paper's order and rule, pruning, learned weights, the log, resuming, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from souping import Net, items
from torch import Tensor

import eutectic
from eutectic.api import Options, Watch
from eutectic.checkpoint import Source
from eutectic.errors import EutecticError, NumericError, OutputError, RecipeError
from eutectic.evaluate import Call, Classification, Loader, Perplexity, Settings, Task
from eutectic.search import Choice
from eutectic.search.learned import learn
from eutectic.search.soup import SoupOptions
from eutectic.testing import tiny_llama

Models = Sequence[dict[str, Tensor]]


def value_of(source: Source) -> float:
    """A score that any mixture has, and that falls into few steps, so that ties are common."""
    return round(-float((source["w"].double() - 3).abs().sum()))


def points(values: Sequence[float]) -> list[dict[str, Tensor]]:
    return [{"w": torch.tensor([value])} for value in values]


def soup_of(models: Any, task: Any, method: str = "greedy", **options: Any) -> Choice:
    return eutectic.soup(models, task=task, method=method, cache=False, **options).choice


def numbers(choice: Choice) -> list[int]:
    return [choice.models.index(label) for label in choice.ingredients]


def greedy_by_hand(values: Sequence[float]) -> list[int]:
    """Wortsman and others, recipe 1, of points on a line."""

    def score(chosen: Sequence[int]) -> float:
        mean = sum(torch.tensor(values[i]).double() for i in chosen) / len(chosen)
        return round(-float((torch.as_tensor(mean).float().double() - 3).abs()))

    order = sorted(range(len(values)), key=lambda i: score([i]), reverse=True)
    chosen: list[int] = []
    for i in order:
        if not chosen or score([*chosen, i]) >= score(chosen):
            chosen.append(i)
    return chosen


@examples(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from([-9.0, -2.0, 0.0, 1.5, 2.0, 3.0, 4.0, 7.0, 30.0]), min_size=2, max_size=7))
def test_a_greedy_soup_is_the_papers(values: list[float]) -> None:
    choice = soup_of(points(values), Call(value_of, name="near 3"))
    assert numbers(choice) == greedy_by_hand(values)
    assert choice.score is not None and choice.best is not None
    assert choice.score.value >= choice.alone[choice.best].value


def test_equal_scores_are_accepted_and_a_loss_decides() -> None:
    """Strictly better would leave one ingredient; with the loss, of equal scores the larger loss is refused."""

    def scored(loss: bool) -> Task:
        return _WithLoss(loss)

    assert numbers(soup_of(points([3.0, 3.2, 3.4]), scored(True))) == [0, 1, 2]
    assert numbers(soup_of(points([3.2, 3.0, 3.4]), scored(True), tie_break="loss")) == [1]
    with pytest.raises(RecipeError, match="S803") as refused:
        soup_of(points([3.2, 3.0]), scored(True), tie_break="los")
    assert refused.value.problems[0].hint == "did you mean 'loss'?"


class _WithLoss:
    """A score that is always 1, and a loss beside it."""

    name, metric, higher_is_better = "flat", "accuracy", True

    def __init__(self, loss: bool) -> None:
        self._loss = loss

    def identity(self) -> None:
        return None

    def check(self, source: Source, run: Settings) -> None:
        pass

    def score(self, source: Source, run: Settings) -> Any:
        from eutectic.evaluate import score_of

        return score_of(self, source, run, [1.0], details={"loss": abs(float(source["w"]) - 3)})


def test_a_pruned_soup_drops_what_does_harm(fine_tunes: Models, task: Classification, settings: Settings) -> None:
    choice = soup_of(fine_tunes, task, "pruned", tie_break="cross_entropy", settings=settings)
    assert 2 not in numbers(choice)
    assert choice.score is not None
    first, *removals = [step for step in choice.steps if step.action != "alone"]
    assert (first.action, len(first.ingredients)) == ("all", 4)
    # The worst goes first, and no mixture is scored twice.
    assert removals[0].tried == choice.models[2]
    assert len({step.ingredients for step in removals}) == len(removals)
    assert choice.score.value >= first.score.value


def test_a_pruned_soup_keeps_one() -> None:
    assert len(soup_of(points([3.0, 3.0, 3.0]), Call(value_of), "pruned").ingredients) == 1


def test_a_uniform_soup_needs_no_task(fine_tunes: Models) -> None:
    choice = soup_of(fine_tunes, None, "uniform")
    assert len(choice.ingredients) == 4 and choice.score is None and not choice.steps
    assert repr(choice) == "<Choice of a uniform soup: 4 of 4 models; see .ingredients and .steps>"


def test_held_out_data_have_no_say(fine_tunes: Models, task: Classification, settings: Settings) -> None:
    test = Classification(items(8, 96), name="test")
    alone = soup_of(fine_tunes, task, settings=settings)
    with_test = soup_of(fine_tunes, task, settings=settings, held_out=[test])
    assert alone.ingredients == with_test.ingredients
    assert with_test.held_out["test"].keys() == {"soup", "best", "uniform"}
    merged = eutectic.merged(with_test.recipe)
    assert with_test.held_out["test"]["soup"].value == eutectic.evaluate(merged, test, module=Net, cache=False).value


def test_held_out_data_of_one_name_are_all_measured(
    fine_tunes: Models, task: Classification, settings: Settings
) -> None:
    tests = [Classification(items(seed, 48), name="test") for seed in (8, 9)]
    found = soup_of(fine_tunes, task, settings=settings, held_out=tests).held_out
    one, other = (soup_of(fine_tunes, task, settings=settings, held_out=[test]).held_out["test"] for test in tests)
    assert {name: scores["soup"].value for name, scores in found.items()} == {
        "test": one["soup"].value,
        "test#2": other["soup"].value,
    }
    assert one["soup"].value != other["soup"].value and found["test#2"]["best"].task == "test#2"


def test_data_that_choose_cannot_be_held_out(fine_tunes: Models, tmp_path: Path) -> None:
    loader = items(7, 96)
    again = Classification(loader, name="again", metric="cross_entropy")
    with pytest.raises(RecipeError, match="S802 held_out: again has the data of dev, by which is chosen"):
        soup_of(fine_tunes, Classification(loader, name="dev"), settings=Settings(loader=Loader(Net)), held_out=[again])
    models = [tiny_llama(tmp_path / str(seed), seed=seed, layers=1) for seed in (1, 2)]
    for name in ("dev", "copy"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "w5 w6 w7"}\n{"text": "w8 w9"}\n')
    dev, copy = (Perplexity(str(tmp_path / f"{name}.jsonl"), block=16) for name in ("dev", "copy"))
    with pytest.raises(RecipeError, match="S802 held_out: copy has the data of dev"):
        soup_of(models, dev, held_out=[copy])


@pytest.mark.parametrize("by", ["model", "layer"])
def test_the_gradient_of_a_learned_soup(by: str, fine_tunes: Models, task: Classification, settings: Settings) -> None:
    """One step of AdamW, from autograd through the mixing itself."""
    from eutectic.checkpoint import open_source
    from eutectic.search.ingredients import Pot

    pot = Pot(list(fine_tunes), lambda model, folder: open_source(model))
    single = Classification(task.loader[:1], name="one batch")
    found = list(learn(pot, single, settings, SoupOptions("learned", by=by, epochs=1)))
    parts = pot.parts(by)
    logits = torch.zeros(len(parts), 4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.AdamW([logits], lr=0.05, weight_decay=0.0)
    shares = torch.softmax(logits, 1)
    mixed = {
        name: sum(shares[row, k] * one[name].double() for k, one in enumerate(fine_tunes)).float()
        for row, names in enumerate(parts.values())
        for name in names
    }
    x, labels = task.loader[0]
    torch.nn.functional.cross_entropy(torch.func.functional_call(Net(), mixed, x), labels).backward()
    optimiser.step()
    wanted = torch.softmax(logits.detach(), 1)
    assert found[0] == {part: [0.25] * 4 for part in parts}
    got = torch.tensor(list(found[1].values()), dtype=torch.float64)
    assert torch.allclose(got, wanted, atol=1e-5)


def test_a_learned_soup_leaves_a_recipe(fine_tunes: Models, task: Classification, settings: Settings) -> None:
    choice = soup_of(fine_tunes, task, "learned", settings=settings, epochs=4, by="layer")
    epochs = [step for step in choice.steps if step.action == "epoch"]
    assert len(epochs) == 5 and choice.score is not None and choice.weights is not None
    assert choice.score.value == max(step.score.value for step in epochs)
    # The broken ingredient counts less than a quarter everywhere.
    assert all(shares[2] < 0.25 for shares in choice.weights.values())
    weights = eutectic.merged(choice.recipe).plan.jobs[0].parameters["weight"]
    assert sorted(weights) == sorted(choice.weights[r"/^layers\.0\./"])


def test_written_it_is_linear_of_the_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = tiny_llama(tmp_path / "base", seed=1, layers=1)
    for seed in (2, 3, 4):
        tiny_llama(tmp_path / f"m{seed}", base=base, seed=seed)
    models = {f"m{seed}": eutectic.open(f"m{seed}") for seed in (2, 3, 4)}
    goal = (models["m2"]["lm_head.weight"].double() + models["m4"]["lm_head.weight"].double()) / 2

    def near(source: Source) -> float:
        return -float((source["lm_head.weight"].double() - goal).square().sum())

    seen = []
    done = eutectic.soup("m*", "out", task=Call(near), cache=False, watch=Watch(on_step=seen.append))
    assert done.merge is not None and repr(done) == f"<Soup {done.choice!r}, in {done.merge.path}>"
    assert sorted(done.choice.ingredients) == ["m2", "m4"]
    lines = [json.loads(line) for line in Path("out.soup.jsonl").read_text().splitlines()]
    assert lines == json.loads(json.dumps([step.as_json() for step in seen]))
    assert [line["accepted"] for line in lines] == [None, None, None, True, False]
    eutectic.merge({"merge_method": "linear", "models": ["m4", "m2"]}, "plain")
    assert Path("out/model.safetensors").read_bytes() == Path("plain/model.safetensors").read_bytes()
    assert not eutectic.verify("out").problems
    again = eutectic.soup("m*", "out", task=Call(near), cache=False)
    assert again.merge is not None and again.merge.already_complete


def test_a_search_resumes_from_known_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = tiny_llama(tmp_path / "base", seed=1, layers=1)
    for seed in (2, 3, 4):
        tiny_llama(tmp_path / f"m{seed}", base=base, seed=seed, noise=0.2)
    Path("dev.txt").write_text(" ".join(f"w{i % 90 + 3}" for i in range(120)))
    task = {"task": "perplexity", "data": "dev.txt", "block": 40}
    measured: list[str] = []

    def stop_after_four(step: Any) -> None:
        if step.number == 4:
            raise KeyboardInterrupt

    def told(model: str, task: str) -> None:
        measured.append(model)

    with pytest.raises(KeyboardInterrupt):
        eutectic.soup("m*", "out", task=task, cache="kept", watch=Watch(on_start=told, on_step=stop_after_four))
    assert len(measured) == 4 and not Path("out").exists()
    first = eutectic.soup("m*", "out", task=task, cache="kept", watch=Watch(on_start=told))
    assert len(measured) == 5
    again = eutectic.soup("m*", "out", task=task, cache="kept", watch=Watch(on_start=told))
    assert len(measured) == 5 and again.choice.as_json() == first.choice.as_json()
    # The score of a running sum is the score of the merge.
    assert first.choice.score is not None
    assert first.choice.score.value == eutectic.evaluate("out", task, cache=False).value


def test_live_modules_need_nothing_said() -> None:
    nets = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        nets.append(Net())
    choice = soup_of(nets, Classification(items(7)))
    assert choice.ingredients


def refused(code: str, kind: type[EutecticError] = RecipeError) -> Any:
    return pytest.raises(kind, match=code)


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    called: list[str] = []

    def never(source: Source) -> float:
        called.append(source.label)
        return 0.0

    models, task = points([1.0, 2.0]), Call(never)
    for code, arguments in (
        ("S801", {"models": models[:1]}),
        ("S802", {"task": None}),
        ("S802", {"method": "gready"}),
        ("S802", {"method": "learned", "tie_break": "loss"}),
        ("S802", {"epochs": 0}),
        ("S802", {"rate": float("nan")}),
        ("S804", {"method": "learned"}),
        ("E901", {"task": "perplexty:x.txt"}),
        ("E901", {"held_out": ["nothing.yml"]}),
    ):
        with refused(code):
            soup_of(**{"models": models, "task": task, **arguments})
    with refused("S804"):
        soup_of(models, Classification(items(7)), "learned", by="layer", settings=Settings(loader=Loader(Net)))
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("all of it")
    for options in (None, Options(replace=True)):
        with refused("W401"):
            eutectic.soup(models, "mine", task=task, cache=False, options=options)
    with refused("W405", OutputError):
        eutectic.soup(models, "no/such/out", task=task, cache=False)
    with refused("S809", OutputError):
        eutectic.soup(models, None, task=task, cache=False, log="no/such/log.jsonl")
    with refused("P3"):
        soup_of([{"w": torch.ones(2)}, {"w": torch.ones(3)}], task)
    with pytest.raises(EutecticError, match="T711"):
        soup_of("nothing/*", task)
    assert not called, "refused before anything was measured"


def test_a_score_that_is_not_a_number_names_the_mixture() -> None:
    with refused("E908", NumericError) as error:
        soup_of(points([1.0, 2.0]), Call(lambda source: float("nan"), name="broken"))
    assert "broken" in str(error.value) and "'dict'" in str(error.value)
