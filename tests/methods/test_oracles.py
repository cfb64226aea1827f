"""Each method equals a short numpy oracle in float64, derived from its documentation and sharing no code with it.

The bound, everywhere: half a unit of the result's dtype for the one rounding at the end, and four of float32 (float64
for float64) for the arithmetic before it, each relative to the sum of the magnitudes added up.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from eutectic import methods
from eutectic.methods import Rng

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NAMES = ("a", "b", "c", "d", "e")


# Oracles: float64 `(K, n)` in; the result and the sum of magnitudes behind each entry out


def linear_oracle(x, weight, normalize):
    total = np.sum(weight) if normalize else 1.0
    return weight @ x / total, np.abs(weight) @ np.abs(x) / abs(total)


def task_arithmetic_oracle(x, weight, normalize, scale):
    merged, size = linear_oracle(x, weight, normalize)
    return scale * merged, abs(scale) * size


def slerp_oracle(x, t):
    a, b = x
    if not a.any() or not b.any():
        return (1 - t) * a + t * b, np.abs(a) + np.abs(b)
    u, v = a / np.linalg.norm(a), b / np.linalg.norm(b)
    angle = 2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))
    if angle < 1e-6 or u @ v < -0.9995:
        return (1 - t) * a + t * b, np.abs(a) + np.abs(b)
    left, right = np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)
    return left * a + right * b, abs(left * a) + abs(right * b)


def trim_oracle(x, density):
    kept = np.zeros_like(x)
    for row, values, share in zip(kept, x, density, strict=True):
        count = max(1, int(Fraction(str(share)) * len(values)))
        first = np.lexsort((np.arange(len(values)), -np.abs(values)))[:count]
        row[first] = values[first]
    return kept


def elect_oracle(x, weight, normalize, scale):
    parts = weight[:, None] * x
    sign = np.where(parts.sum(0) >= 0, 1, -1)
    agrees = parts * sign > 0
    share = np.where(agrees, weight[:, None], 0).sum(0)
    share = np.where(share == 0, 1, share) if normalize else 1.0
    return scale * np.where(agrees, parts, 0).sum(0) / share, abs(scale) * (abs(parts) * agrees).sum(0) / abs(share)


def mask_oracle(count, key):
    """Philox4x32-7 on uint64; the bytes of an entry's word come from where `kernels/random.py` says."""
    i, m, words = np.arange(count, dtype=np.uint64), np.uint64(2**32 - 1), np.zeros(count, np.uint64)
    for place in range(4):
        a, b = i // 256 * 16 + i % 128 // 8, i * 0 + np.uint64(place << 30)
        c, d = i * 0 + np.uint64(key[2]), i * 0 + np.uint64(key[3])
        k = [np.uint64(part) for part in key[:2]]
        for _ in range(7):
            p, q = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
            a, b, c, d = (q >> 32) ^ b ^ k[0], q & m, (p >> 32) ^ d ^ k[1], p & m
            k = [k[0] + np.uint64(0x9E3779B9) & m, k[1] + np.uint64(0xBB67AE85) & m]
        half = np.where(i % 256 < 128, a | b << 32, c | d << 32)
        words = words << 8 | half >> i % 8 * 8 & np.uint64(0xFF)
    return words


def dare_oracle(x, density, rescale, rng):
    words = np.array([mask_oracle(x.shape[1], rng.key(model)) for model in range(len(x))])
    kept = np.where(words < np.round(density * 2**32)[:, None], x, 0)
    if rescale == "l1":
        norms = np.abs(kept).sum(1)
        return kept * (np.abs(x).sum(1) / np.where(norms == 0, 1, norms))[:, None]
    return kept / density[:, None] if rescale else kept


# Inputs


@st.composite
def stacks(draw, count=None):
    """`(K, n)` tensors of any float dtype, with many equal magnitudes and zeros, or with hardly any."""
    dtype = draw(st.sampled_from(DTYPES))
    k, n = count or draw(st.integers(1, 5)), draw(st.integers(1, 40))
    coarse = st.integers(-4, 4).map(lambda step: step / 64)
    fine = st.floats(-1, 1, width=32, allow_subnormal=False)
    values = draw(st.lists(draw(st.sampled_from([coarse, coarse | fine, fine])), min_size=k * n, max_size=k * n))
    return torch.tensor(values, dtype=torch.float32).reshape(k, n).to(dtype)


def per_model(values):
    return st.lists(st.sampled_from(values), min_size=5, max_size=5).map(np.array)


