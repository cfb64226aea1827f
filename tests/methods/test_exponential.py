"""exp and expm1: near the true values, and the same bits in torch and in compiled code."""

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
