"""Averages and methods of the sphere: each equals a numpy oracle, keeps its limits, and mends what peers get wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import eutectic
from eutectic import methods
from eutectic.api import Options
from eutectic.errors import RecipeError
from eutectic.kernels import exponential, fused_importance, importance
from eutectic.kernels.gram import combined, combined_along
from eutectic.kernels.sphere import karcher_mean, mean_direction, slerp_coefficients, stock_ratio
from eutectic.testing import write_safetensors

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = ((), (0,), (1,), (64,), (4, 1, 3), (0, 4), (3, 5))
oracle_test = settings(max_examples=60, deadline=None)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def wide(tensors):
    return tensors.double().numpy()


def expect(found, oracle, sizes):
    """Half a unit for the rounding at the end and four of the working dtype, relative to what is added up."""
    kind = torch.finfo(found.dtype)
    working = 2.0**-52 if found.dtype == torch.float64 else 2.0**-23
    bound = (kind.eps / 2 + 4 * working) * sizes + 2 * kind.smallest_normal * kind.eps
    assert (np.abs(wide(found) - oracle) <= bound).all(), (found, oracle)


# Oracles: float64 `(K, n)` in; the result and the sum of magnitudes behind each entry out


def unit(x):
    return x / np.linalg.norm(x) if x.any() else x


def slerp_oracle(a, b, t, norm="raw"):
    length_a, length_b = np.linalg.norm(a), np.linalg.norm(b)
    if norm == "matched" and length_a and length_b:
        b = b * (length_a / length_b)
    u, v = unit(a), unit(b)
    angle = 2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))
    if not length_a or not length_b or angle < 1e-6 or u @ v < -0.9995:
        return (1 - t) * a + t * b, abs((1 - t) * a) + abs(t * b)
    left, right = np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)
    if norm == "unit":
        size = (1 - t) * length_a + t * length_b
        return size * (left * u + right * v), size * (abs(left * u) + abs(right * v))
    return left * a + right * b, abs(left * a) + abs(right * b)


def multislerp_oracle(x, weight, normalize):
    """As mergekit defines it: the tangent space at the mean direction, a sum there, the exponential map."""
    weight = weight / weight.sum() if normalize else weight
    units = np.array([unit(row) for row in x])
    mean = weight @ units
    if np.linalg.norm(mean) <= 1e-4 * abs(weight[x.any(1)]).sum():
        return weight @ x, abs(weight) @ abs(x)
    # What is added is rounded on its way into the direction, over its length, and into the tangent, as it is.
    size, steep = weight @ np.linalg.norm(x, axis=1), abs(weight) @ abs(units) * (1 + 1 / np.linalg.norm(mean))
    mean = mean / np.linalg.norm(mean)
    tangent = weight @ (units - np.outer(units @ mean, mean))
    length = np.linalg.norm(tangent) + 1e-300
    behind = abs(weight) @ np.linalg.norm(x, axis=1) * steep * (1 + length)
    return size * (mean * np.cos(length) + tangent * np.sin(length) / length), behind


def log_map(at, to):
    flat = to - (at @ to) * at
    length = np.linalg.norm(flat)
    return flat * (np.arctan2(length, at @ to) / length) if length > 1e-300 else flat


def karcher_oracle(x, weight):
    """On the tensors themselves, a thousand steps."""
    weight = weight / weight.sum()
    active = [(w, unit(row)) for w, row in zip(weight, x, strict=True) if w and row.any()]
    active = [(w / sum(w for w, _ in active), u) for w, u in active]
    at = unit(sum((w * u for w, u in active), np.zeros(x.shape[1])))
    for _ in range(1000):
        step = sum((w * log_map(at, u) for w, u in active), np.zeros(x.shape[1]))
        length = np.linalg.norm(step)
        at = unit(np.cos(length) * at + np.sinc(length / np.pi) * step)
    return weight @ np.linalg.norm(x, axis=1) * at


def model_stock_oracle(x):
    count, pairs = len(x), [(unit(a), unit(b)) for i, a in enumerate(x) for b in x[i + 1 :]]
    cosine = max(0, np.mean([a @ b for a, b in pairs]))
    t = count * cosine / (1 + (count - 1) * cosine)
    # The cosine is a sum that may cancel, and is known to a rounding of 1.
    return t * x.mean(0), (t + 1) * abs(x).mean(0)


def nearswap_oracle(a, b, t):
    return a + np.clip(b - a, -t, t), abs(a) + min(t, 1e300) * (a != b)


def arcee_fusion_oracle(base, tuned):
    """Softmaxes in long double, as the divergence of similar rows is a small difference."""
    wide_base, wide_tuned = base.astype(np.longdouble), tuned.astype(np.longdouble)
    p, q = (np.exp(x - x.max(-1, keepdims=True)) for x in (wide_tuned, wide_base))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    importance = abs(tuned - base) * (p * np.log(p / q)).sum(-1, keepdims=True).astype(float)
    first, median, third = np.quantile(importance, [0.25, 0.5, 0.75])
    return importance, median + 1.5 * (third - first)


# Inputs


@st.composite
def stacks(draw, count=None, least=1):
    """`(K, n)` tensors of any float dtype, with many equal magnitudes and zeros, or with hardly any."""
    dtype = draw(st.sampled_from(DTYPES))
    k, n = count or draw(st.integers(least, 5)), draw(st.integers(1, 40))
    coarse = st.integers(-4, 4).map(lambda step: step / 64)
    fine = st.floats(-1, 1, width=32, allow_subnormal=False)
    values = draw(st.lists(draw(st.sampled_from([coarse, coarse | fine, fine])), min_size=k * n, max_size=k * n))
    return torch.tensor(values, dtype=torch.float32).reshape(k, n).to(dtype)


def per_model(values):
    return st.lists(st.sampled_from(values), min_size=5, max_size=5).map(np.array)


weights = per_model([1.0, 1.0, 0.5, 0.7, -0.3, -1.0, 0.0, 2.0])
shares = per_model([1.0, 1.0, 0.5, 0.7, 0.0, 2.0])


def clear_angle(a, b):
    """Neither nearly parallel nor at the threshold of the antipodes, where the last digit decides between formulas."""
    cosine = unit(a) @ unit(b)
    return abs(cosine + 0.9995) > 1e-9 and cosine < 1 - 1e-9


# Each method and its oracle


@given(x=stacks(count=2), t=st.floats(0, 1), norm=st.sampled_from(["raw", "unit", "matched"]))
@oracle_test
def test_slerp(x, t, norm):
    a, b = wide(x)
    assume(clear_angle(a, b))
    expect(methods.slerp(x, t=t, norm=norm), *slerp_oracle(a, b, t, norm))


@given(x=stacks(count=2), weight=weights)
@oracle_test
def test_nuslerp(x, weight):
    assume(abs(weight[:2].sum()) > 0.05 and clear_angle(*wide(x)))
    found, t = methods.nuslerp(x, weight=weight[:2].tolist()), weight[1] / weight[:2].sum()
    # Beyond the ends the coefficients grow, and so does what a rounding of the cosine does to them.
    expect(found, slerp_oracle(*wide(x), t)[0], (1 + abs(t)) ** 2 * abs(wide(x)).sum(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row_wise", [True, False])
def test_nuslerp_takes_rows_or_columns_as_it_says(dtype, row_wise):
    x = normal(2, 3, 4, 5, dtype=dtype)
    x[0, 0, 1] = 0
    found = methods.nuslerp(x, weight=[1.0, 3.0], nuslerp_flatten=False, nuslerp_row_wise=row_wise)
    a, b = wide(x if row_wise else x.transpose(-1, -2))
    wanted, sizes = np.empty_like(a), np.empty_like(a)
    for place in np.ndindex(a.shape[:2]):
        wanted[place], sizes[place] = slerp_oracle(a[place], b[place], 0.75)
    expect(found if row_wise else found.transpose(-1, -2), wanted, sizes)


@given(x=stacks(), weight=weights, normalize=st.booleans())
@oracle_test
def test_multislerp(x, weight, normalize):
    weight = weight[: len(x)]
    assume(not normalize or abs(weight.sum()) > 0.05)
    share = weight / weight.sum() if normalize else weight
    mean = np.linalg.norm(share @ np.array([unit(row) for row in wide(x)]))
    assume(not 1e-12 < mean < 1e-2)
    expect(
        methods.multislerp(x, weight=weight.tolist(), normalize_weights=normalize),
        *multislerp_oracle(wide(x), weight, normalize),
    )


@given(x=stacks(), weight=shares)
@oracle_test
def test_karcher(x, weight):
    weight = weight[: len(x)]
    units = [unit(row) for row, w in zip(wide(x), weight, strict=True) if w and row.any()]
    # Within an octant the mean is unique and the steps converge.
    assume(weight.sum() > 0 and all(a @ b > 0 for a in units for b in units))
    found = methods.karcher(x, weight=weight.tolist(), max_iter=1000, tol=1e-15)
    wanted = karcher_oracle(wide(x), weight)
    # Iterations that have come to rest still leave a few roundings in each direction.
    expect(found, wanted, np.full_like(wanted, 8 * np.linalg.norm(wide(x), axis=1).max()))


@given(x=stacks(least=2))
@oracle_test
def test_model_stock(x):
    expect(methods.model_stock(x), *model_stock_oracle(wide(x)))


@pytest.mark.parametrize("shape", [(7,), (6, 7), (2, 3, 7)])
def test_model_stock_by_filter(shape):
    x = normal(3, *shape) + normal(1, *shape, seed=1)
    found, rows = methods.model_stock(x, filter_wise=True), wide(x).reshape(3, -1, 7)
    wanted = np.stack([model_stock_oracle(rows[:, i])[0] for i in range(rows.shape[1])])
    np.testing.assert_allclose(wide(found).reshape(-1, 7), wanted, rtol=1e-13)


@given(x=stacks(), alpha=st.floats(0, 1))
@oracle_test
def test_wise_ft(x, alpha):
    expect(methods.wise_ft(x, alpha=alpha), alpha * wide(x).mean(0), alpha * abs(wide(x)).mean(0))


@given(x=stacks(count=1), scale=st.sampled_from([1.0, 0.0, -1.0, 0.3, 7.0]))
@oracle_test
def test_passthrough(x, scale):
    expect(methods.passthrough(x, scale=scale), scale * wide(x)[0], abs(scale * wide(x)[0]))


@given(x=stacks(count=2), t=st.sampled_from([0.0, 1e-9, 1e-7, 0.01, 1 / 64, 0.3, 1e30]))
@oracle_test
def test_nearswap(x, t):
    expect(methods.nearswap(x, t=t), *nearswap_oracle(*wide(x), t))


@given(x=stacks(count=2))
@oracle_test
def test_arcee_fusion(x):
    importance, threshold = arcee_fusion_oracle(*wide(x))
    # Importances are ranked in working floats.
    unclear = abs(importance - threshold) < 3e-7 * threshold + 1e-18
    found = methods.arcee_fusion(x)
    wanted = torch.where(torch.from_numpy(importance >= threshold), x[1], x[0])
    assert bool(((found == wanted) | torch.from_numpy(unclear)).all())
    assert bool(((found == x[0]) | (found == x[1])).all())


# mergekit's published numbers, float64, six significant digits

BASE = torch.tensor([[1, -2, 0.5, 0], [3, 0.25, -1, 2]], dtype=torch.float64)
TUNED = torch.tensor(
    [[[1.1, -2.4, 0.55, 0.3], [3, 0.05, -0.4, 1.99]], [[0.8, -2.1, 1, 0.02], [3.07, 0.25, -1.3, 2.4]]],
    dtype=torch.float64,
)
DELTAS, SHARES = TUNED - BASE, [0.7, 0.4]


@pytest.mark.parametrize(
    ("merged", "golden"),
    [
        pytest.param(
            methods.nuslerp(TUNED, weight=SHARES),
            [0.998251, -2.30816, 0.719387, 0.199497, 3.04856, 0.123801, -0.733439, 2.15567],
            id="nuslerp",
        ),
        pytest.param(
            BASE + methods.nuslerp(DELTAS, weight=SHARES),
            [0.968827, -2.43472, 0.857356, 0.291855, 3.04351, 0.0637178, -0.627625, 2.23931],
            id="nuslerp of deltas",
        ),
        pytest.param(  # what mergekit calls `nuslerp_row_wise: false`
            BASE + methods.nuslerp(DELTAS, weight=SHARES, nuslerp_flatten=False, nuslerp_row_wise=True),
            [0.980236, -2.36356, 0.785198, 0.245623, 3.06111, 0.00927454, -0.539713, 2.33715],
            id="nuslerp of rows",
        ),
        pytest.param(
            BASE + methods.nuslerp(DELTAS, weight=SHARES, nuslerp_flatten=False, nuslerp_row_wise=False),
            [0.779922, -2.29761, 0.928264, 0.261392, 3.18056, 0.119956, -0.582203, 2.20589],
            id="nuslerp of columns",
        ),
        pytest.param(
            BASE + methods.multislerp(DELTAS, weight=SHARES),
            [0.976789, -2.4321, 0.838355, 0.291992, 3.04083, 0.0631153, -0.614326, 2.22396],
            id="multislerp of deltas",
        ),
        pytest.param(
            methods.multislerp(TUNED, weight=SHARES),
            [1.00322, -2.31413, 0.71362, 0.203579, 3.0499, 0.121089, -0.721367, 2.15156],
            id="multislerp",
        ),
        pytest.param(
            methods.karcher(torch.stack([BASE, *TUNED])),
            [0.977744, -2.18336, 0.680889, 0.108183, 3.04587, 0.184101, -0.900267, 2.14026],
            id="karcher",
        ),
        pytest.param(
            # Its second filter has opposed deltas, where mergekit steps away from both models.
            (BASE + methods.model_stock(DELTAS, filter_wise=True))[0],
            [0.98463, -2.07685, 0.584536, 0.0491846],
            id="model_stock by filter",
        ),
        pytest.param(
            methods.nearswap(torch.stack([BASE, TUNED[0]]), t=0.1),
            [1.1, -2.1, 0.55, 0.1, 3, 0.15, -0.9, 1.99],
            id="nearswap",
        ),
        pytest.param(
            methods.passthrough(TUNED[:1], scale=2.0), [2.2, -4.8, 1.1, 0.6, 6, 0.1, -0.8, 3.98], id="passthrough"
        ),
    ],
)
def test_mergekits_numbers(merged, golden):
    assert merged.reshape(-1).tolist() == pytest.approx(golden, rel=6e-6, abs=1e-9)


# Identities


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_changed_changes_nothing(shape, dtype):
    zeros = torch.zeros((3, *shape), dtype=dtype)
    for merged in (
        methods.nuslerp(zeros[:2]),
        methods.nuslerp(zeros[:2], nuslerp_flatten=False),
        methods.nuslerp(zeros[:2], nuslerp_flatten=False, nuslerp_row_wise=True),
        methods.multislerp(zeros, weight=[1.0, 2.0, -0.5]),
        methods.karcher(zeros),
        methods.model_stock(zeros),
        methods.model_stock(zeros, filter_wise=True),
        methods.wise_ft(zeros),
        methods.nearswap(zeros[:2], t=0.1),
        methods.arcee_fusion(zeros[:2]),
    ):
        assert merged.dtype == dtype and merged.shape == shape and not merged.any()


@pytest.mark.parametrize("scale", [1e-30, 1e-42, 1e38])
def test_size_does_not_matter(scale):
    """Tensors near the ends of float32 merge as they do in the middle: no norm is padded and none overflows."""
    x = (normal(3, 64) + 1).float()
    tiny = (x.double() / x.abs().max() * scale).float()
    for merge in (
        lambda x: methods.nuslerp(x[:2]),
        methods.multislerp,
        methods.karcher,
        methods.model_stock,
        lambda x: methods.slerp(x[:2], t=0.3, norm="unit"),
    ):
        found, wanted = merge(tiny), merge(tiny.double())
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=2e-45)
        in_the_middle = merge(tiny.double() / scale) * scale
        torch.testing.assert_close(wanted, in_the_middle, rtol=1e-12, atol=0)


@given(seed=st.integers(0, 1000), t=st.floats(0, 1))
@oracle_test
def test_norms_of_slerp(seed, t):
    a, b = normal(64, seed=seed), 3 * normal(64, seed=seed + 5000)
    ends, sizes = torch.stack([a, b]), (float(a.norm()), float(b.norm()))
    between = methods.slerp(ends, t=t, norm="unit").norm()
    assert float(between) == pytest.approx((1 - t) * sizes[0] + t * sizes[1], rel=1e-12)
    assert float(methods.slerp(ends, t=t, norm="matched").norm()) == pytest.approx(sizes[0], rel=1e-12)
    equal = torch.stack([a, b * (sizes[0] / sizes[1])])
    for norm in ("unit", "matched"):
        torch.testing.assert_close(methods.slerp(equal, t=t, norm=norm), methods.slerp(equal, t=t), rtol=0, atol=1e-13)


@pytest.mark.parametrize("norm", ["raw", "unit"])
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_slerp_ends_at_its_ends(norm, t):
    ends = normal(2, 64, dtype=torch.float32) * torch.tensor([[1.0], [5.0]])
    assert torch.equal(methods.slerp(ends, t=t, norm=norm), ends[int(t)])


def test_nuslerp_is_slerp_between_two_equals():
    x = normal(2, 64)
    torch.testing.assert_close(methods.nuslerp(x, weight=[3.0, 1.0]), methods.slerp(x, t=0.25), rtol=0, atol=1e-15)
    assert torch.equal(methods.nuslerp(x, weight=[3.0, 0.0]), x[0])
    assert torch.equal(methods.nuslerp(x, weight=[0.0, 3.0]), x[1])


def test_the_means_of_two_equals_are_slerps_middle():
    x = normal(2, 64)
    x[1] *= x[0].norm() / x[1].norm()
    middle = methods.slerp(x, t=0.5)
    torch.testing.assert_close(methods.karcher(x), middle, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(methods.multislerp(x), middle, rtol=1e-13, atol=1e-14)


@given(seed=st.integers(0, 1000), t=st.floats(0.05, 0.95))
@oracle_test
def test_a_weighted_karcher_mean_of_two_is_slerp(seed, t):
    """Weights 1 - t and t divide the arc in that ratio; the mean direction of the weights does not."""
    x = normal(2, 64, seed=seed)
    x /= x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(methods.karcher(x, weight=[1 - t, t]), methods.slerp(x, t=t), rtol=0, atol=1e-11)


def test_karcher_is_where_the_logarithms_cancel():
    x, weight = normal(4, 64) + 1.5 * normal(1, 64, seed=9), [1.0, 0.5, 2.0, 0.1]
    mean = unit(wide(methods.karcher(x, weight=weight)))
    pull = sum(w * log_map(mean, unit(row)) for w, row in zip(weight, wide(x), strict=True))
    assert np.linalg.norm(pull) < 1e-11


def test_model_stock_between_no_and_full_agreement():
    same = normal(64).expand(3, 64).clone()
    torch.testing.assert_close(methods.model_stock(same), same[0], rtol=1e-14, atol=0)
    apart = torch.eye(3, dtype=torch.float64)
    assert not methods.model_stock(apart).any()
    one = torch.tensor([[1.0, 0], [0.5, math.sqrt(0.75)]], dtype=torch.float64)  # 60°: t = 2·½ / 1.5
    torch.testing.assert_close(methods.model_stock(one), 2 / 3 * one.mean(0), rtol=1e-15, atol=0)


def test_wise_ft_goes_from_the_base_to_the_fine_tune():
    base, tuned = normal(64, dtype=torch.bfloat16).float(), normal(64, seed=1, dtype=torch.bfloat16).float()
    deltas = (tuned - base)[None]
    assert not methods.wise_ft(deltas, alpha=0.0).any()
    assert torch.equal((base + methods.wise_ft(deltas, alpha=1.0)).bfloat16(), tuned.bfloat16())
    halves = torch.stack([deltas[0], -deltas[0]])
    assert not methods.wise_ft(halves).any()


@given(x=stacks(count=2), t=st.sampled_from([0.0, 1e-8, 0.01, 0.3]))
@oracle_test
def test_nearswap_never_moves_further_than_t(x, t):
    a, b = wide(x)
    found = wide(methods.nearswap(x, t=t))
    assert (abs(found - a) <= t + torch.finfo(x.dtype).eps * (abs(a) + t)).all()
    assert (found == b)[abs(b - a) <= t].all()
    assert t or (found == a).all()


# What peers get wrong


def test_an_untouched_tensor_gives_the_base():
    """mergekit's multislerp stops with an error for three models."""
    assert methods.multislerp(torch.zeros(3, 8)).tolist() == [0.0] * 8


