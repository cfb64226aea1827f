"""RegMean++: solved in the order of the forward pass, on what the merged layers before make."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from collected_nets import NETS, Experts, TiedText
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from eutectic import methods
from eutectic.errors import EutecticError, RecipeError
from eutectic.statistics import gram, regmean_plusplus


def made(make: Callable[[], nn.Module], count: int = 2, dtype: torch.dtype = torch.float32) -> list[nn.Module]:
    """Networks of one kind with weights of their own."""
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        found.append(make().to(dtype))
    return found


def near(found: Tensor, wanted: Any, tolerance: float = 1e-5) -> None:
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(found.detach().double().numpy(), wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def test_of_one_layer_it_is_regmean() -> None:
    modules, loaders = made(lambda: nn.Linear(5, 3)), [[torch.randn(20, 5)], [torch.randn(8, 5), torch.randn(4, 5)]]
    found = regmean_plusplus(modules, loaders, weight=[1, 2], alpha=0.7)
    grams = [gram(*pair).tensors["weight"] for pair in zip(modules, loaders, strict=True)]
    joined = torch.stack([torch.cat([m.weight, m.bias[:, None]], 1).detach() for m in modules])
    wanted = methods.regmean(joined, grams, weight=[1, 2], alpha=0.7)
    assert torch.equal(found.tensors["weight"], wanted[:, :-1]) and torch.equal(found.tensors["bias"], wanted[:, -1])
    assert found.solved == {"weight": "solved with bias", "bias": "solved with weight"} and not found.averaged


def test_of_one_grouped_convolution_it_is_regmean_of_each_group() -> None:
    modules = made(lambda: nn.Conv2d(4, 6, (2, 3), groups=2, stride=2))
    loaders = [[torch.randn(3, 4, 6, 6)], [torch.randn(5, 4, 6, 6)]]
    found = regmean_plusplus(modules, loaders)
    grams = [gram(*pair).tensors["weight"] for pair in zip(modules, loaders, strict=True)]
    for group, rows in enumerate((slice(0, 3), slice(3, 6))):
        joined = torch.stack([torch.cat([m.weight[rows].flatten(1), m.bias[rows, None]], 1).detach() for m in modules])
        wanted = methods.regmean(joined, [one[group] for one in grams])
        assert torch.equal(found.tensors["weight"][rows].flatten(1), wanted[:, :-1])
        assert torch.equal(found.tensors["bias"][rows], wanted[:, -1])


def test_a_transposed_layer_of_transformers_is_regmean_of_its_transpose() -> None:
    utils = pytest.importorskip("transformers.pytorch_utils")
    modules, loaders = made(lambda: utils.Conv1D(3, 5)), [[torch.randn(9, 5)], [torch.randn(8, 5)]]
    found = regmean_plusplus(modules, loaders)
    grams = [gram(*pair).tensors["weight"] for pair in zip(modules, loaders, strict=True)]
    joined = torch.stack([torch.cat([m.weight.T, m.bias[:, None]], 1).detach() for m in modules])
    assert torch.equal(found.tensors["weight"].T, methods.regmean(joined, grams)[:, :-1])


def least_squares(weights: list[Any], inputs: list[Any], shares: list[float]) -> Any:
    """The W for which Σ share · mean ‖(W - Wᵢ)x‖² is least, as one tall system."""
    rows = [np.sqrt(s / len(x)) * x for x, s in zip(inputs, shares, strict=True)]
    wanted = np.concatenate([x @ w.T for x, w in zip(rows, weights, strict=True)])
    return np.linalg.lstsq(np.concatenate(rows), wanted, rcond=None)[0].T


@given(st.integers(0, 1000), st.sampled_from([[1.0, 1.0], [0.3, 2.0]]))
def test_two_linear_layers_are_solved_one_on_the_outputs_of_the_other(seed: int, shares: list[float]) -> None:
    g = torch.Generator().manual_seed(seed)
    modules = made(lambda: nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)))
    data = [torch.randn(30, 4, generator=g) * (1 + i) for i in range(2)]
    found = regmean_plusplus(modules, [[x] for x in data], weight=shares, alpha=1.0, ridge=0.0)
    first, second = ([m[k].weight.detach().double().numpy() for m in modules] for k in range(2))
    xs = [x.double().numpy() for x in data]
    merged = least_squares(first, xs, shares)
    near(found.tensors["0.weight"], merged, 1e-3)
    near(found.tensors["1.weight"], least_squares(second, [x @ merged.T for x in xs], shares), 1e-3)
    assert list(found.solved) == ["0.weight", "1.weight"]


# Some of the others call a layer twice.
ONCE = [name for name in NETS if name not in ("tied", "frozen")]


@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_of_one_module_give_that_module(name: str, dtype: torch.dtype) -> None:
    make, inputs = NETS[name]
    (module,) = made(make, 1, dtype)
    before = copy.deepcopy(module.state_dict())
    loaders = [[inputs(3).to(dtype)], [inputs(2).to(dtype)], [inputs(4).to(dtype)]]
    found = regmean_plusplus([module, copy.deepcopy(module), module], loaders, weight=[1, 0.5, 3])
    assert found.module is not module and found.module.training == module.training
    assert found.tensors.keys() == before.keys() == {*found.solved, *found.averaged}
    for tensor, value in before.items():
        assert torch.equal(found.tensors[tensor], value) and torch.equal(module.state_dict()[tensor], value)


def test_order_is_that_of_the_forward_pass_and_layers_of_one_input_go_together() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.value, self.key = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.key(x).tanh() + self.value(x))

    modules = made(Backwards)
    data = [torch.randn(9, 4), torch.randn(7, 4)]
    found = regmean_plusplus(modules, [[x] for x in data])
    assert list(found.solved) == [f"{n}.{p}" for n in ("key", "value", "last") for p in ("weight", "bias")]
    with torch.no_grad():
        hidden = [found.module.key(x).tanh() + found.module.value(x) for x in data]
    last = regmean_plusplus([m.last for m in modules], [[h] for h in hidden])
    near(found.tensors["last.weight"], last.tensors["weight"])


def test_what_is_averaged_is_said_and_experts_without_tokens_are_too() -> None:
    modules = made(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    modules[1][1].num_batches_tracked += 3
    with torch.no_grad():
        modules[1][1].running_mean += 1
    found = regmean_plusplus(modules, [[torch.randn(5, 3)]] * 2, weight=[1, 3])
    assert found.averaged["1.running_mean"] == found.averaged["1.weight"] == "of no layer that is solved"
    assert found.averaged["1.num_batches_tracked"] == "int64; taken from the first; the modules differ in it"
    assert torch.equal(found.tensors["1.running_mean"], torch.full((4,), 0.75))
    experts = regmean_plusplus(made(Experts), [[torch.randn(4, 6, 5)]] * 2)
    assert experts.averaged == dict.fromkeys(("experts.2.weight", "experts.2.bias"), "no batch reached it")
    mean = sum(m.experts[2].weight for m in made(Experts)) / 2
    near(experts.tensors["experts.2.weight"], mean.detach())
    counts = f"{len(experts.solved)} tensors solved, 2 averaged or taken"
    assert repr(experts) == f"<LayerwiseMerge Experts: {counts}; see .solved and .averaged>"


def test_a_layer_that_only_one_modules_data_reach_is_that_modules() -> None:
    modules = made(Experts)
    for module in modules:
        with torch.no_grad():
            module.router.weight.zero_()
            module.router.weight[0, 0], module.router.weight[1, 0] = 9, -9
    up, down = torch.rand(3, 6, 5) + 1, -torch.rand(3, 6, 5) - 1
    found = regmean_plusplus(modules, [[up], [down]])
    assert found.solved["experts.0.weight"].endswith("; the data of modules 1 did not reach it")
    near(found.tensors["experts.0.weight"], modules[0].experts[0].weight.detach())
    near(found.tensors["experts.1.weight"], modules[1].experts[1].weight.detach())
    assert list(found.solved).index("head.weight") > list(found.solved).index("experts.1.weight")


def test_it_is_nearer_to_every_models_outputs_than_the_average() -> None:
    torch.manual_seed(7)
    base = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    modules, data = [], []
    for _ in range(3):
        own = copy.deepcopy(base)
        with torch.no_grad():
            for parameter in own.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        modules.append(own)
        # Inputs of a model lie in a plane of their own.
        data.append(torch.randn(200, 2) @ torch.randn(2, 6))
    average = copy.deepcopy(base)
    average.load_state_dict({n: sum(m.state_dict()[n] for m in modules) / 3 for n in base.state_dict()})
    found = regmean_plusplus(modules, [[x[:100]] for x in data], alpha=1.0).module

    @torch.no_grad()
    def distance(merged: nn.Module) -> float:
        return sum(float((merged(x[100:]) - m(x[100:])).square().mean()) for m, x in zip(modules, data, strict=True))

    assert distance(found) < distance(average) / 2


def nan(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        module.weight[0, 0] = float("nan")
    return module


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


X = [torch.ones(2, 4)]


@pytest.mark.parametrize(
    ("code", "message", "modules", "loaders", "keys"),
    [
        ("F109", "loaders: 2 modules and 1 loader", [nn.Linear(4, 2)] * 2, [X], {}),
        ("F109", "loaders: 0 modules and 0 loaders", [], [], {}),
        ("F109", r"modules\[1\]: differs .* its tensors bias", [nn.Linear(4, 2), nn.Linear(4, 2, False)], [X, X], {}),
        ("F109", r"its tensors bias, weight", [nn.Linear(4, 2), nn.Linear(4, 3)], [X, X], {}),
        ("F109", r"its tensors bias, weight", [nn.Linear(4, 2), nn.Linear(4, 2).half()], [X, X], {}),
        (
            "F109",
            "its layers 1",
            [nn.Sequential(nn.Linear(4, 2), nn.ReLU()), nn.Sequential(nn.Linear(4, 2), nn.Tanh())],
            [X, X],
            {},
        ),
        ("F109", r"used twice in a forward pass: layer\.weight", [Twice()], [X], {}),
        ("F101", r"loaders\[1\]: the loader gave no batch", [nn.Linear(4, 2)] * 2, [X, []], {}),
        ("F108", r"loaders\[0\]: must be batches that can be gone through again", [nn.Linear(4, 2)], [iter(X)], {}),
        ("F108", r"loaders\[0\]: .* not a dict", [nn.Linear(4, 2)], [{"input": torch.ones(2, 4)}], {}),
        ("F108", r"loaders\[1\]: .* not a str", [nn.Linear(4, 2)] * 2, [X, "data.txt"], {}),
        ("F102", r"modules\[1\]: 1 value of weight is NaN", [nn.Linear(4, 2), nan(nn.Linear(4, 2))], [X, X], {}),
        ("F102", r"of loaders\[1\]", [nn.Linear(4, 2)] * 2, [X, [torch.full((2, 4), torch.inf)]], {}),
        ("F107", "nothing to collect", [nn.Embedding(4, 2)], [[torch.zeros(2, 3, dtype=torch.long)]], {}),
        ("F107", "nothing to collect", [nn.ReLU()], [X], {}),
        ("R142", "must lie in", [nn.Linear(4, 2)] * 2, [X, X], {"alpha": 2}),
        ("R142", "every model has the weight 0", [nn.Linear(4, 2)] * 2, [X, X], {"weight": 0}),
    ],
)
def test_what_cannot_be(code: str, message: str, modules: Any, loaders: Any, keys: dict[str, Any]) -> None:
    with pytest.raises(EutecticError, match=f"{code} .*{message}"):
        regmean_plusplus(modules, loaders, **keys)


def test_everything_wrong_is_told_at_once() -> None:
    modules = [nn.Linear(4, 2), nn.Linear(4, 3), nn.Linear(4, 2, False)]
    with pytest.raises(RecipeError) as caught:
        regmean_plusplus(modules, [X, iter(X)])
    assert [problem.code for problem in caught.value.problems] == ["F109", "F108", "F109", "F109"]


def test_a_head_that_is_the_embedding_is_averaged() -> None:
    class Once(TiedText):
        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.twice(self.embed(ids))).mean(1)

    found = regmean_plusplus(made(Once), [[torch.randint(0, 9, (3, 5))]] * 2)
    assert found.averaged["embed.weight"] == "a parameter of embed too, which is no linear layer"
    assert list(found.solved) == ["twice.weight", "twice.bias"]
    assert found.module.head.weight is found.module.embed.weight
