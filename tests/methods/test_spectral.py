"""Spectral methods: short numpy oracles, identities of exact arithmetic, hard tensors, the contract on matrices.

Everywhere below, `x` is `(K, m, n)`. Results are compared in float32, relative to the largest entry of the oracle.
"""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import eutectic
from eutectic import methods
from eutectic.api import Options, budget_for
from eutectic.kernels.least_squares import participation, regression_mean
from eutectic.kernels.matrices import matrices_in, nearest_orthonormal, singular
from eutectic.run.merged import MergedSource
from eutectic.testing import ContractError, Subject, write_safetensors

contract = importlib.import_module("eutectic.testing.contract")

NAMES = ("tsv_m", "iso_c", "iso_cts", "star", "cart", "wudi", "swudi", "aswudi", "knots")


# Oracles: float64 (K, m, n) in, (m, n) out


def svd(a):
    """Without the directions that are noise in float32."""
    u, s, vt = np.linalg.svd(a, full_matrices=False)
    kept = s > 2.0**-22 * s[0]
    return u[:, kept], s[kept], vt[kept]


def truncated(a, k):
    u, s, vt = svd(a)
    return u[:, :k], s[:k], vt[:k]


def product(u, s, vt):
    return u * s @ vt


def polar(c):
    u, _, vt = svd(c)
    return u @ vt


