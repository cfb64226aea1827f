"""What the papers say of the methods: identities, expectations, and the experiment where each one matters."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.methods import Rng, dare_linear, dare_ties, linear, slerp, task_arithmetic, ties

property_test = settings(max_examples=60, deadline=None)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unit(*shape, seed=0):
    values = normal(*shape, seed=seed)
    return values / values.norm()


# Task arithmetic (Ilharco et al. 2023)


def test_negation_is_the_negative_of_addition():
    deltas = normal(1, 64)
    assert torch.equal(task_arithmetic(deltas, weight=-1.0), -task_arithmetic(deltas))
    assert torch.equal(task_arithmetic(deltas, lambda_=-0.4), task_arithmetic(deltas, weight=-0.4))


def test_a_is_to_b_as_c_is_to_d():
    a, b, c = deltas = normal(3, 64)
    analogy = task_arithmetic(deltas, weight=[-1, 1, 1])
    torch.testing.assert_close(analogy, c + (b - a), rtol=0, atol=4e-15)
    same = task_arithmetic(torch.stack([a, a, c]), weight=[-1, 1, 1])
    assert torch.equal(same, c)


def test_linear_is_task_arithmetic_divided_by_the_weights():
    base, models, shares = normal(1, 64), normal(4, 64, seed=1), [1.0, 0.5, 2.0, 0.25]
    summed = base[0] + task_arithmetic(models - base, weight=shares, normalize=True)
    torch.testing.assert_close(summed, linear(models, weight=shares), rtol=0, atol=1e-14)


def test_half_way_is_the_middle():
    models = normal(2, 64)
    assert torch.equal(linear(models), (models[0] + models[1]) / 2)


# TIES and DARE become task arithmetic where nothing is dropped


@given(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.sampled_from([1.0, -0.4, 3.0]))
@property_test
def test_ties_of_one_whole_model_is_task_arithmetic(dtype, scale):
    deltas = normal(1, 64, dtype=torch.float64).to(dtype)
    assert torch.equal(ties(deltas, density=1.0, lambda_=scale), task_arithmetic(deltas, lambda_=scale))


@pytest.mark.parametrize("rescale", [True, False, "l1"])
def test_dare_at_density_one_drops_nothing(rescale):
    deltas, shares = normal(3, 64, dtype=torch.float32), [1.0, -0.5, 0.7]
    whole = {"weight": shares, "density": 1.0, "rescale": rescale}
    assert torch.equal(dare_linear(deltas, **whole), task_arithmetic(deltas, weight=shares))
    assert torch.equal(dare_ties(deltas, **whole), ties(deltas, weight=shares, density=1.0, normalize=False))


def test_ties_of_models_that_agree_is_their_mean():
    deltas = normal(3, 64).abs()
    torch.testing.assert_close(ties(deltas, density=1.0), deltas.mean(0), rtol=1e-14, atol=0)


def test_ties_passes_on_only_the_elected_sign():
    merged, deltas = ties(normal(5, 500), density=0.5), normal(5, 500)
    agreeing = (deltas.sign() == merged.sign()).any(0)
    assert bool((agreeing | (merged == 0)).all())


def test_untouched_entries_do_not_vote():
    deltas = torch.tensor([[0.5, -0.5], [0.0, 0.0], [0.0, 0.0]])
    assert ties(deltas, density=1.0).tolist() == [0.5, -0.5]


# DARE's noise (Yu et al. 2024): unbiased, with a known variance


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_dare_is_unbiased(density):
    """The mean of 4,000 independent masks lies within 5 standard errors of δ at each of 64 entries (3e-5 by chance)."""
    copies, delta = 4000, normal(64)
    merged = dare_linear(delta.expand(1, copies, 64), density=density, rng=Rng(1, "x"))
    error = delta.abs() * math.sqrt((1 - density) / density / copies)
    assert bool(((merged.mean(0) - delta).abs() < 5 * error).all())


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_the_noise_of_an_output_has_the_published_variance(density):
    """Var[(δ̂ - δ)·x] = p/(1-p) Σ δ²x²; a variance over 4,000 samples is known to 2.3 %, five of which are the bound."""
    copies, delta, x = 4000, normal(64), normal(64, seed=1)
    outputs = dare_linear(delta.expand(1, copies, 64), density=density, rng=Rng(1, "x")) @ x
    drop_rate = 1 - density
    wanted = drop_rate / (1 - drop_rate) * float((delta**2 * x**2).sum())
    assert float(outputs.var()) == pytest.approx(wanted, rel=0.115)


def test_l1_rescaling_restores_the_norm():
    deltas = normal(1, 500)
    merged = dare_linear(deltas, density=0.1, rescale="l1", rng=Rng(1, "x"))
    assert float(merged.abs().sum()) == pytest.approx(float(deltas.abs().sum()), rel=1e-12)


def test_many_masks_average_to_task_arithmetic():
    """40 seeds at density ½ leave a relative error near √(1/40) = 0.16, far below one mask's 1."""
    deltas = normal(3, 500)
    mean = torch.stack([dare_linear(deltas, density=0.5, rng=Rng(seed, "x")) for seed in range(40)]).mean(0)
    whole = task_arithmetic(deltas)
    assert float((mean - whole).norm() / whole.norm()) < 0.2