def test_a_tensor_that_one_fine_tune_left_alone():
    """mergekit's nuslerp takes an angle of 90° there: 0.707 of the other delta where half is meant."""
    deltas = torch.stack([torch.zeros(8, dtype=torch.float64), normal(8)])
    for merged in (methods.nuslerp(deltas), methods.multislerp(deltas), methods.karcher(deltas)):
        torch.testing.assert_close(merged, deltas[1] / 2, rtol=1e-15, atol=0)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_directions_that_cancel_give_the_weighted_mean(count):
    """mergekit's nuslerp grows without bound, its multislerp raises, its karcher is whichever model is listed first."""
    turns = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    around = torch.stack([turns.cos(), turns.sin()], 1) * torch.arange(1, count + 1)[:, None]
    mean = around.mean(0)
    torch.testing.assert_close(methods.multislerp(around), mean, rtol=0, atol=1e-15)
    torch.testing.assert_close(methods.karcher(around), mean, rtol=0, atol=1e-15)
    if count == 2:
        torch.testing.assert_close(methods.nuslerp(around), mean, rtol=0, atol=1e-15)


@pytest.mark.parametrize("size", [1e-4, 1e-5, 1e-9])
def test_model_stock_of_small_deltas_is_that_of_large_ones(size):
    """mergekit's floor under the norms' product takes t from 0.95 to 0.01 for deltas of 1e-5."""
    deltas = normal(3, 64) * 0.3 + normal(1, 64, seed=1)
    torch.testing.assert_close(methods.model_stock(deltas * size) / size, methods.model_stock(deltas))


