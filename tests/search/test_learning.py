"""Learned weights: gradients, known optima, what is left behind, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from souping import Net, items
from torch import Tensor, nn

import eutectic
from eutectic import methods, recipe
from eutectic.api import Learned
from eutectic.checkpoint import open_source
from eutectic.errors import EutecticError, NumericError
from eutectic.evaluate import Classification, Loader, Settings
from eutectic.plan import make_plan
from eutectic.run.merged import MergedSource
from eutectic.search.coefficients import beginning, refuse_recipe, reweighted
from eutectic.search.doors import LearnOptions
from eutectic.search.gradients import by_part, loss_gradient, mean_loss
from eutectic.search.ingredients import parts_of
from eutectic.search.objectives import MEASURES, ClassLoss, cross_entropy, entropy
from eutectic.search.pullback import METHODS, Pullback
from eutectic.testing import tiny_llama

Models = Sequence[dict[str, Tensor]]
VARIANTS = [
    ("linear", {}),
    ("linear", {"normalize": False}),
    ("task_arithmetic", {"lambda": 0.7}),
    ("task_arithmetic", {"normalize": True}),
    ("ties", {"density": 0.6}),
    ("ties", {"density": 0.6, "normalize": False, "rescale": True}),
    ("dare_linear", {"density": 0.7}),
    ("dare_ties", {"density": 0.7, "normalize": True}),
    ("dare_ties", {"density": 0.7, "rescale": "l1"}),
]


class Tied(nn.Module):
    """Its head is its embedding, stored once."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(self.embed(x)))
        return found


