"""Moments that come in pieces equal numpy's, whatever the pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eutectic.kernels.comoments import Comoments, Moments


def samples(rows: int = 90, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 5, generator=generator)
    y = x @ torch.randn(5, 7, generator=generator) + torch.randn(rows, 7, generator=generator) + 100
    x[:, 2], y[:, 4] = 0.0, 1 / 3
    return x, y


@pytest.mark.parametrize("size", [1, 7, 90])
def test_equal_numpy_whatever_the_pieces(size: int) -> None:
    x, y = samples()
    both = Comoments(5, 7)
    for first in range(0, len(x), size):
        both.add(x[first : first + size], y[first : first + size])
    a, b = x.double().numpy(), y.double().numpy()
    np.testing.assert_allclose(both.left.mean, a.mean(0), atol=1e-7)
    np.testing.assert_allclose(both.right.variance, b.var(0), rtol=1e-6, atol=1e-12)
    wanted = (a - a.mean(0)).T @ (b - b.mean(0)) / len(a)
    np.testing.assert_allclose(both.covariance, wanted, atol=2e-6)
    with np.errstate(invalid="ignore", divide="ignore"):
        pearson = np.corrcoef(a.T, b.T)[:5, 5:]
    wanted = np.nan_to_num(np.where(b.std(0) > 1e-6, pearson, 0))
    np.testing.assert_allclose(both.correlation, wanted, atol=1e-6)


def test_constants_correlate_with_nothing_and_nothing_is_nan() -> None:
    x, y = samples()
    both = Comoments(5, 7)
    both.add(x, y)
    assert not both.correlation[2].any() and not both.correlation[:, 4].any()
    assert both.left.variance[2] == 0 and both.right.variance[4] == 0
    assert both.correlation.isfinite().all()


def test_a_column_correlates_with_itself_by_one() -> None:
    x, _ = samples()
    both = Comoments(5, 5)
    both.add(x, -x)
    found = both.correlation.diagonal()
    torch.testing.assert_close(found, torch.tensor([-1.0, -1, 0, -1, -1], dtype=torch.float64), atol=1e-6, rtol=0)


def test_what_overflows_is_infinite_and_no_constant() -> None:
    one = Moments(2)
    one.add(torch.tensor([[1e20, 1.0], [-1e20, 2.0]]))
    assert one.variance.tolist() == [torch.inf, 0.25]


def test_columns_of_two_dtypes_are_compared_in_the_wider_one() -> None:
    x, y = samples()
    both = Comoments(5, 7)
    both.add(x.double(), y)
    wanted = torch.cov(torch.cat([x, y], 1).double().T, correction=0)[:5, 5:]
    torch.testing.assert_close(both.covariance, wanted, atol=1e-5, rtol=1e-5)


def test_no_row_gives_zeros() -> None:
    one = Moments(3)
    one.add(torch.zeros(0, 3))
    assert one.count == 0 and not one.mean.any() and not one.variance.any()


def test_rows_of_float64_keep_it() -> None:
    x, y = (rows.double() for rows in samples())
    both = Comoments(5, 7)
    both.add(x[:40], y[:40])
    both.add(x[40:], y[40:])
    wanted = torch.cov(torch.cat([x, y], 1).T, correction=0)[:5, 5:]
    torch.testing.assert_close(both.covariance, wanted, atol=1e-12, rtol=1e-12)
