"""Methods that use statistics against plain numpy, their limits, and what they refuse by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic import methods
from eutectic.errors import RecipeError
from eutectic.kernels.layers import Layer
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


# RegMean


def inputs_of(seed, *shape):
    """Inputs of layers: correlated, one a thousand times the others."""
    drawn = draw(seed, *shape).double()
    drawn = drawn + 0.5 * drawn.roll(1, -1)
    drawn[..., 1] *= 1000
    return drawn


def moments(inputs):
    return inputs.mT @ inputs / inputs.shape[-2]


def near(found, wanted, tolerance=1e-6):
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def regmean_oracle(thetas, grams, weight, alpha, ridge):
    """Equation 2 of the paper, with the ridge."""
    moment, total = 0.0, 0.0
    for theta, gram, share in zip(np.asarray(thetas), np.asarray(grams), weight, strict=True):
        diagonal = np.diag(np.diag(gram))
        shrunk = alpha * gram + (1 - alpha) * diagonal + ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
        moment, total = moment + share * theta @ shrunk, total + share * shrunk
    return np.linalg.solve(total.T, moment.T).T


@pytest.mark.parametrize("weight", [[1.0, 1.0, 1.0], [0.5, 2.0, 0.0]])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("ridge", [1e-6, 0.1])
def test_regmean_is_the_closed_form(weight, alpha, ridge):
    thetas, grams = draw(1, 3, 5, 7).double(), moments(inputs_of(2, 3, 40, 7))
    found = methods.regmean(thetas, grams, weight=weight, alpha=alpha, ridge=ridge)
    near(found, regmean_oracle(thetas, grams, weight, alpha, ridge), 1e-9)


def test_regmean_is_the_least_squares_solution():
    thetas, inputs = draw(3, 3, 5, 7).double(), inputs_of(4, 3, 40, 7)
    rows, targets = np.vstack(inputs), np.vstack(inputs @ thetas.mT)
    wanted = np.linalg.lstsq(rows, targets, rcond=None)[0].T
    near(methods.regmean(thetas, moments(inputs), alpha=1, ridge=0), wanted, 1e-9)


def test_without_off_diagonals_regmean_is_an_average_of_columns():
    thetas, grams = draw(5, 2, 4, 6).double(), moments(inputs_of(6, 2, 30, 6))
    shares = grams.diagonal(dim1=-2, dim2=-1)[:, None]
    near(methods.regmean(thetas, grams, alpha=0, ridge=0), (thetas * shares).sum(0) / shares.sum(0), 1e-12)


def test_regmean_survives_dead_units_and_fewer_tokens_than_inputs():
    thetas, inputs = draw(7, 2, 4, 9).double(), draw(8, 2, 3, 9).double()
    inputs[..., 5] = 0
    for ridge in (0, 1e-12, 1e-9):
        found = methods.regmean(thetas, moments(inputs), alpha=1, ridge=ridge)
        wanted = inputs @ thetas.mT
        near(inputs @ found.mT, wanted, 1e-4)  # few tokens can be fitted exactly
        assert thetas[:, :, 5].amin() <= found[:, 5].amin()
        assert found[:, 5].amax() <= thetas[:, :, 5].amax()


def test_regmean_without_a_ridge_resolves_small_inputs_beside_large_and_dead_ones():
    scale = 10.0 ** torch.tensor([0, 5, 0, -5, 0, 0, 0, 0]).double()
    thetas, inputs = draw(18, 2, 4, 8).double(), draw(19, 2, 50, 8).double() * scale
    inputs[..., 5] = 0
    found = methods.regmean(thetas, moments(inputs), alpha=1, ridge=0)
    rows, targets = np.vstack(inputs / scale), np.vstack(inputs @ thetas.mT)
    wanted = np.linalg.lstsq(rows, targets, rcond=None)[0].T / scale.numpy()
    live = [0, 1, 2, 3, 4, 6, 7]
    np.testing.assert_allclose(found[:, live], wanted[:, live], rtol=1e-8)
    near(found[:, 5], thetas[:, :, 5].mean(0))


def test_a_model_without_inputs_has_no_say():
    thetas, grams = draw(9, 3, 4, 6), moments(inputs_of(10, 3, 30, 6)).float()
    grams[1] = 0
    rest = methods.regmean(thetas[[0, 2]], grams[[0, 2]])
    torch.testing.assert_close(methods.regmean(thetas, grams), rest, rtol=1e-5, atol=1e-5)
    alone = methods.regmean(thetas, torch.stack([grams[0], grams[1], grams[1]]))
    torch.testing.assert_close(alone, thetas[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(methods.regmean(thetas, torch.zeros_like(grams)), methods.linear(thetas))


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_copies_give_that_model_whatever_their_inputs(seed):
    theta = draw(seed, 1, 5, 8).bfloat16()
    found = methods.regmean(theta.expand(3, 5, 8), moments(inputs_of(seed, 3, 4, 8)).float(), weight=[1, 5, 0.1])
    assert torch.equal(found, theta[0])


def test_stacked_layers_are_solved_one_by_one():
    thetas, grams = draw(11, 2, 3, 4, 6), moments(inputs_of(12, 2, 3, 30, 6)).float()
    found = methods.regmean(thetas, grams)
    for group in range(3):
        assert torch.equal(found[group], methods.regmean(thetas[:, group], grams[:, group]))


def test_what_is_not_solved_is_averaged():
    thetas, grams = draw(13, 2, 4, 6), moments(inputs_of(14, 2, 30, 6)).float()
    mean = methods.linear(thetas, weight=[1, 3])
    assert torch.equal(methods.regmean(thetas, grams, weight=[1, 3], solve=False), mean)
    assert torch.equal(methods.regmean(thetas, None, weight=[1, 3]), mean)


def test_by_hand_regmean_refuses_grams_of_another_size():
    with pytest.raises(RecipeError, match=r"weights of \(4, 6\) go with statistics of \(6, 6\), one a model, not"):
        methods.regmean(torch.ones(2, 4, 6), torch.ones(2, 4, 4))


# Layers as they are stored


@pytest.mark.parametrize("bias", [False, True])
def test_layers_as_they_are_stored(bias):
    inputs, rows = 6, 10
    for layer, shape in (
        (Layer(bias=bias), (4, inputs)),
        (Layer(transposed=True, bias=bias), (inputs, 4)),
        (Layer(groups=2, bias=bias), (4, 3, 1, 2)),
    ):
        weight, offset = draw(15, 1, *shape), draw(16, 1, 4) if bias else None
        side = inputs + bias
        assert layer.fits(shape, (2, side, side) if layer.groups > 1 else (side, side))
        assert not layer.fits(shape, (side + 1, side + 1))
        (matrix,) = layer.matrices(weight, offset)
        assert torch.equal(layer.stored(matrix, shape), weight[0])
        if bias:
            part = Layer(layer.transposed, layer.groups, True, "bias")
            assert torch.equal(part.stored(matrix, (4,)), offset[0])
        given = draw(17, rows, inputs * layer.groups)
        if layer.groups == 1:
            plain = weight[0].T if layer.transposed else weight[0]
            wanted = torch.nn.functional.linear(given, plain, None if offset is None else offset[0])
            augmented = torch.cat([given, torch.ones(rows, 1)], 1) if bias else given
            torch.testing.assert_close(augmented @ matrix.T, wanted)