class Two(nn.Module):
    """Two inputs, two classes; logits of the first class alone."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        first = x @ self.w
        return torch.stack([first, torch.zeros_like(first)], 1)


def doubled(models: Models) -> list[dict[str, Tensor]]:
    return [{name: tensor.double() for name, tensor in model.items()} for model in models]


def described(method: str, parameters: dict[str, Any], models: Models) -> dict[str, Any]:
    base = {} if method == "linear" else {"base_model": models[0]}
    return {"merge_method": method, **base, "models": list(models[1:]), "parameters": parameters}


def learned(source: Any, data: Any, module: Any = Net, **options: Any) -> Learned:
    return eutectic.learn(source, data=data, settings=Settings(loader=Loader(module), batch=4), **options)


@pytest.mark.parametrize("measure", ["entropy", "cross-entropy"])
@pytest.mark.parametrize(("method", "parameters"), VARIANTS)
def test_the_gradient_is_that_of_finite_differences(
    method: str, parameters: dict[str, Any], measure: str, fine_tunes: Models
) -> None:
    source = described(method, parameters, doubled(fine_tunes))
    gap = slopes_apart(source, lambda: Net().double(), doubled_batch(), measure, "layer")
    assert gap < 1e-7


def doubled_batch() -> tuple[Tensor, Tensor]:
    x, labels = items(7)[0]
    return x.double(), labels


def slopes_apart(source: Any, module: Any, batch: tuple[Tensor, Tensor], measure: str, by: str) -> float:
    """The largest difference of a gradient from central differences over the live merge."""
    run = Settings(loader=Loader(module))
    loss = ClassLoss(*batch, MEASURES[measure])
    with make_plan(recipe.load(source, methods=methods), lambda model, folder: open_source(model)) as plan:
        parts = {part: names for part, names in parts_of(plan, by).items() if names}
        count = sum(item.place is not None for item in plan.inputs)
        weights = 0.2 + 0.6 * np.random.default_rng(0).random((len(parts), count))

        def merge(values: Any) -> MergedSource:
            return MergedSource(reweighted(plan, parts, dict(zip(parts, values.tolist(), strict=True))))

        now = merge(weights)
        _, gradient = loss_gradient(now, [loss], "any", run, "a test")
        found = by_part(now.plan, parts, Pullback()(now, gradient)).numpy()
        step, wanted = 1e-6, np.zeros_like(weights)
        for at in np.ndindex(*weights.shape):
            ends = []
            for sign in (1, -1):
                moved = weights.copy()
                moved[at] += sign * step
                ends.append(mean_loss(merge(moved), [loss], "any", run, "a test"))
            wanted[at] = (ends[0] - ends[1]) / (2 * step)
    assert np.abs(wanted).max() > 1e-3
    return float(np.abs(found - wanted).max())


@pytest.mark.parametrize("by", ["task", "tensor"])
def test_the_gradient_of_tied_tensors(by: str) -> None:
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(Tied().double())
    source = {"merge_method": "task_arithmetic", "base_model": models[0], "models": models[1:]}
    batch = (torch.arange(5), torch.tensor([1, 2, 3, 4, 0]))
    assert slopes_apart(source, lambda: Tied().double(), batch, "cross-entropy", by) < 1e-7


def test_a_known_optimum() -> None:
    """Each model moves the log-odds of one input; the best weight is the log-odds of its labels."""
    x = torch.eye(2, dtype=torch.float64).repeat_interleave(10, 0)
    labels = torch.tensor([0] * 7 + [1] * 3 + [0] * 6 + [1] * 4)
    base = {"w": torch.zeros(2, dtype=torch.float64)}
    models = [{"w": torch.tensor([2.0, 0.0]).double()}, {"w": torch.tensor([0.0, 1.0]).double()}]
    source = {"merge_method": "task_arithmetic", "base_model": base, "models": models}
    data = Classification([(x, labels)], name="odds")
    options: dict[str, Any] = {"objective": "cross-entropy", "held_out": 0, "steps": 400, "lr": 0.02}
    found = learned(source, data, Two, **options)
    assert found.weights[""] == pytest.approx([math.log(7 / 3) / 2, math.log(6 / 4)], abs=1e-3)
    said = f"weights of 2 models in 1 part: step {found.chosen} of 400; see .weights and .recipe"
    assert repr(found) == f"<Learned {said}>"
    # Labels of the second class only: the optimum lies beyond the bound, where the weight stops.
    never = Classification([(x, torch.ones_like(labels))], name="never")
    assert learned(source, never, Two, **options).weights[""] == [0.0, 0.0]
    assert max(learned(source, never, Two, **options, clamp=False).weights[""]) < -1


def test_a_weight_at_a_bound_comes_back() -> None:
    x = torch.tensor([[1.0, 0.0]]).double()
    source = {
        "merge_method": "task_arithmetic",
        "base_model": {"w": torch.zeros(2).double()},
        "models": [{"model": {"w": torch.tensor([1.0, 0.0]).double()}, "parameters": {"weight": 0.0}}],
    }
    data = Classification([(x.repeat(10, 1), torch.tensor([0] * 6 + [1] * 4))], name="odds")
    found = learned(source, data, Two, objective="cross-entropy", held_out=0, steps=300, lr=0.02)
    assert found.steps[0].weights == {"": [0.0]}
    assert found.weights[""] == pytest.approx([math.log(6 / 4)], abs=1e-3)


def test_more_weights_lower_the_objective_further(fine_tunes: Models) -> None:
    source = described("task_arithmetic", {}, fine_tunes[:3])
    data = Classification([tuple(map(torch.cat, zip(*items(7), strict=True)))], name="all at once")
    losses = []
    for by in ("task", "layer", "tensor"):
        found = learned(source, data, by=by, objective="cross-entropy", held_out=0, steps=150, lr=0.02, clamp=False)
        series = [step.loss for step in found.steps if step.loss is not None]
        assert series[-1] < series[0]
        losses.append(series[-1])
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]


class _Unread:
    """Labels that must not be looked at."""


@pytest.mark.parametrize("labels", [None, _Unread()])
def test_entropy_falls_and_no_label_is_read(labels: Any, fine_tunes: Models) -> None:
    data = Classification([(x, labels) for x, _ in items(7, 128)], name="unlabelled")
    source = described("ties", {"density": 0.5}, [fine_tunes[i] for i in (0, 1, 3)])
    found = learned(source, data, by="layer", steps=40, lr=0.02)
    first = found.steps[0].held_out
    chosen = next(step.held_out for step in found.steps if step.number == found.chosen)
    assert first is not None and chosen is not None and chosen < first


def test_inputs_alone_are_unlabelled_data(fine_tunes: Models) -> None:
    source = described("linear", {}, fine_tunes[:3])
    forms = ([x for x, _ in items(7)], [[x] for x, _ in items(7)], [({"x": x}, None) for x, _ in items(7)])
    found = [learned(source, Classification(form, name="x"), steps=5).as_json() for form in forms]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("method", METHODS)
def test_the_recipe_that_is_left_gives_the_model_that_was_measured(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = tiny_llama("base", seed=1, hidden=16, intermediate=16)
    for seed, name in ((2, "a"), (3, "b")):
        tiny_llama(name, base=base, seed=seed, noise=0.05)
    first = "" if method == "linear" else "base_model: base\n"
    (tmp_path / "r.yml").write_text(f"merge_method: {method}\n{first}models: [a, b]\nseed: 5\n")
    lines = [json.dumps({"text": " ".join(f"w{3 + (i * 3 + k) % 80}" for k in range(12))}) for i in range(10)]
    (tmp_path / "dev.jsonl").write_text("\n".join(lines))
    (tmp_path / "runs").mkdir()
    task = {"task": "perplexity", "data": "dev.jsonl", "block": 32}
    options: dict[str, Any] = {"data": task, "by": "layer", "objective": "cross-entropy", "steps": 12, "lr": 0.05}
    done = eutectic.learn("r.yml", "runs/out.yml", **options)
    again = eutectic.learn("r.yml", **options)
    assert done.as_json() == again.as_json(), "the same call takes the same steps"
    eutectic.merge("runs/out.yml", "merged")
    written, held = eutectic.open("merged"), eutectic.merged(done.recipe)
    assert all(torch.equal(written[name], held[name]) for name in held)
    with eutectic.plan("r.yml") as plan:
        parts = {part: names for part, names in parts_of(plan, "layer").items() if names}
        last = MergedSource(reweighted(plan, parts, done.weights))
        assert all(torch.equal(written[name], last[name]) for name in last)
    log = [json.loads(line) for line in (tmp_path / "runs" / "out.learn.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(13)) and log[10]["weights"]
    begun = {"": [0.3, 0.3]} if method not in ("linear", "ties") else {"": [0.5, 0.5]}
    assert log[0]["weights"][""] == begun[""]


def test_it_stops_where_the_held_out_data_gain_no_more(fine_tunes: Models) -> None:
    """Labels of chance: what is learned from some batches does not hold for others."""
    generator = torch.Generator().manual_seed(0)
    chance = [(x, torch.randint(3, (len(x),), generator=generator)) for x, _ in items(7, 128)]
    source = described("task_arithmetic", {}, fine_tunes[:3])
    options: dict[str, Any] = {"by": "tensor", "objective": "cross-entropy", "lr": 0.2, "clamp": False}
    found = learned(source, Classification(chance, name="chance"), **options, steps=2000, patience=2)
    held_out = [step.held_out for step in found.looks]
    assert found.steps[-1].number == 10 * (len(held_out) - 1) < 2000
    assert held_out.index(min(held_out)) == len(held_out) - 3 and found.chosen == 10 * (len(held_out) - 3)
    assert found.weights == found.looks[-3].weights


def test_several_data_sets_count_alike(fine_tunes: Models) -> None:
    """The loss of a step is the mean over the data sets, however large they are."""
    source = described("linear", {}, fine_tunes[:3])
    one, other = items(7, 16), items(8, 16)
    both = learned(source, [Classification(one), Classification(other)], steps=1, held_out=0)
    alone = [learned(source, Classification(data), steps=1, held_out=0).steps[0].loss for data in (one, other)]
    assert both.data == ("classification", "classification")
    assert both.steps[0].loss == pytest.approx(sum(filter(None, alone)) / 2, abs=1e-6)


def test_buffers_stay_where_they_began(fine_tunes: Models) -> None:
    class WithScale(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(()))

    models = [{**model, "scale": torch.ones(())} for model in fine_tunes[:3]]
    found = learned(described("linear", {}, models), Classification(items(7)), WithScale, by="tensor", steps=3)
    assert found.weights["/^scale$/"] == [0.5, 0.5] and "scale" in found.notes[0]


@examples(deadline=None)
@given(st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=1, max_size=4))
def test_entropy_against_numpy(rows: list[list[float]]) -> None:
    logits = np.array(rows)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    wanted = float(np.mean(-(p * np.log(np.maximum(p, 1e-300))).sum(1)))
    assert float(entropy(torch.tensor(logits))) == pytest.approx(wanted, abs=1e-12)
    assert 0 <= wanted <= math.log(3) + 1e-12


def test_entropy_at_its_limits() -> None:
    sure = torch.tensor([[0.0, -torch.inf, -torch.inf]], requires_grad=True)
    entropy(sure).backward()
    assert float(entropy(sure.detach())) == 0 and sure.grad is not None and bool((sure.grad == 0).all())
    assert float(entropy(torch.zeros(2, 8).double())) == pytest.approx(math.log(8))
    ignored = torch.tensor([0, -100])
    mixed = torch.tensor([[0.0, 0.0], [9.0, 0.0]]).double()
    assert float(entropy(mixed, ignored)) == pytest.approx(math.log(2))
    assert float(cross_entropy(mixed, ignored)) == pytest.approx(math.log(2))


def test_where_weights_begin(fine_tunes: Models) -> None:
    def begun(source: Any, by: str = "task", **options: Any) -> dict[str, list[float]]:
        with make_plan(recipe.load(source, methods=methods), lambda model, folder: open_source(model)) as plan:
            parts = {part: names for part, names in parts_of(plan, by).items() if names}
            values = beginning(plan, parts, LearnOptions(by=by, **options))
        return dict(zip(parts, values.tolist(), strict=True))

    assert begun(described("task_arithmetic", {}, fine_tunes)) == {"": [0.3] * 3}
    assert begun(described("ties", {}, fine_tunes)) == {"": [1 / 3] * 3}
    assert begun(described("linear", {}, fine_tunes), init=0.7) == {"": [0.7] * 3}
    by_layer = {"weight": [{"filter": "layers.0", "value": 0.1}, {"value": 0.2}]}
    own = begun(described("task_arithmetic", by_layer, fine_tunes), "layer")
    assert list(own.values()) == [[0.1] * 3, [0.2] * 3, [0.2] * 3]


WRONG: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("S811", {"merge_method": "slerp", "parameters": {"t": 0.5}}, {}),
    ("S811", {"post": ["svc"]}, {}),
    ("S811", {"merge_method": "ties", "parameters": {"scope": "model"}}, {}),
    ("R128", {"parameters": {"lambda": {"sweep": [0.5, 1.0]}}}, {}),
    ("S810", {"parameters": {"weight": 0.5}}, {"init": 0.5}),
    ("S810", {"parameters": {"weight": 1.5}}, {}),
    ("S810", {"parameters": {"weight": [0.1, 0.9]}}, {}),
    ("S810", {}, {"init": 1.5}),
    ("S810", {}, {"by": "layers"}),
    ("S810", {}, {"objective": "loss"}),
    ("S810", {}, {"steps": 0}),
    ("S810", {}, {"lr": 0}),
    ("S810", {}, {"lr": float("nan")}),
    ("S810", {}, {"held_out": 1}),
    ("S810", {}, {"patience": True}),
    ("S810", {}, {"data": ["no.txt", Classification(items(7))]}),
    ("S804", {}, {"data": {"task": "call", "function": "a:b"}}),
    ("S804", {}, {"data": "call:a:b"}),
    ("E901", {}, {"data": []}),
    ("S812", {}, {"data": Classification(items(7, 16))}),
    ("S812", {}, {"data": Classification([])}),
    ("S812", {}, {"data": Classification([x for x, _ in items(7)]), "objective": "cross-entropy"}),
    ("S812", {}, {"data": Classification(["text", "text"])}),
    ("E904", {}, {"data": Classification([(x[:, :2], y) for x, y in items(7)])}),
    ("E904", {}, {"data": Classification([(x, y + 3) for x, y in items(7)]), "objective": "cross-entropy"}),
    ("E902", {}, {"data": Classification(7)}),
    ("M601", {}, {"memory": 1 << 20}),
    ("S811", {}, {"out": "out.yml"}),
    ("S809", {}, {"log": "no/such/log"}),
]


@pytest.mark.parametrize(("code", "changes", "options"), WRONG)
def test_what_is_refused(
    code: str,
    changes: dict[str, Any],
    options: dict[str, Any],
    fine_tunes: Models,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = {**described("task_arithmetic", {}, fine_tunes[:2] if "slerp" in str(changes) else fine_tunes), **changes}
    given = {"data": Classification(items(7)), "settings": Settings(loader=Loader(Net)), "steps": 3, **options}
    with pytest.raises(EutecticError) as refused:
        eutectic.learn(source, **given)
    assert {problem.code for problem in refused.value.problems} == {code}
    assert not list(tmp_path.iterdir())


def test_all_that_is_wrong_with_a_recipe_is_told_at_once(fine_tunes: Models) -> None:
    source = {**described("sce", {"weight": 1.0}, fine_tunes), "post": ["svc"]}
    source["parameters"] = {}
    with pytest.raises(EutecticError) as refused:
        refuse_recipe(recipe.load(source, methods=methods), LearnOptions(init=2.0))
    assert [problem.code for problem in refused.value.problems] == ["S811", "S811", "S810"]
    assert "linear, task_arithmetic, ties, dare_linear, dare_ties" in refused.value.problems[0].hint


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties"])
def test_a_gpu_learns_the_same(method: str, fine_tunes: Models) -> None:
    found = []
    for device in ("cpu", "cuda"):
        run = Settings(device=device, loader=Loader(Net))
        source = described(method, {}, fine_tunes)
        done = eutectic.learn(source, data=Classification(items(7)), by="layer", steps=10, settings=run)
        found.append([weight for own in done.weights.values() for weight in own])
    assert found[1] == pytest.approx(found[0], abs=1e-4)


def test_a_loss_that_is_not_a_number(fine_tunes: Models) -> None:
    endless = [(x * torch.inf, labels) for x, labels in items(7)]
    for options in ({"held_out": 0}, {}):
        with pytest.raises(NumericError, match="E908"):
            learned(described("linear", {}, fine_tunes), Classification(endless), steps=3, **options)