weights = per_model([1.0, 1.0, 0.5, 0.7, -0.3, -1.0, 0.0, 2.0])
densities = per_model([0.05, 0.2, 0.29, 0.5, 0.9, 1.0])
scales = st.sampled_from([1.0, 0.4, -1.0, 2.0])
oracle_test = settings(max_examples=80, deadline=None)


def expect(found, oracle, sizes, where=True):
    kind = torch.finfo(found.dtype)
    working = 2.0**-52 if found.dtype == torch.float64 else 2.0**-23
    bound = (kind.eps / 2 + 4 * working) * sizes + 2 * kind.smallest_normal * kind.eps
    wrong = (np.abs(found.double().numpy() - oracle) > bound) & where
    assert not wrong.any(), (found[wrong], oracle[wrong], bound[wrong])


def wide(tensors):
    return tensors.double().numpy()


# The methods


@given(x=stacks(), weight=weights, normalize=st.booleans())
@oracle_test
def test_linear(x, weight, normalize):
    weight = weight[: len(x)]
    assume(not normalize or abs(weight.sum()) > 0.05)
    expect(methods.linear(x, weight=weight.tolist(), normalize=normalize), *linear_oracle(wide(x), weight, normalize))


@given(x=stacks(), weight=weights, normalize=st.booleans(), scale=scales)
@oracle_test
def test_task_arithmetic(x, weight, normalize, scale):
    weight = weight[: len(x)]
    assume(not normalize or abs(weight.sum()) > 0.05)
    found = methods.task_arithmetic(x, weight=weight.tolist(), normalize=normalize, lambda_=scale)
    expect(found, *task_arithmetic_oracle(wide(x), weight, normalize, scale))


@given(x=stacks(count=2), t=st.floats(0, 1))
@oracle_test
def test_slerp(x, t):
    a, b = wide(x)
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    assume(not norms or abs(a @ b / norms + 0.9995) > 1e-9)
    expect(methods.slerp(x, t=t), *slerp_oracle((a, b), t))


@given(x=stacks(), weight=weights, density=densities, normalize=st.booleans(), scale=scales)
@oracle_test
def test_ties(x, weight, density, normalize, scale):
    weight, density = weight[: len(x)], density[: len(x)]
    found = methods.ties(x, weight=weight.tolist(), density=density.tolist(), normalize=normalize, lambda_=scale)
    expect(found, *elect_oracle(trim_oracle(wide(x), density), weight, normalize, scale))


@given(x=stacks(count=1), density=densities)
@oracle_test
def test_ties_of_one_model_keeps_exactly_the_oracles_set(x, density):
    kept = methods.ties(x, density=float(density[0]))
    assert kept.double().tolist() == trim_oracle(wide(x), density[:1])[0].tolist()


@given(x=stacks(), weight=weights, density=densities)
@oracle_test
def test_ties_with_rescale(x, weight, density):
    """Scale factors are rounded to float32, so entries whose vote is a near tie are left to either side."""
    weight, density = weight[: len(x)], density[: len(x)]
    kept = trim_oracle(wide(x), density)
    norms = np.abs(kept).sum(1)
    kept *= (np.abs(wide(x)).sum(1) / np.where(norms == 0, 1, norms))[:, None]
    found = methods.ties(x, weight=weight.tolist(), density=density.tolist(), rescale=True)
    expect(found, *elect_oracle(kept, weight, True, 1.0), where=clear_votes(kept, weight))


@given(
    x=stacks(), weight=weights, density=densities, normalize=st.booleans(), rescale=st.sampled_from([True, False, "l1"])
)
@oracle_test
def test_dare_linear(x, weight, density, normalize, rescale):
    weight, density, rng = weight[: len(x)], density[: len(x)], Rng(3, "tensor", NAMES[: len(x)])
    assume(not normalize or abs(weight.sum()) > 0.05)
    found = methods.dare_linear(
        x, weight=weight.tolist(), density=density.tolist(), normalize=normalize, rescale=rescale, rng=rng
    )
    expect(found, *linear_oracle(dare_oracle(wide(x), density, rescale, rng), weight, normalize))


@given(
    x=stacks(), weight=weights, density=densities, normalize=st.booleans(), rescale=st.sampled_from([True, False, "l1"])
)
@oracle_test
def test_dare_ties(x, weight, density, normalize, rescale):
    """δ / density is rounded to float32, so entries whose vote is a near tie are left to either side."""
    weight, density, rng = weight[: len(x)], density[: len(x)], Rng(3, "tensor", NAMES[: len(x)])
    found = methods.dare_ties(
        x, weight=weight.tolist(), density=density.tolist(), normalize=normalize, rescale=rescale, rng=rng
    )
    kept = dare_oracle(wide(x), density, rescale, rng)
    expect(found, *elect_oracle(kept, weight, normalize, 1.0), where=clear_votes(kept, weight))