# SLERP (Shoemake 1985)


@given(seed=st.integers(0, 1000), t=st.floats(0, 1))
@property_test
def test_slerp_of_unit_vectors_has_norm_one(seed, t):
    ends = torch.stack([unit(64, seed=seed), unit(64, seed=seed + 5000)])
    assert float(slerp(ends, t=t).norm()) == pytest.approx(1, abs=1e-12)


@given(seed=st.integers(0, 1000), t=st.floats(0, 1))
@property_test
def test_slerp_from_the_other_side_is_the_same(seed, t):
    ends = normal(2, 64, seed=seed)
    torch.testing.assert_close(slerp(ends, t=t), slerp(ends.flip(0), t=1 - t), rtol=0, atol=1e-13)


@given(seed=st.integers(0, 1000), t=st.floats(0, 1), s=st.floats(0, 1))
@property_test
def test_slerp_of_a_slerp_lies_on_the_same_circle(seed, t, s):
    """Going a part s of the way to the point at t is going s·t of the way: a geodesic's parts are geodesics."""
    ends = torch.stack([unit(64, seed=seed), unit(64, seed=seed + 5000)])
    point = slerp(ends, t=t)
    part = slerp(torch.stack([ends[0], point]), t=s)
    torch.testing.assert_close(part, slerp(ends, t=s * t), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("t", [0, 1])
def test_slerp_at_its_ends_is_the_end(dtype, t):
    ends = normal(2, 4, 1, 3).to(dtype)
    assert torch.equal(slerp(ends, t=float(t)), ends[t])


@pytest.mark.parametrize("distance", [1e-9, 1e-7, 1e-5, 1e-3, 1e-2])
def test_slerp_of_a_light_fine_tune_is_linear(distance):
    """Coefficients part by about Ω²/16 at t = ½, with Ω at most `distance` here."""
    base = unit(1000)
    ends = torch.stack([base, base + distance * unit(1000, seed=1)])
    difference = (slerp(ends, t=0.5) - linear(ends)).norm()
    assert float(difference) < distance**2 / 6 + 1e-15


def test_slerp_is_continuous_where_it_turns_linear():
    """Just inside and outside of the parallel threshold the results differ by as much as the inputs do."""
    base, other = unit(1000), unit(1000, seed=1)
    near, far = (slerp(torch.stack([base, base + distance * other]), t=0.3) for distance in (0.9e-7, 1.1e-7))
    assert float((near - far).norm()) < 1e-8


def test_opposite_ends_meet_on_the_line():
    base = unit(64)
    assert torch.equal(slerp(torch.stack([base, -base]), t=0.25), 0.75 * base - 0.25 * base)


def test_an_end_of_norm_zero_has_no_direction():
    ends = torch.stack([torch.zeros(64, dtype=torch.float64), unit(64)])
    assert torch.equal(slerp(ends, t=0.25), 0.25 * ends[1])
    assert torch.equal(slerp(ends * 0, t=0.25), ends[0])


# TIES (Yadav et al. 2023): where it must show


def sparse_tasks(models, entries, share, noise, seed):
    """`(K, n)` task vectors, each with `share` of its entries at ±(1 to 2) and noise everywhere; and their true sum."""
    generator = torch.Generator().manual_seed(seed)
    support = torch.rand((models, entries), generator=generator) < share
    signal = torch.randn((models, entries), generator=generator).sign()
    signal = torch.where(support, signal * (1 + torch.rand((models, entries), generator=generator)), 0.0)
    return signal + noise * torch.randn((models, entries), generator=generator), signal.sum(0)


def least_error(merge, truth, scales):
    return min(float((merge(scale) - truth).norm() / truth.norm()) for scale in scales)


@pytest.mark.parametrize("seed", [0, 1])
def test_ties_beats_average_and_task_arithmetic_on_sparse_tasks(seed):
    """Eight tasks that each need 2 % of the entries, in noise of 0.2, each method at its best λ."""
    deltas, truth = sparse_tasks(models=8, entries=20_000, share=0.02, noise=0.2, seed=seed)
    scales = [0.1 * step for step in range(1, 16)]
    average = least_error(lambda _: linear(deltas), truth, [1.0])
    summed = least_error(lambda scale: task_arithmetic(deltas, lambda_=scale), truth, scales)
    elected = least_error(lambda scale: ties(deltas, density=0.02, lambda_=scale), truth, scales)
    assert elected < summed - 0.1 < average - 0.1


def test_ties_loses_to_task_arithmetic_on_dense_tasks():
    """Random signs on 20 % of the entries: a regime test, TIES is not better everywhere."""
    deltas, truth = sparse_tasks(models=8, entries=20_000, share=0.2, noise=0.0, seed=0)
    assert least_error(lambda s: task_arithmetic(deltas, lambda_=s), truth, [1.0]) < 1e-6
    assert least_error(lambda s: ties(deltas, density=0.2, lambda_=s), truth, [1.0]) > 0.3