def test_opposed_deltas_stay_at_the_base():
    """t = N cosθ / (1 + (N-1) cosθ) is -4 at a cosine of -2/3 for two, and infinite at -1."""
    delta = normal(64)
    for other in (-delta, -delta + 0.5 * normal(64, seed=1)):
        assert not methods.model_stock(torch.stack([delta, other])).any()
        assert not methods.model_stock(torch.stack([delta, other])[:, None], filter_wise=True).any()


def test_karcher_of_bfloat16_is_that_of_its_values():
    """mergekit's dot products in bfloat16 leave 0.34 % of error."""
    x = normal(3, 4096, dtype=torch.bfloat16) * 0.02 + normal(1, 4096, seed=1, dtype=torch.bfloat16)
    assert torch.equal(methods.karcher(x), methods.karcher(x.double()).float().bfloat16())


def test_nearswap_has_no_least_difference():
    """mergekit divides by at least 1e-6, and so moves by t · 1e-7 / 1e-6 where it means t."""
    found = methods.nearswap(torch.tensor([[0.0], [1e-7]]), t=1e-7)
    assert found.tolist() == torch.tensor([1e-7]).tolist()


@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-7])
def test_arcee_fusion_ranks_light_fine_tunes(size):
    """The divergence of a row is ½ Var(δ) for small changes; sums in float32 lose it in rounding."""
    base = normal(64, 128, dtype=torch.float32).double()
    delta = normal(64, 128, seed=1) * size * torch.logspace(-1, 1, 64, dtype=torch.float64)[:, None]
    found = methods.arcee_fusion(torch.stack([base, base + delta]))
    shares = base.softmax(-1)
    spread = (shares * delta**2).sum(-1, keepdim=True) - (shares * delta).sum(-1, keepdim=True) ** 2
    importance = (delta.abs() * spread / 2).numpy()
    first, median, third = np.quantile(importance, [0.25, 0.5, 0.75])
    taken = (found != base).numpy()
    assert np.mean(taken != (importance >= median + 1.5 * (third - first))) < 30 * size + 1e-3


