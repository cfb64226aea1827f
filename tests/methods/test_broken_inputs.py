"""NaN and infinity where they are let through: every method goes on, and they spoil their own tensor alone."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import eutectic
from eutectic import methods
from eutectic.errors import NumericError
from eutectic.run.merged import MergedSource

NAMES = [name for name in methods.names() if not methods.get(name).statistics]
SHAPES = {"l.0.matrix": (6, 5), "l.0.row": (1, 7), "l.1.vector": (300,), "l.1.one": (1,), "l.1.scalar": ()}


def models(count):
    generator = torch.Generator().manual_seed(1)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    tuned = [
        {name: t + 0.02 * torch.randn(t.shape, generator=generator) for name, t in base.items()} for _ in range(count)
    ]
    return [base, *tuned]


def merged(name, tensors, post=(), reference=False, **parameters):
    method = methods.get(name)
    listed = tensors if method.base == "ignored" else tensors[1:]
    most = 1 if method.base == "first" else method.models[1]
    recipe = {"merge_method": name, "models": listed[:most], "parameters": method.example | parameters}
    recipe["parameters"] |= {p.name: 0.5 for p in method.params.values() if p.required and p.name not in method.example}
    recipe |= {} if method.base == "ignored" else {"base_model": tensors[0]}
    with eutectic.plan(recipe | ({"post": list(post)} if post else {})) as plan:
        return dict(MergedSource(plan, count_nonfinite=True, reference=reference))


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_broken_tensor_spoils_nothing_but_itself(name, bad):
    post = () if methods.get(name).base == "ignored" else ("norm_guard", "svc", {"lines": {"alpha": 0.5, "beta": 0.5}})
    whole = merged(name, models(3), post)
    for place in range(2):
        broken = models(3)
        for tensor in ("l.0.matrix", "l.1.one", "l.1.scalar"):
            broken[place][tensor].view(-1)[0] = bad
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = merged(name, broken, post)
        for tensor in ("l.0.row", "l.1.vector"):
            assert torch.equal(found[tensor], whole[tensor])


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_sce_of_a_broken_tensor_is_not_the_base(reference, share):
    """Coefficients of NaN agree with no entry: the tensor would come out as the base, and look sound."""
    broken = models(3)
    broken[1]["l.0.matrix"][:] = math.nan
    assert bool(merged("sce", broken, reference=reference, select_topk=share)["l.0.matrix"].isnan().all())


def test_spreads_that_overflow_rank_first():
    """Infinite deltas are apart by NaN, whose sign must not make it a pattern below all others."""
    broken = models(3)
    broken[0]["l.1.one"][:] = math.inf
    assert merged("sce", broken, select_topk=0.3)["l.1.one"].shape == (1,)


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        ("float16", "choose out_dtype: bfloat16 or float32, or smaller weights"),
        ("bfloat16", "choose out_dtype: float32, or smaller weights"),
        ("float32", "choose out_dtype: float64, or smaller weights"),
        ("float64", "smaller weights"),
    ],
)
def test_what_overflows_is_refused_with_what_would_hold_it(dtype, advice):
    largest = torch.finfo(getattr(torch, dtype)).max
    tensors = [{"x": torch.full((3,), largest, dtype=torch.float64)} for _ in range(2)]
    recipe = {"merge_method": "linear", "models": tensors, "parameters": {"normalize": False}, "out_dtype": dtype}
    with pytest.raises(NumericError, match=f"N502 x: 3 values do not fit {dtype}; {advice}$"):
        eutectic.merged(recipe)["x"]


def test_the_largest_float_as_a_threshold_is_no_warning():
    top = torch.finfo(torch.float32).max
    base = {"x": torch.zeros(8)}
    tuned = {"x": torch.tensor([top, -top, top, 1.0, 2.0, 3.0, 4.0, 5.0])}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = merged("ties", [base, tuned], density=0.25)
    assert found["x"].tolist() == [top, -top] + [0.0] * 6


@pytest.mark.parametrize("spoiled", [1, 8, 24])
def test_importances_that_are_infinite(spoiled):
    base, tuned = models(1)
    tuned["l.0.matrix"].view(-1)[-spoiled:] = math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = merged("arcee_fusion", [base, tuned])
    assert found["l.0.matrix"].shape == (6, 5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_both_forms_of_pcb_agree_on_broken_tensors(bad):
    broken = models(3)
    for place, tensor in ((0, "l.1.vector"), (1, "l.0.matrix"), (2, "l.1.one"), (2, "l.1.scalar")):
        broken[place][tensor].view(-1)[0] = bad
    fused, plain = (merged("pcb", broken, reference=reference, density=0.3) for reference in (False, True))
    for tensor in SHAPES:
        assert torch.equal(fused[tensor].nan_to_num(), plain[tensor].nan_to_num())
        assert torch.equal(fused[tensor].isnan(), plain[tensor].isnan())
