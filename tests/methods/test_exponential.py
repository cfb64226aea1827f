"""exp, expm1 and tanh: near the true values, and the same bits in torch and in compiled code."""

from __future__ import annotations

import numpy as np
import torch

from eutectic.kernels import exponential, fused_exponential
from eutectic.kernels.fused import compiled


@compiled
def both(x, grown, more):
    for t in range(len(x)):
        i = np.uint64(t)
        grown[i], more[i] = fused_exponential.exp(x[i]), fused_exponential.expm1(x[i])


@compiled
def three(x, short, flat, steep):
    for t in range(len(x)):
        i = np.uint64(t)
        short[i], flat[i] = fused_exponential.short_series(x[i]), fused_exponential.short_tanh(x[i])
        steep[i] = fused_exponential.tanh(abs(x[i]))


def points():
    rng = np.random.default_rng(0)
    halves = np.arange(-1010, 1011) * np.log(2) / 2
    near = np.concatenate([halves, np.nextafter(halves, 800), np.nextafter(halves, -800)])
    tiny = rng.standard_normal(3000) * 10.0 ** rng.integers(-300, 0, 3000)
    return np.concatenate([rng.uniform(-700, 700, 50000), rng.uniform(-1, 1, 50000), tiny, near])


def test_compiled_and_plain_are_bit_equal():
    x = np.concatenate([points(), [0.0, -0.0, 700.0, -700.0]])
    grown, more = np.empty_like(x), np.empty_like(x)
    both(x, grown, more)
    np.testing.assert_array_equal(exponential.exp(torch.from_numpy(x)).numpy(), grown)
    np.testing.assert_array_equal(exponential.expm1(torch.from_numpy(x)).numpy(), more)
    assert grown[-4:-2].tolist() == [1.0, 1.0] and more[-4:-2].tolist() == [0.0, 0.0]


def test_within_two_units_in_the_last_place():
    x = points()
    found = torch.from_numpy(x)
    for mine, true in ((exponential.exp, np.exp), (exponential.expm1, np.expm1)):
        expected = true(x.astype(np.longdouble))
        apart = np.where(expected == 0, 0, abs(mine(found).numpy() - expected))
        assert np.max(apart / np.spacing(abs(expected.astype(np.float64)))) < 2


def within_small():
    rng = np.random.default_rng(1)
    tiny = rng.standard_normal(3000) * 10.0 ** rng.integers(-300, -2, 3000)
    x = np.concatenate([rng.uniform(-1, 1, 50000) * exponential.SMALL, tiny, [exponential.SMALL, -exponential.SMALL]])
    return x[abs(x) <= exponential.SMALL]


def test_short_series_are_the_same_functions():
    x = within_small()
    for mine, true in ((exponential.short_series, np.expm1), (exponential.short_tanh, np.tanh)):
        expected = true(x.astype(np.longdouble))
        assert np.max(abs(mine(x) - expected) / np.spacing(abs(expected.astype(np.float64)))) < 2


def test_tanh():
    rng = np.random.default_rng(2)
    joint = np.nextafter(exponential.SMALL, [0.0, 1.0])
    x = np.concatenate([rng.uniform(0, 25, 50000), abs(within_small()), joint, [0.0, exponential.FLAT, 1e300]])
    found = exponential.tanh(torch.from_numpy(x)).numpy()
    true = np.tanh(x.astype(np.longdouble))
    assert np.max(abs(found - true) / np.spacing(np.maximum(true, 1e-300).astype(np.float64))) < 4
    assert found[-3:].tolist() == [0.0, 1.0, 1.0]


def test_compiled_and_plain_are_bit_equal_for_small_ones():
    x = np.concatenate([within_small(), np.linspace(0, 25, 999)])
    short, flat, steep = (np.empty_like(x) for _ in range(3))
    three(x, short, flat, steep)
    np.testing.assert_array_equal(exponential.short_series(x), short)
    np.testing.assert_array_equal(exponential.short_tanh(x), flat)
    np.testing.assert_array_equal(exponential.tanh(torch.from_numpy(abs(x))).numpy(), steep)


def test_exp_of_what_needs_no_reduction_is_the_series():
    x = np.linspace(-1, 1, 100001) * exponential.UNREDUCED
    np.testing.assert_array_equal(exponential.exp(torch.from_numpy(x)).numpy(), 1.0 + exponential.series(x))
