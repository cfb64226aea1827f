"""Averages and statistics of a run, given what they cannot take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eutectic.averaging import WeightAverage, update_bn
from eutectic.errors import RecipeError


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def found(call):
    with pytest.raises(RecipeError) as caught:
        call()
    return [(problem.code, problem.where, problem.message) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("batch", "why"),
    [
        (torch.ones(4, 9), "RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x9 and 3x4)"),
        (torch.ones(1, 3), "ValueError: Expected more than 1 value per channel"),
        (7, "TypeError: "),
    ],
)
def test_a_batch_that_cannot_be_run_leaves_the_statistics_alone(batch, why):
    model = net()
    model[1].running_mean.fill_(0.25)
    ((code, where, message),) = found(lambda: update_bn([torch.randn(5, 3), batch], model))
    assert (code, where) == ("T708", "loader")
    assert message.startswith(f"Sequential cannot be run on batch 2: {why}")
    assert torch.equal(model[1].running_mean, torch.full((4,), 0.25)) and model.training


def test_arguments_that_cannot_be_are_told_at_once():
    model, loader = net(), [torch.randn(5, 3)]
    assert [one[:2] for one in found(lambda: update_bn(model, loader))] == [("T701", "model"), ("T701", "loader")]
    assert found(lambda: update_bn(5, model)) == [("T701", "loader", "must be batches to go through, not a int")]
    assert [where for _, where, _ in found(lambda: update_bn(loader, model, device="gpu", forward=3))] == [
        "forward",
        "device",
    ]
    with pytest.raises(RecipeError, match=r"the loader comes first: update_bn\(loader, model\)"):
        update_bn(model, loader)


def test_a_state_that_is_none_is_told_what_it_lacks():
    average = WeightAverage(net())
    average.step()
    state = average.state_dict()
    part = {name: value for name, value in state.items() if name != "values"}
    assert found(lambda: average.load_state_dict({}))[0][2].endswith("lacks steps, collected, statistics_at, values")
    assert found(lambda: average.load_state_dict(part))[0][2].endswith("it lacks values")
    assert found(lambda: average.load_state_dict(3)) == [("T702", "state", "a int is no state of an average")]
    assert found(lambda: average.load_state_dict(state | {"values": {}}))[0][0] == "T702"
    average.load_state_dict(state)
    assert average.collected == 1