@given(x=stacks(), density=densities)
@oracle_test
def test_dare_keeps_exactly_the_oracles_sets(x, density):
    rng = Rng(3, "tensor", NAMES[: len(x)])
    for model, row in enumerate(dare_oracle(wide(x), density[: len(x)], False, rng)):
        alone = Rng(3, "tensor", (NAMES[model],))
        found = methods.dare_linear(x[model : model + 1], density=float(density[model]), rescale=False, rng=alone)
        assert found.double().tolist() == row.tolist()


def clear_votes(x, weight):
    parts = weight[:, None] * x
    return np.abs(parts.sum(0)) > 1e-5 * np.abs(parts).sum(0)


# Published numbers: mergekit 0.1.5, float64, six significant digits

BASE = torch.tensor([[1, -2, 0.5, 0], [3, 0.25, -1, 2]], dtype=torch.float64)
TUNED = torch.tensor(
    [[[1.1, -2.4, 0.55, 0.3], [3, 0.05, -0.4, 1.99]], [[0.8, -2.1, 1, 0.02], [3.07, 0.25, -1.3, 2.4]]],
    dtype=torch.float64,
)
PAIR = torch.stack([BASE, TUNED[0]])
DELTAS = TUNED - BASE
SHARES = [0.7, 0.4]


@pytest.mark.parametrize(
    ("merged", "golden"),
    [
        pytest.param(
            methods.linear(TUNED, weight=SHARES),
            [0.990909, -2.29091, 0.713636, 0.198182, 3.02545, 0.122727, -0.727273, 2.13909],
            id="linear",
        ),
        pytest.param(
            methods.linear(TUNED, weight=SHARES, normalize=False),
            [1.09, -2.52, 0.785, 0.218, 3.328, 0.135, -0.8, 2.353],
            id="linear, not normalised",
        ),
        pytest.param(
            methods.slerp(PAIR, t=0.25),
            [1.02819, -2.10663, 0.514094, 0.0753827, 3.00918, 0.20051, -0.852294, 2.00361],
            id="slerp",
        ),
        pytest.param(
            methods.slerp.function(PAIR, t=1.2),  # beyond what a recipe may ask for
            [1.1158, -2.47103, 0.557901, 0.35914, 2.98826, 0.00959542, -0.277808, 1.9802],
            id="slerp beyond the end",
        ),
        pytest.param(
            BASE + methods.task_arithmetic(DELTAS, weight=SHARES),
            [0.99, -2.32, 0.735, 0.218, 3.028, 0.11, -0.7, 2.153],
            id="task_arithmetic",
        ),
        pytest.param(
            BASE + methods.task_arithmetic(DELTAS, weight=SHARES, normalize=True, lambda_=0.5),
            [0.995455, -2.14545, 0.606818, 0.0990909, 3.01273, 0.186364, -0.863636, 2.06955],
            id="task_arithmetic, normalised, lambda 0.5",
        ),
        pytest.param(
            BASE + methods.ties(DELTAS, weight=SHARES, density=0.5),
            [0.8, -2.4, 1, 0.3, 3, 0.05, -0.4, 2.4],
            id="ties, density 0.5",
        ),
        pytest.param(
            BASE + methods.ties(DELTAS, weight=SHARES, density=1.0),
            [0.8, -2.29091, 0.713636, 0.198182, 3.07, 0.05, -0.4, 2.4],
            id="ties, density 1",
        ),
        pytest.param(
            BASE + methods.ties(DELTAS, weight=SHARES, density=0.5, normalize=False, lambda_=2.0),
            [0.84, -2.56, 0.9, 0.42, 3, -0.03, -0.16, 2.32],
            id="ties, a sum, lambda 2",
        ),
        pytest.param(
            BASE + methods.ties(DELTAS, weight=SHARES, density=0.5, rescale=True),
            [0.772857, -2.44267, 1.06786, 0.332, 3, 0.0286667, -0.336, 2.45429],
            id="ties, rescaled",
        ),
    ],
)
def test_mergekits_numbers(merged, golden):
    """Equal to the six digits recorded; 1e-9 covers golden values that are exact decimals near zero."""
    assert merged.reshape(-1).tolist() == pytest.approx(golden, rel=6e-6, abs=1e-9)
