"""Post-processors of a merged delta: singular value calibration, depth scaling, the norm guard."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.kernels.calibration import lines_alpha, lines_scale, norm_guard_factor, svc


def svc_oracle(merged, deltas, alpha):
    u, sigma, vt = np.linalg.svd(merged, full_matrices=False)
    gamma = np.ones(len(sigma))
    for r in range(len(sigma)):
        a = u[:, r] @ merged
        own = [u[:, r] @ delta for delta in deltas]
        shares = [max(alpha, a @ mine / (mine @ mine)) for mine in own if mine.any()]
        gamma[r] = len(shares) / sum(shares) if shares else 1.0
    return u @ np.diag(gamma * sigma) @ vt


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.01


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (40, 40), (2, 50), (50, 2)])
@pytest.mark.parametrize("alpha", [0.1, 1 / 3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_svc_equals_the_oracle(shape, alpha, dtype):
    """Within the rounding to the dtype, or that of singular vectors from a float64 Gram matrix."""
    deltas = normal(3, *shape).to(dtype)
    merged = (0.4 * deltas.double().sum(0)).to(dtype)
    found = svc(merged, deltas, alpha)
    expected = svc_oracle(merged.double().numpy(), deltas.double().numpy(), alpha)
    bound = (1e-9 if dtype == torch.float64 else 2e-7) * np.abs(expected).max()
    assert found.dtype == dtype
    assert np.abs(found.double().numpy() - expected).max() < bound


@given(count=st.integers(1, 5), scale=st.sampled_from([0.3, 1.0, 2.5]))
@settings(max_examples=20, deadline=None)
def test_svc_undoes_a_sum_of_copies(count, scale):
    """Σ of K copies, or any multiple of a model that is at least itself, is calibrated back to the model."""
    delta = normal(12, 9, seed=count)
    times = max(1.0, scale * count)
    found = svc(times * delta, delta.expand(count, 12, 9), 1.0 / count)
    torch.testing.assert_close(found, delta, rtol=1e-9, atol=1e-12)


def test_svc_leaves_what_is_not_counted_twice():
    """Disjoint blocks: each direction of the sum is one model's own, and what the others have there is rounding."""
    deltas = torch.zeros(3, 9, 21, dtype=torch.float64)
    for model in range(3):
        deltas[model, 3 * model : 3 * model + 3, 7 * model : 7 * model + 7] = normal(3, 7, seed=model)
    turn = torch.linalg.qr(normal(9, 9))[0]
    deltas = turn @ deltas
    torch.testing.assert_close(svc(deltas.sum(0), deltas, 1 / 3), deltas.sum(0), rtol=1e-9, atol=1e-12)


def test_alpha_one_never_amplifies():
    deltas = normal(4, 16, 24)
    for merged in (deltas.sum(0), deltas.mean(0), 0.1 * deltas.sum(0)):
        found = torch.linalg.svdvals(svc(merged, deltas, 1.0))
        assert bool((found <= torch.linalg.svdvals(merged) * (1 + 1e-9)).all())


@pytest.mark.parametrize("shape", [(), (0,), (1,), (64,), (0, 4), (4, 0), (1, 5), (5, 1), (4, 1, 3), (0, 3, 3)])
def test_svc_leaves_vectors_alone(shape):
    deltas = normal(2, *shape)
    assert torch.equal(svc(deltas.sum(0), deltas, 0.5), deltas.sum(0))


def test_svc_of_packed_experts_is_that_of_each():
    deltas = normal(2, 5, 8, 6)
    found = svc(deltas.sum(0), deltas, 0.5)
    for expert in range(5):
        assert torch.equal(found[expert], svc(deltas[:, expert].sum(0), deltas[:, expert], 0.5))


def test_svc_of_a_convolution_is_that_of_its_matrix():
    deltas = normal(3, 7, 4, 3, 3)
    flat = deltas.reshape(3, 7, 36)
    assert torch.equal(svc(deltas.sum(0), deltas, 0.5), svc(flat.sum(0), flat, 0.5).reshape(7, 4, 3, 3))


def test_svc_of_nothing_is_nothing():
    zeros = torch.zeros(3, 6, 5)
    assert torch.equal(svc(zeros[0], zeros, 1 / 3), zeros[0])
    assert torch.equal(svc(zeros[0], normal(3, 6, 5).float(), 1 / 3), zeros[0])


def test_svc_counts_only_models_that_respond():
    """A model that left the tensor untouched (0/0) is as good as absent, and a merge of untouched ones stays."""
    deltas = normal(3, 8, 10)
    deltas[1] = 0
    merged = deltas.sum(0)
    torch.testing.assert_close(svc(merged, deltas, 0.5), svc(merged, deltas[[0, 2]], 0.5), rtol=1e-12, atol=0)
    assert torch.equal(svc(merged, torch.zeros_like(deltas), 0.5), merged)


def test_svc_keeps_directions_below_its_resolution():
    """A rank-one delta with noise of 1e-10 on it keeps the noise."""
    strong = torch.outer(normal(12)[:12], normal(15, seed=1))
    weak = normal(12, 15, seed=2) * 1e-10 * strong.norm()
    found = svc(strong + weak, (strong + weak)[None], 1.0)
    torch.testing.assert_close(found, strong + weak, rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_svc_passes_broken_numbers_on(bad):
    deltas = normal(2, 6, 5)
    deltas[0, 0, 0] = bad
    merged = deltas.sum(0)
    assert torch.equal(svc(merged, deltas, 0.5).nan_to_num(7), merged.nan_to_num(7))


def test_svc_does_not_depend_on_the_order_of_models():
    deltas = normal(4, 20, 30).float()
    merged = deltas.mean(0)
    torch.testing.assert_close(svc(merged, deltas.flip(0), 0.25), svc(merged, deltas, 0.25), rtol=1e-6, atol=1e-10)


# Depth


@pytest.mark.parametrize(
    ("layer", "layers", "expected"),
    [(0, 12, 0.2), (11, 12, 1.0), (None, 12, 0.2), (0, 1, 0.2), (3, 7, 0.6), (None, 0, 0.2)],
)
def test_lines_grows_linearly_with_depth(layer, layers, expected):
    assert lines_scale(layer, layers, 0.2, 0.8) == pytest.approx(expected)


def test_lines_ends_are_exact():
    assert lines_scale(0, 32, 0.3, 0.7) == 0.3
    assert lines_scale(31, 32, 0.3, 0.7) == 0.3 + 0.7


@given(
    scale=st.floats(0.01, 10),
    models=st.integers(1, 20),
)
def test_lines_alpha_brings_a_scaled_sum_to_the_mean(scale, models):
    total = 3.7
    assert scale * total * lines_alpha(total, scale * total, models) == pytest.approx(total / models)


def test_lines_alpha_of_an_empty_merge_is_one():
    assert lines_alpha(2.0, 0.0, 3) == 1.0


# Norm


@pytest.mark.parametrize(
    ("merged", "parents", "expected"),
    [(1.0, [2.0, 0.5], 1.0), (4.0, [2.0, 0.5], 0.5), (2.0, [2.0], 1.0), (0.0, [0.0, 0.0], 1.0), (1.0, [0.0], 0.0)],
)
def test_the_norm_guard_shortens_and_never_lengthens(merged, parents, expected):
    assert norm_guard_factor(merged, parents) == expected
