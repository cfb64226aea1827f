"""Methods by hand refuse the values that a merge refuses, and leave alone what has no values yet."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from eutectic import methods
from eutectic.errors import NumericError

NAMES = [name for name in methods.names() if not methods.get(name).statistics]


def stack_for(method):
    least, most = method.models
    count = max(least, min(3, most or 3))
    return torch.randn(count, 6, 5, generator=torch.Generator().manual_seed(1))


def parameters_of(method):
    required = {p.name: 0.5 for p in method.params.values() if p.required}
    return {method.keywords[name]: value for name, value in ({**required, **method.example}).items()}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_one_bad_value_is_refused_with_its_place(name, bad):
    method = methods.get(name)
    tensors = stack_for(method)
    tensors[-1, 2, 3] = bad
    with pytest.raises(NumericError) as caught:
        method(tensors, **parameters_of(method))
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == ("N501", f"{name}.{method.space}[{len(tensors) - 1}]")
    assert problem.message == "1 value is NaN or infinite"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_every_dtype_is_looked_at_and_every_model_told(dtype):
    tensors = torch.full((2, 3), math.nan).to(dtype)
    with pytest.raises(NumericError) as caught:
        methods.ties(tensors)
    assert [problem.where for problem in caught.value.problems] == ["ties.deltas[0]", "ties.deltas[1]"]
    assert methods.ties(torch.ones(2, 3).to(dtype)).dtype == dtype


def test_the_function_itself_takes_them_as_they_are():
    assert methods.linear.function(torch.full((2, 3), math.nan), weight=1.0, normalize=True).isnan().all()


def test_statistics_that_a_merge_refuses_are_told_with_the_weights():
    weights = torch.ones(2, 3, 4)
    weights[0, 0, 0] = math.nan
    fisher = torch.ones(2, 3, 4)
    fisher[1, :2, 0] = -1e-30
    with pytest.raises(NumericError) as caught:
        methods.fisher(weights, fisher)
    found = [(one.code, one.where, one.message) for one in caught.value.problems]
    assert found == [
        ("N501", "fisher.weights[0]", "1 value is NaN or infinite"),
        ("N505", "fisher.fishers[1]", "2 values are negative"),
    ]
    gram = torch.eye(4)
    lower = gram.clone()
    lower[3, 0] = 0.5
    for matrices, code in (((gram, lower), "N506"), ((gram, -gram), "N506"), ((gram, gram / 0), "N501")):
        with pytest.raises(NumericError) as caught:
            methods.regmean(torch.ones(2, 3, 4), matrices)
        assert [(one.code, one.where) for one in caught.value.problems] == [(code, "regmean.grams[1]")]
    assert torch.equal(methods.regmean(torch.ones(2, 3, 4), (gram.bfloat16(), gram)), torch.ones(3, 4))


def test_where_there_are_no_values_nothing_is_refused():
    batch = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(2))
    one_by_one = torch.stack([methods.ties(tensors) for tensors in batch])
    assert torch.equal(torch.vmap(lambda tensors: methods.ties(tensors))(batch), one_by_one)
    assert methods.linear(torch.ones(2, 3, device="meta")).shape == (3,)
    assert methods.ties(torch.ones(2, 0)).shape == (0,)


def test_a_graph_holds_no_look_at_the_values():
    class Merge(nn.Module):
        def forward(self, tensors):
            return methods.linear(tensors)

    plain = torch.export.export(Merge(), (torch.ones(2, 3),), strict=False)
    targets = {str(node.target) for node in plain.graph.nodes}
    assert not any("isfinite" in target or "aminmax" in target for target in targets)
    assert plain.module()(torch.full((2, 3), math.nan)).isnan().all()


def test_gradients_pass():
    tensors = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))
    (plain,) = torch.autograd.grad(methods.linear(leaf := tensors.clone().requires_grad_()).sum(), leaf)
    assert torch.equal(torch.func.grad(lambda given: methods.linear(given).sum())(tensors), plain)
    assert torch.allclose(plain, torch.full_like(plain, 1 / 3))
