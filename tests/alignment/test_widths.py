"""Models of other widths: transport of units, and what is kept exactly."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import nn

from eutectic.alignment import random_moves, traced
from eutectic.alignment.widths import Resized, fit_widths
from eutectic.checkpoint import MemorySource
from eutectic.checkpoint.symmetry import Factor, Gauge, Group, Symmetries, axis, fixed
from eutectic.errors import NumericError, RecipeError
from eutectic.kernels.transport import transport

X = torch.randn(16, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network(width: int, seed: int, hidden: int = 5) -> nn.Sequential:
    """A convolution, normalised, places flattened, two layers more."""
    torch.manual_seed(seed)
    head = nn.Flatten(), nn.Linear(4 * width, hidden), nn.ReLU(), nn.Linear(hidden, 4)
    module = nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), *head).double().eval()
    for name, tensor in module.named_buffers():
        tensor.copy_(torch.rand_like(tensor.double()) + (0.5 if name.endswith("var") else 0.0))
    return module


def table(module: nn.Module) -> Symmetries:
    return traced(module, X)


def fitted(a: nn.Module, b: nn.Module, **options: int) -> Resized:
    return fit_widths(MemorySource("a", a), MemorySource("b", b), table(a), table(b), **options)


def loaded(source: Resized, like: nn.Module) -> nn.Module:
    module = copy.deepcopy(like)
    module.load_state_dict(dict(source))
    return module


def test_a_narrow_model_computes_the_same_in_a_width_that_it_divides() -> None:
    a, b = network(6, 1, hidden=10), network(3, 2)
    torch.testing.assert_close(loaded(fitted(a, b), a)(X), b(X), rtol=1e-12, atol=1e-12)


def test_units_that_are_copies_are_found_and_become_one() -> None:
    a, b = network(3, 1), network(6, 2, hidden=10)
    channels, units = torch.tensor([0, 1, 2, 2, 1, 0]), torch.arange(10) % 5
    state, wide = a.state_dict(), b.state_dict()
    for name in wide:
        if name.startswith(("0", "1")) and "num" not in name:
            wide[name].copy_(state[name][channels])
    columns = state["4.weight"].reshape(5, 3, 4)[:, channels].flatten(1) / 2
    wide["4.weight"].copy_(columns[units])
    wide["4.bias"].copy_(state["4.bias"][units])
    wide["6.weight"].copy_(state["6.weight"][:, units] / 2)
    wide["6.bias"].copy_(state["6.bias"])
    torch.testing.assert_close(b(X), a(X))
    found = fitted(a, b)
    for name, tensor in state.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12)


def test_of_equal_widths_it_is_the_model_in_the_other_order() -> None:
    a, symmetries = network(6, 1), table(network(6, 1))
    state = a.state_dict()
    b = copy.deepcopy(a)
    moves = random_moves(symmetries, 5)
    b.load_state_dict({name: symmetries.made(name, state.__getitem__, moves) for name in state})
    found = fitted(a, b)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    same = fitted(a, a)
    assert all(torch.equal(plan, torch.eye(len(plan)).double() / len(plan)) for plan in same.plans.values())


@pytest.mark.parametrize(("widths", "hidden"), [((4, 6), (5, 7)), ((6, 4), (7, 5)), ((6, 6), (8, 8))])
def test_the_objective_never_falls_and_shapes_are_those_of_the_first(
    widths: tuple[int, int], hidden: tuple[int, int]
) -> None:
    a, b = (network(width, seed, units) for seed, (width, units) in enumerate(zip(widths, hidden, strict=True)))
    found = fitted(a, b)
    assert all(x <= y for x, y in zip(found.objective, found.objective[1:], strict=False))
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in a.state_dict().items()
    }
    product = sum(float((a.state_dict()[name] * found[name]).sum()) for name in found if votes(name))
    assert found.objective[-1] == pytest.approx(product)
    assert torch.isfinite(loaded(found, a)(X)).all()


def votes(name: str) -> bool:
    return not name.startswith("1.running") and "num" not in name


def test_a_range_of_entries_is_that_of_the_tensor_and_low_precision_is_widened() -> None:
    a, b = network(4, 1).bfloat16(), network(8, 2).bfloat16()
    found = fit_widths(MemorySource("a", a), MemorySource("b", b), table(a.double()), table(b.double()))
    name = "4.weight"
    assert found.specs[name].dtype == "float32" and found.specs["1.num_batches_tracked"].dtype == "int64"
    whole, out = found[name], torch.empty(7)
    found.read_into(name, 3, 10, memoryview(out.numpy().view(np.uint8)))
    assert torch.equal(out, whole.reshape(-1)[3:10])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_transport_is_the_best_of_its_masses(n: int, m: int, seed: int) -> None:
    similarity = np.random.default_rng(seed).normal(size=(n, m))
    plan = transport(similarity)
    np.testing.assert_allclose(plan.sum(1), 1 / n, atol=1e-9)
    np.testing.assert_allclose(plan.sum(0), 1 / m, atol=1e-9)
    # Units in lcm(n, m) equal parts make an assignment of it.
    parts = np.lcm(n, m)
    apart = similarity.repeat(parts // n, 0).repeat(parts // m, 1)
    best = apart[linear_sum_assignment(apart, maximize=True)].sum() / parts
    assert (plan * similarity).sum() == pytest.approx(best, abs=1e-9)
    assert plan.min() >= 0


def heads(number: int, width: int, classes: int = 4) -> tuple[nn.Module, Symmetries]:
    module = nn.Sequential(nn.Linear(5, 3 * number), nn.Linear(3 * number, width), nn.Linear(width, classes)).double()
    h, u = (Factor(number, "heads"), Factor(3, gauge="values")), Factor(width, "units")
    axes = {
        "0.weight": (axis(*h), fixed(5)),
        "0.bias": (axis(*h),),
        "1.weight": (axis(u), axis(*h, role="in")),
        "1.bias": (axis(u),),
        "2.weight": (fixed(classes), axis(u, role="in")),
        "2.bias": (fixed(classes),),
    }
    groups = {"heads": Group(number), "units": Group(width)}
    return module, Symmetries(groups, axes, {"values": Gauge("heads", 3, "linear")})


def test_heads_stay_and_other_numbers_of_them_are_refused() -> None:
    (a, of_a), (b, of_b), (c, of_c) = heads(2, 4), heads(2, 8), heads(4, 4)
    found = fit_widths(MemorySource("a", a), MemorySource("b", b), of_a, of_b)
    torch.testing.assert_close(found["0.weight"], b[0].weight.detach())
    with pytest.raises(RecipeError, match="G250 heads: has 4 heads where the other has 2"):
        fit_widths(MemorySource("a", a), MemorySource("c", c), of_a, of_c)


def test_what_differs_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (a, of_a), (b, of_b) = heads(2, 4), heads(2, 4)
    b[1].weight.data[0] = torch.nan
    with pytest.raises(NumericError, match="G252 units"):
        fit_widths(MemorySource("a", a), MemorySource("b", b), of_a, of_b)
    (b, of_b) = heads(2, 6, classes=3)
    sources = MemorySource("a", a), MemorySource("b", b)
    with pytest.raises(RecipeError, match=r"G250 b: .* sizes of groups: 2.bias, 2.weight"):
        fit_widths(*sources, of_a, of_b)
    with pytest.raises(RecipeError, match=r"G102"):
        fit_widths(*sources, of_a, of_a)
    monkeypatch.setattr("eutectic.alignment.widths.LARGEST", 10)
    with pytest.raises(RecipeError, match="G251 units: has 6 units for 4, a linear program of 24 variables"):
        fit_widths(*sources, of_a, of_b)


def test_the_average_of_a_model_and_its_copy_in_another_width_is_the_model() -> None:
    a, b = network(3, 1), network(6, 2, hidden=10)
    wide = fitted(b, a)
    module = loaded(wide, b)
    back = fitted(a, module)
    for name, tensor in a.state_dict().items():
        torch.testing.assert_close((back[name] + tensor) / 2, tensor, check_dtype=False)