def tsv_m_oracle(x):
    u, s, vt = zip(*[truncated(t, max(1, min(t.shape) // len(x))) for t in x], strict=True)
    return product(polar(np.hstack(u)), np.hstack(s), polar(np.vstack(vt).T).T)


def iso_c_oracle(x):
    u, s, vt = svd(x.sum(0))
    return s.mean() * u @ vt if len(s) else x[0] * 0


def iso_cts_oracle(x):
    r = min(x.shape[1:])
    own = min(round((r - max(1, int(0.8 * r))) / len(x)), r // len(x))
    found = [truncated(x.sum(0), r - own * len(x))]
    base = found[0][0]
    for t in x:
        u, s, vt = truncated(t - base @ base.T @ t, own)
        real = s > 2.0**-22 * np.linalg.norm(t)
        found.append((u[:, real], s[real], vt[real]))
    u, s, vt = zip(*found, strict=True)
    return np.hstack(s).mean() * polar(np.hstack(u)) @ polar(np.vstack(vt).T).T


def star_oracle(x):
    total = 0
    for u, s, vt in map(svd, x):
        k = next((i for i in range(1, len(s) + 1) if s[:i].sum() >= 0.4 * s.sum()), 0)
        total = total + (product(u[:, :k], s[:k], vt[:k]) * s.sum() / s[:k].sum() if k else 0)
    return total / len(x)


def cart_oracle(x, rank=0.3, scale=0.7):
    mean = x.mean(0)
    k = max(1, int(rank * min(mean.shape)))
    return mean + scale * sum(product(*truncated(t - mean, k)) for t in x)


def wudi_parts(x):
    x = [t for t in x if t.any()]
    c = sum(t.T @ t / (t * t).sum() for t in x)
    d = sum(t @ t.T @ t / (t * t).sum() for t in x)
    values, vectors = np.linalg.eigh(c)
    kept = (values > 2.0**-44 * values[-1])[::-1]
    return sum(x), d, values[::-1][kept], vectors[:, ::-1][:, kept]


def filtered(x, share):
    start, d, values, v = wudi_parts(x)
    f = share(values)
    return start - start @ v * f @ v.T + d @ v * (f / values) @ v.T


def wudi_oracle(x):
    _, d, values, v = wudi_parts(x)
    return d @ v / values @ v.T


def swudi_oracle(x, time=40.0, rank=0.65):
    k = math.ceil(rank * x.shape[2])
    return filtered(x, lambda values: (1 - np.exp(-time * values)) * (np.arange(len(values)) < k))


def aswudi_oracle(x):
    def share(values):
        count = np.sqrt(values).sum() ** 2 / values.sum()
        return (np.arange(len(values)) < math.ceil(count - 1e-9)).astype(float)

    return filtered(x, share)


def knots_oracle(x, density=0.6):
    u, s, _ = svd(np.hstack(x))
    u = u * np.sign(u[np.abs(u).argmax(0), range(len(s))])
    z = np.stack([u.T @ t for t in x]).reshape(len(x), -1)
    for row in z:
        row[np.argsort(-np.abs(row), kind="stable")[max(1, int(density * len(row))) :]] = 0
    sign = np.where(z.sum(0) >= 0, 1, -1)
    agrees = z * sign > 0
    mean = (z * agrees).sum(0) / np.maximum(agrees.sum(0), 1)
    return u @ mean.reshape(len(s), -1)


SETTINGS = {
    "cart": {"rank": 0.3, "lambda_": 0.7},
    "swudi": {"time": 40.0, "rank": 0.65},
    "knots": {"density": 0.6},
}
ORACLES = {name: globals()[f"{name}_oracle"] for name in NAMES}


# Inputs


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def spectrum(values, m, n, count, seed=1):
    """Matrices with these singular values and random directions."""
    out = []
    for i in range(count):
        u = np.linalg.qr(normal(m, len(values), seed=seed + 2 * i))[0]
        v = np.linalg.qr(normal(n, len(values), seed=seed + 2 * i + 1))[0]
        out.append(u * values @ v.T)
    return np.stack(out)


HARD = {
    "square": normal(3, 6, 6) * 0.02,
    "wide": normal(3, 4, 9) * 0.02,
    "wider than all rows together": normal(2, 3, 11),
    "tall": normal(3, 9, 4) * 0.02,
    "taller than all columns together": normal(2, 11, 3),
    "one model": normal(1, 7, 5),
    "two by two": normal(2, 2, 2),
    "more models than directions": normal(7, 3, 5),
    "low rank": spectrum([1, 0.3], 12, 10, 3),
    "rank one": spectrum([1], 6, 5, 2),
    "fast decay": spectrum(10.0 ** -np.arange(6.0), 8, 7, 2),
    "one zero model": normal(3, 5, 6) * np.array([1, 0, 1])[:, None, None],
    "zero rows and columns": normal(2, 6, 6) * (np.arange(6) > 1) * (np.arange(6) < 4)[:, None],
    "far from each other in size": normal(3, 5, 6) * np.array([1e-3, 1, 1e3])[:, None, None],
    "huge": normal(2, 5, 4) * 1e35,
    "denormal": np.round(normal(2, 5, 4) * 200) * 2.0**-149,
}


def given_as(x, dtype=torch.float32):
    return torch.from_numpy(np.asarray(x, dtype=np.float64)).to(dtype)


def call(name, x, **parameters):
    """The method on numbers rounded to float32, which are also what the oracles get."""
    return getattr(methods, name)(given_as(x), **parameters).double().numpy()


def expect(found, wanted, tolerance=2e-6):
    assert found.shape == wanted.shape
    scale = np.abs(wanted).max(initial=0.0)
    # Denormal results have their own, absolute, spacing.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale + 2.0**-149)


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("name", NAMES)
def test_equals_its_oracle(name, case):
    x = given_as(HARD[case]).double().numpy()
    expect(call(name, x, **SETTINGS.get(name, {})), ORACLES[name](x))


@given(seed=st.integers(0, 10**6), count=st.integers(1, 5), m=st.integers(2, 9), n=st.integers(2, 9))
@settings(max_examples=25, deadline=None)
def test_random_matrices_equal_their_oracles(seed, count, m, n):
    x = given_as(normal(count, m, n, seed=seed)).double().numpy()
    for name in NAMES:
        if name == "wudi" and np.linalg.cond(np.vstack(x)) > 1e3:
            continue  # the exact answer divides by the square of the smallest
        expect(call(name, x, **SETTINGS.get(name, {})), ORACLES[name](x), 2e-5)


# What is a matrix


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((), None),
        ((7,), None),
        ((1, 7), None),
        ((7, 1), None),
        ((0, 4), None),
        ((5, 4), (1, 5, 4)),
        ((3, 5, 4), (3, 5, 4)),
        ((3, 5, 1), None),
        ((0, 5, 4), None),
        ((8, 3, 2, 2), (1, 8, 12)),
        ((8, 1, 1, 1), None),
        ((8, 1, 3, 3), (1, 8, 9)),
    ],
)
def test_what_is_a_matrix(shape, found):
    assert matrices_in(shape) == found


@pytest.mark.parametrize("name", NAMES)
def test_packed_experts_are_merged_one_by_one_and_convolutions_flat(name):
    x = given_as(normal(3, 2, 5, 4))
    merged = getattr(methods, name)(x)
    for expert in range(2):
        assert torch.equal(merged[expert], getattr(methods, name)(x[:, expert].contiguous()))
    x = given_as(normal(3, 6, 2, 3, 3))
    flat = getattr(methods, name)(x.reshape(3, 6, 18))
    assert torch.equal(getattr(methods, name)(x), flat.reshape(6, 2, 3, 3))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_matrix_is_averaged(name):
    for shape in ((9,), (), (0,), (1, 9), (4, 1, 3), (9, 1)):
        x = given_as(normal(3, *shape))
        wanted = methods.ties(x) if name == "knots" else x.double().mean(0).float()
        assert torch.equal(getattr(methods, name)(x), wanted)
    matrices = given_as(normal(3, 4, 5))
    wanted = methods.ties(matrices) if name == "knots" else matrices.double().mean(0).float()
    assert torch.equal(getattr(methods, name)(matrices, spectral=False), wanted)


# Identities of exact arithmetic


def test_one_task_at_full_rank_is_itself():
    x = normal(1, 6, 5)
    for name in ("tsv_m", "cart", "wudi", "swudi", "aswudi"):
        expect(call(name, x), x[0])
    expect(call("star", x, eta=1.0), x[0])
    expect(call("knots", x, density=1.0), x[0])


def test_copies_of_a_task():
    one = normal(6, 5)
    x = np.stack([one] * 3)
    expect(call("tsv_m", x), product(*truncated(one, 1)))
    expect(call("iso_c", x), 3 * call("iso_c", x[:1]))
    for name in ("cart", "wudi"):
        expect(call(name, x), one)
    expect(call("swudi", x, time=1e6, rank=1.0), one)
    expect(call("knots", x, density=1.0, weight=[0.2, 1.0, 3.0]), one)


def test_tasks_in_orthogonal_subspaces_do_not_interfere():
    u, v = np.linalg.qr(normal(8, 8))[0], np.linalg.qr(normal(8, 8, seed=1))[0]
    sizes = np.array([8, 7, 3, 2, 6, 5, 4, 1.5])
    x = np.stack([u[:, i : i + 4] * sizes[i : i + 4] @ v[:, i : i + 4].T for i in (0, 4)])
    for name in ("tsv_m", "wudi"):
        expect(call(name, x), x.sum(0))
    expect(call("knots", x, density=1.0, normalize=False), x.sum(0))


@given(seed=st.integers(0, 10**6), count=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_isotropic_means_equal_singular_values(seed, count):
    x = normal(count, 7, 6, seed=seed)
    for name in ("iso_c", "iso_cts"):
        values = np.linalg.svd(call(name, x))[1]
        np.testing.assert_allclose(values, values.mean(), rtol=1e-4)
    mean = np.linalg.svd(x.sum(0))[1].mean()
    np.testing.assert_allclose(np.linalg.svd(call("iso_c", x))[1], mean, rtol=1e-4)


def test_limits_of_parameters():
    x = normal(3, 6, 5)
    expect(call("iso_cts", x, common_space_fraction=1.0), call("iso_c", x))
    expect(call("star", x, eta=1.0), x.mean(0))
    expect(call("star", x, eta=1e-9), star_of_rank_one(x))
    expect(call("cart", x, lambda_=0.0), x.mean(0))
    expect(call("cart", x, rank=1.0), x.mean(0))
    exact = call("wudi", x)
    expect(call("swudi", x, time=1e9, rank=1.0), exact)
    expect(call("swudi", x, time=1e9, rank=1.0, filter="landweber"), exact)
    expect(call("swudi", x, time=1e-9, rank=1.0), x.sum(0))
    expect(call("swudi", x, time=1e-9, rank=1.0, filter="landweber"), x.sum(0))


def star_of_rank_one(x):
    return np.mean([product(u[:, :1], s.sum(keepdims=True), vt[:1]) for u, s, vt in map(svd, x)], axis=0)


def test_landweber_is_gradient_descent():
    """So many steps of 0.9/λ₁ times the gradient of ½ Σ ‖(τ - τᵢ)τᵢᵀ‖²/‖τᵢ‖², from the sum of the task vectors."""
    x = normal(2, 4, 6)
    largest = wudi_parts(x)[2][0]
    tau = x.sum(0)
    for _ in range(7):
        tau = tau - 0.9 / largest * sum((tau - t) @ t.T @ t / (t * t).sum() for t in x)
    expect(call("swudi", x, time=7.0, rank=1.0, filter="landweber"), tau)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 4), m=st.integers(2, 6), n=st.integers(2, 9))
@settings(max_examples=20, deadline=None)
def test_wudi_is_the_minimum(seed, count, m, n):
    x = normal(count, m, n, seed=seed)
    merged = methods.wudi(given_as(x, torch.float64)).numpy()
    gradient = sum((merged - t) @ t.T @ t / (t * t).sum() for t in x)
    assert np.abs(gradient).max() < 1e-8 * max(1.0, np.abs(merged).max())


def test_linear_consensus_is_the_weighted_mean():
    x, weight = normal(3, 6, 5), [0.5, 1.0, -0.3]
    expect(call("knots", x, consensus="linear", weight=weight), np.tensordot(weight, x, 1) / 1.2)
    expect(call("knots", x, consensus="linear", weight=weight, normalize=False), np.tensordot(weight, x, 1))


def test_knots_finds_agreement_that_entries_hide():
    """Two tasks that write to different output directions: entry by entry they fight, in their basis they do not."""
    u = np.linalg.qr(normal(40, 4))[0]
    x = np.stack([u[:, :2] @ normal(2, 30, seed=3), u[:, 2:] * [3.0, 2.0] @ normal(2, 30, seed=4)])
    kept = np.stack([call(name, x, density=1.0, normalize=False) for name in ("knots", "ties")])
    lost = np.linalg.norm(kept - x.sum(0), axis=(1, 2)) / np.linalg.norm(x.sum(0))
    assert lost[0] < 0.6 * lost[1]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "knots"])