def test_arcee_fusion_has_no_chance_in_it():
    """mergekit draws a sample from tensors beyond a million entries."""
    x = normal(2, 1100, 1000, dtype=torch.float32)
    torch.manual_seed(0)
    first = methods.arcee_fusion(x)
    torch.manual_seed(1)
    assert torch.equal(methods.arcee_fusion(x), first)


@pytest.mark.parametrize("gap", [1.0, 50.0, 1e4, 1e38])
def test_arcee_fusion_of_far_apart_rows_is_finite(gap):
    x = normal(2, 3, 8, dtype=torch.float32)
    x[1, 0] *= gap
    found = methods.arcee_fusion(x)
    assert bool(((found == x[0]) | (found == x[1])).all())


@given(x=stacks(count=2), scale=st.sampled_from([1e-6, 1.0, 30.0, 400.0]))
@oracle_test
def test_divergences_equal_those_in_long_double(x, scale):
    base, tuned = wide(x) * scale
    sums = importance.row_sums(*torch.from_numpy(np.stack([base, tuned])[:, None]))
    found = float(importance.divergence(sums.numpy())[0])
    p, q = (np.exp(v - v.max()) for v in (tuned.astype(np.longdouble), base.astype(np.longdouble)))
    gap = (tuned.astype(np.longdouble) - base) - np.log(p.sum() / q.sum()) - (tuned.max() - base.max())
    # Long double is rounded relative to 1, and so not the nearer to the truth below 1e-18.
    within = 1e-15 * abs(tuned - base).max() + 1e-18
    assert found == pytest.approx(float((p / p.sum() * gap).sum()), rel=1e-9, abs=within)


