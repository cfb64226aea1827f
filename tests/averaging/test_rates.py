"""Learning rates for averaging, as the optimiser meets them."""

from __future__ import annotations

import pytest
import torch

from eutectic.averaging import WeightAverage, constant_rate, cyclic_rate
from eutectic.errors import RecipeError


def rates(factor, steps):
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimiser = torch.optim.SGD([parameter], lr=2.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    seen = []
    for _ in range(steps):
        seen.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return seen


def test_constant():
    assert rates(constant_rate(3, 0.25), 6) == [2.0, 2.0, 2.0, 0.5, 0.5, 0.5]
    assert rates(constant_rate(4, 0.5, anneal=2), 6) == [2.0, 2.0, 2.0, 1.5, 1.0, 1.0]
    assert rates(constant_rate(0, 0.5), 2) == [1.0, 1.0]


def test_cyclic():
    """Algorithm 1 of the paper with c = 4, and collections where the rate is lowest."""
    found = rates(cyclic_rate(2, 4, high=1.0, low=0.2), 10)
    wanted = [2.0, 2.0] + [2 * (1 - t / 4 + 0.2 * t / 4) for t in (1, 2, 3, 4)] * 2
    assert found == pytest.approx(wanted)
    average = WeightAverage(torch.nn.Linear(1, 1), start=2, period=4)
    collected = [step for step in range(1, 11) if average.step()]
    assert collected == [2, 6, 10]
    assert [found[step - 1] for step in collected[1:]] == pytest.approx([0.4, 0.4])


@pytest.mark.parametrize(
    "make",
    [
        lambda: constant_rate(-1, 0.5),
        lambda: constant_rate(1, 0),
        lambda: constant_rate(1, float("inf")),
        lambda: constant_rate(1, 0.5, anneal=-1),
        lambda: cyclic_rate(0, 0, low=0.1),
        lambda: cyclic_rate(0, 2, low=-0.1),
        lambda: cyclic_rate(0, True, low=0.1),
    ],
)
def test_rates_that_cannot_be(make):
    with pytest.raises(RecipeError, match="T701"):
        make()
