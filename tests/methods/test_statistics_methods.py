"""Methods that use statistics against plain numpy, their limits, and what they refuse by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic import methods
from eutectic.errors import RecipeError
from eutectic.kernels.streams import Block, StreamJob


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fishers_of(seed, *shape):
    """Of sizes that span twelve orders of magnitude, some zero in one model and some in all."""
    drawn = 10 ** (4 * draw(seed, *shape).double().clamp(-3, 3))
    drawn[torch.rand(drawn.shape, generator=torch.Generator().manual_seed(seed)) < 0.2] = 0
    drawn[:, ..., :2] = 0
    return drawn.float()


def fisher_oracle(thetas, fishers, weight, floor, norm):
    thetas, fishers = np.asarray(thetas, np.float64), np.asarray(fishers, np.float64)
    share = np.asarray(weight, np.float64)
    shape = (-1, *[1] * (thetas.ndim - 1))
    scale = share / np.asarray(norm, np.float64)
    total = (scale.reshape(shape) * fishers).sum(0)
    level = floor * (scale * fishers.reshape(len(fishers), -1).mean(1)).sum()
    mean = np.average(thetas, axis=0, weights=share)
    with np.errstate(invalid="ignore", divide="ignore"):
        weighed = (scale.reshape(shape) * fishers * thetas).sum(0) / total
    return np.where(total > level, weighed, mean)


@pytest.mark.parametrize("weight", [[1.0, 1.0, 1.0], [0.5, 2.0, 0.0]])
@pytest.mark.parametrize("floor", [0.0, 1e-6, 0.5])
@pytest.mark.parametrize("norm", [[1.0, 1.0, 1.0], [1e-5, 3.0, 20.0]])
def test_fisher_is_its_formula(weight, floor, norm):
    thetas, fishers = draw(1, 3, 6, 50), fishers_of(2, 3, 6, 50)
    found = methods.fisher(thetas, fishers, weight=weight, floor=floor, norm=norm)
    np.testing.assert_allclose(found, fisher_oracle(thetas, fishers, weight, floor, norm), rtol=1e-6)


def test_equal_fishers_give_the_mean():
    thetas = draw(3, 4, 5, 7)
    found = methods.fisher(thetas, torch.ones_like(thetas), weight=[1, 2, 3, 4])
    assert torch.equal(found, methods.linear(thetas, weight=[1, 2, 3, 4]))
    assert torch.equal(methods.fisher(thetas, torch.zeros_like(thetas)), methods.linear(thetas))
    assert torch.equal(methods.fisher(thetas, None, weight=[1, 2, 3, 4]), found)


def test_the_model_that_has_all_the_fisher_is_the_result():
    thetas, fishers = draw(4, 3, 40), torch.zeros(3, 40)
    fishers[1] = fishers_of(5, 1, 40)[0] + 1e-3
    assert torch.equal(methods.fisher(thetas, fishers, floor=0), thetas[1])


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-6, 1e6))
def test_the_scale_of_all_fishers_does_not_matter(seed, scale):
    thetas, fishers = draw(seed, 2, 30), fishers_of(seed, 2, 30)
    found = methods.fisher(thetas, fishers.double() * scale, norm=1.0)
    other = methods.fisher(thetas, fishers.double(), norm=1 / scale)
    torch.testing.assert_close(found, other, rtol=1e-6, atol=1e-7)
    inside = (found >= thetas.amin(0)) & (found <= thetas.amax(0))
    assert bool(inside.all()), "each entry lies between the models'"


def stream_of(method, thetas, fishers, stored, block, **parameters):
    """What the fused form stores, block after block."""
    bound = {name: p.default for name, p in method.params.items()} | parameters
    thetas, count = thetas.reshape(len(thetas), -1), thetas[0].numel()
    stream = method.streamed([StreamJob(count, len(thetas), bound, tuple(thetas.shape[1:]), ((count,),) * len(thetas))])
    cuts = [(i, first, min(block, count - first)) for i, first in enumerate(range(0, count, block))]

    def blocks():
        for i, first, n in cuts:
            here = slice(first, first + n)
            beside = tuple(row.reshape(-1)[here].numpy() for row in fishers)
            yield here, Block(0, i, first, stored(thetas[:, here]), beside=beside)

    while stream.pending:
        for _, one in reversed(list(blocks())):
            stream.reduce(one)
        stream.fold()
    out = np.empty(count, stored(thetas[:1, :1]).dtype)
    for here, one in blocks():
        stream.combine(one, out[here])
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("floor", [0.0, 1e-6])
@pytest.mark.parametrize("models", [1, 2, 5])
def test_the_fused_form_of_fisher_has_the_bits_of_the_plain_one(dtype, floor, models):
    views = {torch.bfloat16: (torch.int16, np.uint16), torch.float16: (torch.int16, np.int16)}

    def stored(tensor):
        view, kind = views.get(dtype, (dtype, None))
        raw = tensor.contiguous().view(view).numpy()
        return raw if kind is None else raw.view(kind)

    thetas, fishers = draw(6, models, 1001).to(dtype), fishers_of(7, models, 1001)
    thetas[:, 5] = -0.0
    values = {"weight": [1.0, 0.3, 2.0, 0.0, 7.0][:models], "norm": [1.0, 0.1, 3.0, 1.0, 1e4][:models], "floor": floor}
    found = stream_of(methods.fisher, thetas, fishers, stored, 300, **values)
    assert found.tobytes() == stored(methods.fisher(thetas, fishers, **values)).tobytes()


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((), {}, "takes the fisher statistics of the models as its second argument"),
        ((torch.ones(2, 4),), {}, "weights of (3,) go with statistics of (3,), one a model, not [(4,), (4,)]"),
        ((torch.ones(3, 3),), {}, "weights of (3,) go with statistics of (3,), one a model, not [(3,), (3,), (3,)]"),
        ((torch.ones(2, 3),), {"weight": [0, 0]}, "every model has the weight 0"),
        ((torch.ones(2, 3),), {"weight": [-1, 2]}, "must lie in [0, inf), not -1"),
        ((torch.ones(2, 3),), {"norm": "global"}, "`norm: global` stands in recipes"),
        ((torch.ones(2, 3),), {"norm": 0}, "must lie in (0, inf), not 0"),
    ],
)
def test_by_hand_fisher_refuses(arguments, keywords, message):
    with pytest.raises(RecipeError) as caught:
        methods.fisher(torch.ones(2, 3), *arguments, **keywords)
    (problem,) = caught.value.problems
    assert problem.code == "R142"
    assert message in problem.message


def test_a_method_without_statistics_takes_none():
    with pytest.raises(RecipeError, match="takes no statistics as its second argument"):
        methods.linear(torch.ones(2, 3), torch.ones(2, 3))