@pytest.mark.parametrize("length", [1, 7, 256, 257, 1000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_sums_of_rows_of_every_kind_are_bit_equal(length, dtype):
    """Light rows, rows that one base or one change makes heavy, rows that moved far, at and beside the bounds."""
    light, small = exponential.UNREDUCED, exponential.SMALL
    base = normal(9, length, dtype=torch.float64) * 0.05
    delta = normal(9, length, seed=1) * 1e-3
    base[1, -1], base[2, -1], base[3, 0] = light, -1.01 * light, 300.0
    delta[4, -1], delta[5, -1], delta[6, 0], delta[7, -1] = small, -1.01 * small, 3.0, -900.0
    delta[8, 0] = math.nan
    old, new = base.to(dtype), (base + delta).to(dtype)
    plain = importance.row_sums(old.double(), new.double()).numpy()
    kind = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}.get(dtype, dtype)
    sums = np.empty_like(plain)
    fused_importance.row_sums(
        old.view(kind).numpy().ravel(), new.view(kind).numpy().ravel(), length, importance.LANES, sums
    )
    np.testing.assert_array_equal(sums[:8], plain[:8])
    for spoiled in (sums, plain):
        assert np.isnan(importance.divergence(spoiled)[8])


@given(values=st.lists(st.floats(0, 1e6), min_size=1, max_size=30))
@oracle_test
def test_the_threshold_is_that_of_interpolated_quartiles(values):
    rising = sorted(values)
    places = importance.quartile_places(len(values))
    first, median, third = np.quantile(values, [0.25, 0.5, 0.75])
    level = importance.threshold([rising[place] for place in places], len(values), 1e300)
    assert level == pytest.approx(median + 1.5 * (third - first), rel=1e-14)


@given(level=st.floats(0, 1e30))
def test_what_is_not_below_a_level_in_working_floats(level):
    found = importance.not_below(level, np.float32)
    assert float(np.nextafter(found, np.float32(-1))) < level or found == 0
    assert level <= float(found)
    assert importance.not_below(level, np.float64) == level


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_arcee_fusion_takes_what_is_not_finite(bad):
    """Were a broken row never important, its tensor would come out as the base and look sound."""
    x = normal(2, 40, 8, dtype=torch.float32)
    whole = methods.arcee_fusion(x)
    x[1, 3, 2] = bad
    found = methods.arcee_fusion.applied(x)
    assert torch.equal(found[3].nan_to_num(), x[1, 3].nan_to_num())
    assert float((found != whole).double().mean()) < 0.1


@pytest.mark.parametrize("name", ["nuslerp", "multislerp", "karcher"])
def test_weights_that_sum_to_zero_are_refused(name):
    weight = [0.0, 0.0] if name == "karcher" else [1.0, -1.0]
    with pytest.raises(RecipeError, match="sum to zero"):
        methods.get(name)(normal(2, 8), weight=weight)


def test_karcher_takes_no_negative_weight():
    with pytest.raises(RecipeError, match=r"\[0, inf\)"):
        methods.karcher(normal(2, 8), weight=[1.0, -0.5])


# Coefficients


@given(angle=st.floats(1e-9, 3e-4), t=st.floats(0, 1))
@oracle_test
def test_small_angles_lose_nothing_to_the_cosine(angle, t):
    """The coefficients as series in the angle; of the cosine, angles below 1e-8 leave nothing."""
    left, right = slerp_coefficients(1.0, math.cos(angle), 1.0, t)
    assert right == pytest.approx(t * (1 + (1 - t * t) * angle**2 / 6), abs=3e-15)
    assert left == pytest.approx((1 - t) * (1 + (1 - (1 - t) ** 2) * angle**2 / 6), abs=3e-15)


@pytest.mark.parametrize("norm", ["raw", "unit", "matched"])
def test_overflowed_inner_products_are_interpolated_linearly(norm):
    assert slerp_coefficients(math.inf, math.inf, math.inf, 0.25, norm) == (0.75, 0.25)
    infinite = [[math.inf] * 2] * 2
    assert mean_direction(infinite, [1.0, 1.0]) == karcher_mean(infinite, [1.0, 1.0], 10, 1e-9) == [0.5, 0.5]


def test_a_model_of_weight_zero_is_absent():
    gram = (normal(3, 64) @ normal(3, 64).T).tolist()
    rest = [[gram[j][k] for k in (0, 2)] for j in (0, 2)]
    assert mean_direction(gram, [1.0, 0.0, 0.5])[::2] == mean_direction(rest, [1.0, 0.5])
    assert karcher_mean(gram, [1.0, 0.0, 0.5], 100, 1e-12)[::2] == karcher_mean(rest, [1.0, 0.5], 100, 1e-12)


def test_karcher_stops_at_the_most_iterations():
    gram = [[1.0, 0.2, 0.1], [0.2, 1.0, 0.5], [0.1, 0.5, 1.0]]
    one, many = (karcher_mean(gram, [1.0, 2.0, 3.0], most, 1e-12) for most in (1, 100))
    assert one != many and one == pytest.approx(many, rel=0.05)
    assert karcher_mean(gram, [1.0, 2.0, 3.0], 100, 0.9) == one


def test_a_direction_opposite_to_the_mean_has_no_logarithm():
    gram = [[1.0, -0.9999], [-0.9999, 1.0]]
    assert karcher_mean(gram, [3.0, 1.0], 100, 1e-12) == [0.75, 0.25]


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3))
@oracle_test
def test_the_stock_ratio_stays_between_its_ends(cosines):
    a, b, c = cosines
    assert 0.0 <= stock_ratio([[1.0, a, b], [a, 1.0, c], [b, c, 1.0]]) <= 1.0


