"""What a plan says of memory before a weight is read."""

from __future__ import annotations

import pytest
from planning import Header, plan_of

from eutectic.errors import ResourceError
from eutectic.run.budget import make_budget

BIG = {"embed.weight": ("bfloat16", 40000, 4096), "norm": ("bfloat16", 4096)}


def test_a_tensor_that_must_be_whole_may_be_left_out() -> None:
    recipe = {"merge_method": "model_stock", "base_model": "base", "models": ["a", "b"]}
    recipe["parameters"] = {"filter_wise": True}
    headers = [Header(label, BIG) for label in ("base", "a", "b")]
    with plan_of(recipe, *headers) as plan, pytest.raises(ResourceError) as caught:
        make_budget(plan, memory=1 << 30, threads=1)
    (problem,) = caught.value.problems
    assert "for the whole of embed.weight [40000, 4096]" in problem.message
    assert problem.hint.endswith(" << 20` or more, or copy it from one model by `leave_out: embed.weight`")