def test_a_weight_scales_the_task_vector(name):
    x = normal(3, 6, 5)
    weight = [0.5, -1.0, 2.0]
    scaled = x * np.array(weight)[:, None, None]
    expect(call(name, x, weight=weight), call(name, scaled))


@pytest.mark.parametrize("name", NAMES)
def test_weightless_models_are_not_there(name):
    x = given_as(normal(4, 6, 5))
    weight = [0.5, 0.0, 1.0, 0.0]
    found = getattr(methods, name)(x, weight=weight)
    assert torch.equal(found, getattr(methods, name)(x[[0, 2]], weight=[0.5, 1.0]))
    assert torch.equal(getattr(methods, name)(x, weight=0.0), torch.zeros(6, 5))


# Order, precision, steps


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_models_does_not_matter(name):
    x, weight, order = normal(4, 12, 10), np.array([0.5, 1.0, 2.0, -0.7]), [2, 0, 3, 1]
    there = call(name, x, weight=weight.tolist())
    back = call(name, x[order], weight=weight[order].tolist())
    expect(back, there, 4 * 2.0**-23)


def test_opposite_tasks_do_not_depend_on_order_either():
    one = normal(5, 4)
    x = np.stack([one, -one])
    for name in NAMES:
        np.testing.assert_allclose(call(name, x[::-1].copy()), call(name, x), rtol=0, atol=1e-6)
    assert not call("iso_c", x).any()


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_on_matrices(name, monkeypatch):
    """float64 is left out: a basis change and back is exact to 1e-15 of the largest entry, not to 4 ulp."""
    monkeypatch.setattr(contract, "SHAPES", ((6, 4), (4, 6), (3, 5, 4), (3, 2, 2, 2), (0, 4), (4, 0, 3)))
    monkeypatch.setattr(contract, "DTYPES", (torch.float32, torch.bfloat16, torch.float16))
    # They change a single model on purpose.
    changed = {"copies_give_the_model"} if name in ("iso_c", "iso_cts", "star") else set()
    for label, check in contract.PROPERTIES.items():
        if label in changed:
            with pytest.raises(ContractError):
                check(Subject(getattr(methods, name)))
        else:
            check(Subject(getattr(methods, name)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(name, dtype):
    """Tools have run SVDs in the checkpoint's dtype, which fails or loses all small directions."""
    x = given_as(normal(3, 6, 5), dtype)
    merge = getattr(methods, name)
    assert torch.equal(merge(x), merge(x.double()).float().to(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_kept(name):
    x = normal(3, 6, 5)
    found = getattr(methods, name)(given_as(x, torch.float64), **SETTINGS.get(name, {})).numpy()
    expect(found, ORACLES[name](x), 1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_nan_spoils_its_matrix_and_raises_nothing(name):
    for bad in (math.nan, math.inf):
        x = given_as(normal(3, 2, 5, 4))
        clean = getattr(methods, name)(x)
        x[1, 0, 2, 3] = bad
        found = getattr(methods, name).applied(x)
        assert not found[0].isfinite().all()
        assert torch.equal(found[1], clean[1])


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_are_the_method(name):
    x = given_as(normal(3, 6, 5))
    found = getattr(methods, name)
    given = {p.name.replace("lambda", "lambda_"): p.default for p in found.params.values()} | {
        "weight": [0.5, 1.0, 2.0],
        "lambda_": 0.7,
    }

    def taken(step):
        return {key: given[key] for key in step.__annotations__ if key in given}

    factors = found.factors(x, **taken(found.factors))
    finished = found.finish(factors, **taken(found.finish)).float()
    assert torch.equal(finished, found(x, **given))
    assert torch.equal(found.finish(factors, **taken(found.finish)).float(), finished), "factors were changed"


# Kernels


@pytest.mark.parametrize(("m", "n"), [(60, 60), (40, 120), (120, 40)])
@pytest.mark.parametrize("decay", [0, 3, 5])
def test_singular_vectors_are_nearer_than_lapacks_in_float32(m, n, decay):
    a = spectrum(np.logspace(0, -decay, min(m, n)), m, n, 1)[0].astype(np.float32).astype(np.float64)
    u, s, vt = np.linalg.svd(a, full_matrices=False)
    left, values, right = (part.numpy() for part in singular(given_as(a, torch.float64)))
    np.testing.assert_allclose(values, s, rtol=1e-9)
    np.testing.assert_allclose(product(left, values, right.T), a, atol=1e-13)
    rough = np.linalg.svd(a.astype(np.float32), full_matrices=False)
    error = np.abs(left @ right.T - u @ vt).max()
    assert error < 0.2 * np.abs(rough[0] @ rough[2] - u @ vt).max()


def test_noise_of_float32_is_no_direction():
    """The rank of a low-rank delta survives its rounding to float32, so `iso_c` levels two directions and not 50."""
    x = spectrum([1, 0.01], 60, 50, 1).astype(np.float32).astype(np.float64)
    assert len(singular(given_as(x[0], torch.float64))[1]) == 2
    values = np.linalg.svd(call("iso_c", x))[1]
    np.testing.assert_allclose(values[:2], 0.505, rtol=1e-4)
    assert values[2] < 1e-5


def test_small_deltas_are_not_noise():
    """No threshold is absolute: KnOTS's code drops singular values below 1e-5, which may be a whole fine-tune."""
    x = normal(3, 6, 5)
    for name in NAMES:
        expect(call(name, x * 2.0**-40), call(name, x) * 2.0**-40)


def test_nearest_orthonormal():
    c = normal(8, 3)
    found = nearest_orthonormal(given_as(c, torch.float64)).numpy()
    np.testing.assert_allclose(found.T @ found, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(found, polar(c), atol=1e-12)
    twice = np.hstack([found, found])
    np.testing.assert_allclose(nearest_orthonormal(torch.from_numpy(twice)).numpy(), twice / math.sqrt(2), atol=1e-12)


def test_participation():
    assert participation(torch.ones(7, dtype=torch.float64) / 3) == 7
    assert participation(torch.tensor([1.0], dtype=torch.float64)) == 1
    assert participation(torch.tensor([1.0, 1e-12], dtype=torch.float64)) == 2
    assert participation(torch.zeros(0, dtype=torch.float64)) == 0


def regression(weights, inputs, ridge=0.0):
    """RegMean by its definition: the W of least Σ ‖(W - Wᵢ)Xᵢᵀ‖², with the ridge as further inputs."""
    n = weights.shape[2]
    rows = [np.vstack([x, np.sqrt(ridge * (x * x).sum() / n) * np.eye(n)]) for x in inputs]
    targets = np.vstack([r @ w.T for r, w in zip(rows, weights, strict=True)])
    return np.linalg.lstsq(np.vstack(rows), targets, rcond=None)[0].T


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.1])
def test_regression_mean(ridge):
    weights, inputs = normal(3, 4, 6), normal(3, 20, 6, seed=5)
    inputs[..., 2] *= 1e4  # a massive activation
    grams = [torch.from_numpy(x.T @ x) for x in inputs]
    found = regression_mean([torch.from_numpy(w) for w in weights], grams, [1.0] * len(grams), ridge=ridge)
    expect(found.numpy(), regression(weights, inputs, ridge), 1e-8)


def test_regression_mean_averages_what_no_input_shows():
    weights, inputs = normal(3, 4, 6), normal(3, 20, 6, seed=5)
    inputs[..., 3] = 0  # a dead unit
    pair = [torch.from_numpy(w) for w in weights], [torch.from_numpy(x.T @ x) for x in inputs]
    rest = np.arange(6) != 3
    for ridge, sizes in ((0.0, np.ones(3)), (1e-9, (inputs * inputs).sum((1, 2)))):
        found = regression_mean(*pair, [1.0] * 3, ridge=ridge).numpy()
        expect(found[:, 3], np.average(weights[:, :, 3], axis=0, weights=sizes), 1e-6)
        expect(found[:, rest], regression(weights[..., rest], inputs[..., rest]), 1e-6)
    nothing = [torch.zeros(6, 6, dtype=torch.float64)] * 3
    expect(regression_mean(pair[0], nothing, [1.0] * 3, ridge=0.1).numpy(), weights.mean(0), 1e-12)


# Through the engine


@pytest.mark.parametrize("name", NAMES)
def test_a_merge_of_folders(name, tmp_path):
    """The recipe of the pages, with embedding and head left out; equal to calling the method; any number of threads."""
    shapes = {"embed_tokens.weight": (9, 6), "q.weight": (6, 6), "experts": (2, 5, 6), "norm": (6,), "lm_head": (9, 6)}
    kept = []
    for number in range(4):
        tensors = {
            key: given_as(normal(*shape, seed=10 * number + i), torch.bfloat16)
            for i, (key, shape) in enumerate(shapes.items())
        }
        (tmp_path / f"m{number}").mkdir()
        write_safetensors(tmp_path / f"m{number}" / "model.safetensors", tensors)
        kept.append(tensors)
    off = [{"filter": "embed_tokens", "value": False}, {"filter": "lm_head", "value": False}, {"value": True}]
    recipe = {
        "merge_method": name,
        "base_model": str(tmp_path / "m0"),
        "models": [{"model": str(tmp_path / f"m{i}"), "parameters": {"weight": 0.3 * i}} for i in (1, 2, 3)],
        "parameters": {"spectral": off, "lambda": 0.5},
    }
    written = []
    for threads in (1, 2):
        out = tmp_path / f"out{threads}"
        eutectic.merge(recipe, out, options=Options(threads=threads))
        written.append((out / "model.safetensors").read_bytes())
    assert written[0] == written[1]
    merged = eutectic.open(str(tmp_path / "out1"))
    for key in shapes:
        base = kept[0][key].float()
        deltas = torch.stack([kept[i][key].float() - base for i in (1, 2, 3)])
        weighted = {"weight": [0.3, 0.6, 0.3 * 3], "lambda_": 0.5, "spectral": key in ("q.weight", "experts", "norm")}
        wanted = (base + getattr(methods, name)(deltas, **weighted)).bfloat16()
        assert torch.equal(merged[key], wanted), key
    assert not eutectic.verify(tmp_path / "out1").problems


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts", "star", "cart", "wudi", "swudi", "aswudi", "knots"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_left_out_of_the_spectrum_is_streamed_to_the_same_bits(name, dtype, tmp_path):
    generator = torch.Generator().manual_seed(11)
    base = torch.randn(1030, 1020, generator=generator)
    tuned = [(base + 0.01 * torch.randn(base.shape, generator=generator)).to(dtype) for _ in range(3)]
    recipe = {
        "merge_method": name,
        "base_model": {"w": base.to(dtype)},
        "models": [
            {"model": {"w": one}, "parameters": {"weight": share}}
            for one, share in zip(tuned, (1.0, 0.0, 0.3), strict=True)
        ],
        "parameters": {"spectral": False, "lambda": 0.7},
    }
    stream = eutectic.merged(recipe)
    assert torch.equal(stream["w"], MergedSource(eutectic.plan(recipe), reference=True)["w"])
    assert budget_for(stream.plan, Options()).peak_bytes < 400 << 20