def test_vectors_along_an_axis_are_combined_like_tensors():
    x = normal(2, 3, 4)
    rows = combined_along(x, lambda gram: (gram[0][0], gram[0][1]))
    for i in range(3):
        torch.testing.assert_close(rows[i], combined(x[:, i], lambda gram: (gram[0][0], gram[0][1])))


# Through the engine

LARGE = {"big": (1030, 1020), "row": (7,), "one": (1,), "scalar": (), "none": (0, 4), "square": (33, 31)}
SMALL = {"a": (50, 30), "b": (64,), "c": (9, 2, 3), "none": (0, 4)}
CASES = {
    "slerp": {"t": 0.3},
    "slerp, unit": {"t": 0.3, "norm": "unit"},
    "slerp, matched": {"t": 0.3, "norm": "matched"},
    "nuslerp": {"weight": [1.0, 0.4]},
    "nuslerp, base": {"weight": [1.0, 0.4]},
    "nuslerp, base, columns": {"weight": [1.0, 0.4], "nuslerp_flatten": False},
    "multislerp": {"weight": [1.0, 0.4, -0.2]},
    "multislerp, base": {"weight": [1.0, 0.4]},
    "multislerp, base, raw": {"weight": [1.0, 0.4], "normalize_weights": False},
    "karcher": {"weight": [1.0, 0.4, 0.2]},
    "model_stock, base": {},
    "model_stock, base, filters": {"filter_wise": True},
    "wise_ft, base": {"alpha": 0.7},
    "passthrough": {"scale": [0.3]},
    "nearswap": {"t": 0.01},
    "arcee_fusion": {},
}


def write_models(home, dtypes, shapes):
    """Three models, the second and third away from the first by 2 % and a common part."""
    paths = []
    start = {name: normal(*shape, seed=1) for name, shape in shapes.items()}
    for i in range(3):
        moved = {
            name: t + 0.02 * (i > 0) * (normal(*t.shape, seed=10) + normal(*t.shape, seed=10 + i))
            for name, t in start.items()
        }
        path = home / f"m{i}"
        path.mkdir()
        dtype = getattr(torch, dtypes[min(i, len(dtypes) - 1)])
        write_safetensors(path / "model.safetensors", {name: t.to(dtype) for name, t in moved.items()})
        paths.append(str(path))
    return paths


def recipe_of(case, paths):
    name, *rest = case.split(", ")
    method, given = methods.get(name), dict(CASES[case])
    with_base = "base" in rest
    most = method.models[1] or 3
    models = paths[1:] if with_base else paths[:most]
    entries = [{"model": path} for path in models]
    for param in [param for param, value in given.items() if isinstance(value, list)]:
        for entry, value in zip(entries, given.pop(param), strict=True):
            entry["parameters"] = {param: value}
    recipe = {"merge_method": name, "models": entries, "parameters": given}
    return recipe | ({"base_model": paths[0]} if with_base or method.base == "first" else {})


def merged_folder(recipe, out, **options):
    eutectic.merge(recipe, out, options=Options(**{"threads": 1} | options))
    return eutectic.open(str(out))


def same_as_reference(recipe, home):
    """Equal, up to the last bit of the inner products, which are summed in another order there."""
    found = merged_folder(recipe, home / "fused")
    expected = merged_folder(recipe, home / "reference", reference=True, memory=4 << 30)
    for name in expected:
        eps = torch.finfo(expected[name].dtype).eps
        # In float64 such a bit shows as one of the largest term, and terms may cancel.
        double = expected[name].dtype == torch.float64 and expected[name].numel()
        largest = float(expected[name].abs().max()) if double else 0.0
        torch.testing.assert_close(found[name], expected[name], rtol=2 * eps, atol=2 * eps * largest)
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_the_fused_form_equals_the_reference(case, dtype, tmp_path):
    paths = write_models(tmp_path, [dtype], LARGE if dtype == "bfloat16" else SMALL)
    same_as_reference(recipe_of(case, paths), tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_mixed_dtypes_equal_the_reference(case, tmp_path):
    paths = write_models(tmp_path, ["float32", "bfloat16", "float16"], SMALL)
    same_as_reference(recipe_of(case, paths) | {"out_dtype": "bfloat16"}, tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_arcee_fusion_takes_the_same_entries_in_blocks(dtype, tmp_path):
    """Bit for bit: rows that a block ends in, one row of two blocks, short rows, rows far apart, and broken ones."""
    shapes = {"vector": ((1 << 20) + 77,), "threes": (700, 600, 3), "far": (300, 40), "broken": (90, 17)}
    paths = write_models(tmp_path, [dtype], shapes)
    tuned = {name: tensor.clone() for name, tensor in eutectic.open(paths[1]).items()}
    tuned["far"][::7] *= 50
    tuned["broken"][3, 4], tuned["broken"][80, 0] = math.nan, -math.inf
    write_safetensors(tmp_path / "m1" / "model.safetensors", tuned)
    recipe = recipe_of("arcee_fusion", paths)
    found = merged_folder(recipe, tmp_path / "fused", nonfinite="count", threads=2)
    plain = merged_folder(recipe, tmp_path / "plain", nonfinite="count", reference=True, memory=4 << 30)
    for name in shapes:
        assert torch.equal(found[name].nan_to_num(), plain[name].nan_to_num()), name
        assert 0 < int((found[name] != eutectic.open(paths[0])[name]).sum()) < found[name].numel() / 2, name


@pytest.mark.parametrize("case", CASES)
def test_threads_do_not_matter(case, tmp_path):
    paths = write_models(tmp_path, ["bfloat16"], LARGE)
    recipe = recipe_of(case, paths)
    one, four = (merged_folder(recipe, tmp_path / f"t{n}", threads=n, memory=4 << 30) for n in (1, 4))
    assert all(torch.equal(one[name], four[name]) for name in one)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_passthrough_copies_every_bit(dtype, tmp_path):
    integers = {"bfloat16": torch.int16, "float16": torch.int16, "float32": torch.int32, "float64": torch.int64}[dtype]
    bits = torch.randint(-(2**15), 2**15, (5000,), generator=torch.Generator().manual_seed(0)).to(integers)
    (tmp_path / "m").mkdir()
    write_safetensors(tmp_path / "m" / "model.safetensors", {"x": bits.view(getattr(torch, dtype))})
    recipe = {"merge_method": "passthrough", "models": [str(tmp_path / "m")]}
    copied = merged_folder(recipe, tmp_path / "out", nonfinite="count")
    assert torch.equal(copied["x"].view(integers), bits)


def test_a_layer_without_its_fused_form_stands_beside_those_with(tmp_path):
    """`nuslerp_flatten` by filter: some tensors in passes, some in plain torch, in one merge."""
    paths = write_models(tmp_path, ["bfloat16"], SMALL)
    recipe = recipe_of("nuslerp, base", paths)
    recipe["parameters"]["nuslerp_flatten"] = [{"filter": "a", "value": False}, {"value": True}]
    found = same_as_reference(recipe, tmp_path)
    rows = merged_folder(recipe | {"parameters": {"nuslerp_flatten": False}}, tmp_path / "rows")
    whole = merged_folder(recipe | {"parameters": {"nuslerp_flatten": True}}, tmp_path / "whole")
    assert torch.equal(found["a"], rows["a"]) and not torch.equal(found["a"], whole["a"])
    assert torch.equal(found["c"], whole["c"]) and not torch.equal(found["c"], rows["c"])


def test_alpha_may_differ_by_layer(tmp_path):
    paths = write_models(tmp_path, ["float64"], SMALL)
    recipe = recipe_of("wise_ft, base", paths)
    recipe["parameters"]["alpha"] = [{"filter": "a", "value": 0.0}, {"value": 0.5}]
    found, base = merged_folder(recipe, tmp_path / "out"), eutectic.open(paths[0])
    assert torch.equal(found["a"], base["a"]) and not torch.equal(found["b"], base["b"])
