"""The consensus family: oracles, limits, ties, and the fused forms against the plain ones."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_oracles import expect, oracle_test, per_model, scales, stacks, wide

import eutectic
from eutectic import methods
from eutectic.api import Options
from eutectic.errors import RecipeError
from eutectic.kernels import competition, fused, fused_competition
from eutectic.testing import check_method, write_safetensors

ALL = ["consensus_ta", "emr", "magmax", "pcb", "ram", "ramplus_tl"]
levels = per_model([0.0, 0.2, 0.4, 0.6, 1.0, 1.5])
epsilons = st.sampled_from([0.0, 1e-5, 1 / 64, 2 / 64, 0.3])


# Oracles: float64 `(K, n)` in; the result and the sum of magnitudes behind each entry out


def consensus_oracle(x, level, k, scale):
    total = x.sum(0)
    users = (np.abs(x) > level[:, None] * np.abs(total - x)).sum(0)
    return scale * np.where(users >= k, total, 0), abs(scale) * np.abs(x).sum(0)


def magmax_oracle(x, scale):
    merged = []
    for column in x.T:
        furthest = set(column[np.abs(column) == np.abs(column).max()])
        merged.append(furthest.pop() if len(furthest) == 1 else 0.0)
    return scale * np.array(merged), abs(scale) * np.abs(x).max(0)


def emr_oracle(x, scale):
    sign = np.sign(x.sum(0))
    return scale * sign * np.where(x * sign > 0, np.abs(x), 0).max(0), abs(scale) * np.abs(x).max(0)


def ram_oracle(x, epsilon, r=0.0, alpha=0.0):
    active = np.abs(x) > epsilon
    holders = active.sum(0)
    alone = (active & (holders == 1)).sum(1)
    together = (active & (holders > 1)).sum(1)
    ratio = np.array([min(s / u, alpha) if u else 0 for s, u in zip(together, alone, strict=True)])
    parts = np.where(active, x, 0) * np.where(holders == 1, 1 + r * ratio[:, None], 1) / np.maximum(holders, 1)
    return parts.sum(0), np.abs(parts).sum(0)


def pcb_oracle(x, density, scale):
    if not x.any():
        return x[0], x[0]
    top = np.abs(x).max(1, keepdims=True)
    score = np.exp(len(x) * (x / np.where(top == 0, 1, top)) ** 2) * np.tanh(x * x.sum(0))
    share = np.zeros_like(x)
    for row, values in zip(share, np.maximum(score, 0), strict=True):
        count = max(1, int(Fraction(str(density)) * len(values)))
        first = np.lexsort((np.arange(len(values)), -values))[:count]
        row[first] = values[first] / (values.max() or 1)
    share /= np.where(share.sum(0) == 0, 1, share.sum(0))
    return scale * (share * x).sum(0), abs(scale) * np.abs(share * x).sum(0)


def rounded(epsilon, x):
    return epsilon if x.dtype == torch.float64 else float(np.float32(epsilon))


@given(x=stacks(), level=levels, k=st.integers(0, 5), scale=scales)
@oracle_test
def test_consensus_ta(x, level, k, scale):
    x = x if len(x) > 1 else torch.cat([x, x])
    level, k = level[: len(x)], min(k, len(x))
    found = methods.consensus_ta(x, tall_lambda=level.tolist(), k=k, lambda_=scale)
    expect(found, *consensus_oracle(wide(x), level, k, scale))


@given(x=stacks(), scale=scales)
@oracle_test
def test_magmax(x, scale):
    expect(methods.magmax(x, lambda_=scale), *magmax_oracle(wide(x), scale))


@given(x=stacks(), scale=scales)
@oracle_test
def test_emr(x, scale):
    expect(methods.emr(x, lambda_=scale), *emr_oracle(wide(x), scale))


@given(x=stacks(), epsilon=epsilons)
@oracle_test
def test_ram(x, epsilon):
    expect(methods.ram(x, epsilon=epsilon), *ram_oracle(wide(x), rounded(epsilon, x)))


@given(
    x=stacks(), epsilon=epsilons, r=st.sampled_from([0.0, 0.1, 1.0, -0.5]), alpha=st.sampled_from([0.0, 0.2, 1.0, 50.0])
)
@oracle_test
def test_ramplus_tl(x, epsilon, r, alpha):
    found = methods.ramplus_tl(x, epsilon=epsilon, r=r, alpha=alpha)
    expect(found, *ram_oracle(wide(x), rounded(epsilon, x), r, alpha))


@given(x=stacks(), density=st.sampled_from([0.05, 0.1, 0.29, 0.5, 1.0]), scale=scales)
@oracle_test
def test_pcb(x, density, scale):
    expect(methods.pcb(x, density=density, lambda_=scale), *pcb_oracle(wide(x), density, scale))


# Published numbers: mergekit 0.1.5, float64, six significant digits

BASE = torch.tensor([[1, -2, 0.5, 0], [3, 0.25, -1, 2]], dtype=torch.float64)
TUNED = torch.tensor(
    [[[1.1, -2.4, 0.55, 0.3], [3, 0.05, -0.4, 1.99]], [[0.8, -2.1, 1, 0.02], [3.07, 0.25, -1.3, 2.4]]],
    dtype=torch.float64,
)


@pytest.mark.parametrize(
    ("name", "golden"),
    [
        ("ram", [0.95, -2.25, 0.775, 0.3, 3.07, 0.05, -0.85, 2.4]),
        ("ramplus_tl", [0.95, -2.25, 0.775, 0.306, 3.0714, 0.046, -0.85, 2.408]),
    ],
)
def test_mergekits_numbers(name, golden):
    """With ε = 0.05 and 1.1 - 1 and 0.55 - 0.5 on either side of it by rounding, as there."""
    merged = BASE + methods.get(name)(TUNED - BASE, epsilon=0.05)
    assert merged.reshape(-1).tolist() == pytest.approx(golden, rel=6e-6)


# Contract, limits, ties


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("consensus_ta", {"k": 0, "lambda": 0.3}),
        ("consensus_ta", {"k": 3, "tall_lambda": 0.1}),
        ("magmax", {"lambda": 1.0}),
        ("emr", {"lambda": 0.3}),
        ("pcb", {"density": 1.0, "lambda": 0.5}),
        ("ram", {"epsilon": 0.0}),
        ("ramplus_tl", {"epsilon": 0.0, "r": 1.0, "alpha": 5.0}),
    ],
)
def test_other_parameters_keep_the_contract(name, parameters):
    check_method(methods.get(name), parameters=parameters)


def sparse(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * 0.01
    return torch.where(torch.rand(shape, generator=generator) < 0.4, values, 0.0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e30, 1e38])
@pytest.mark.parametrize("shape", [(), (1,), (64,), (4, 1, 3)])
def test_huge_and_tiny_deltas_stay_finite(name, size, shape):
    generator = torch.Generator().manual_seed(3)
    deltas = (torch.rand((3, *shape), generator=generator) - 0.5) * size
    given = {"epsilon": 0.0} if "epsilon" in methods.get(name).params else {}
    merged = methods.get(name)(deltas, **given)
    assert merged.shape == shape
    assert bool(merged.isfinite().all())
    if "lambda" in methods.get(name).params and name != "consensus_ta":
        assert float(merged.abs().max()) <= 1.2000001 * float(deltas.abs().max()) + 2e-45


@pytest.mark.parametrize("name", ["magmax", "ram", "ramplus_tl", "emr", "consensus_ta", "pcb"])
def test_quantised_deltas_in_any_order_are_bit_equal(name):
    """Sums of bfloat16 steps are exact in float64, so nothing is left for the order to decide, ties least of all."""
    generator = torch.Generator().manual_seed(1)
    deltas = torch.randint(-3, 4, (4, 500), generator=generator) / 256
    expected = methods.get(name)(deltas)
    for order in itertools.permutations(range(4)):
        assert torch.equal(methods.get(name)(deltas[list(order)]), expected)


@pytest.mark.parametrize("name", ALL)
def test_opposite_deltas_give_the_opposite(name):
    generator = torch.Generator().manual_seed(2)
    deltas = torch.randint(-3, 4, (3, 500), generator=generator) / 256
    assert torch.equal(methods.get(name)(-deltas), -methods.get(name)(deltas))


@pytest.mark.parametrize("name", ["magmax", "emr", "ram", "ramplus_tl"])
def test_one_model_comes_out_as_it_is(name):
    delta = torch.randn(1, 100)
    neutral = {"lambda_": 1.0} if "lambda" in methods.get(name).params else {"epsilon": 0.0}
    assert torch.equal(methods.get(name)(delta, **neutral), delta[0])


def test_consensus_of_nobody_is_task_arithmetic():
    deltas = torch.randn(4, 200)
    assert torch.equal(methods.consensus_ta(deltas, k=0, lambda_=0.3), methods.task_arithmetic(deltas, lambda_=0.3))


def test_consensus_drops_selfish_and_catastrophic_entries():
    """The first entry serves one task. The second serves all at 0.4, and none at 0.5, where 1 is not above 0.5 · 2."""
    deltas = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    assert methods.consensus_ta(deltas, k=1).tolist() == [1, 3, 0]
    assert methods.consensus_ta(deltas, k=3).tolist() == [0, 3, 0]
    assert methods.consensus_ta(deltas, k=1, tall_lambda=0.5).tolist() == [1, 0, 0]
    assert methods.consensus_ta(deltas, k=1, tall_lambda=[0.5, 0.5, 0.4]).tolist() == [1, 3, 0]
    assert methods.consensus_ta(deltas, k=2, tall_lambda=[0.5, 0.5, 0.4]).tolist() == [0, 0, 0]


def test_an_impossible_quorum_is_refused():
    with pytest.raises(RecipeError, match="4 of 3 models can never agree"):
        methods.consensus_ta(torch.randn(3, 8), k=4)


def test_magmax_leaves_equal_and_opposite_changes_alone():
    deltas = torch.tensor([[0.5, 0.5, -0.5, 0.25], [-0.5, 0.25, -0.5, -0.5], [0.25, -0.5, 0.5, 0.25]])
    assert methods.magmax(deltas, lambda_=1.0).tolist() == [0, 0, 0, -0.5]
    assert methods.magmax(deltas).tolist() == [0, 0, 0, -0.25]


def test_emr_takes_the_signs_that_ties_elects():
    deltas = torch.randn(5, 1000)
    unified, elected = methods.emr(deltas), methods.ties(deltas, density=1.0)
    assert torch.equal(unified.sign(), elected.sign())
    assert bool((unified.abs() >= elected.abs() * (1 - 1e-6)).all())


def test_ram_of_disjoint_changes_is_their_sum():
    deltas = torch.randn(3, 300) * torch.eye(3).repeat(1, 100)
    assert torch.equal(methods.ram(deltas), deltas.sum(0))
    assert torch.equal(methods.ramplus_tl(deltas), deltas.sum(0))


def test_ram_of_common_changes_is_their_mean():
    deltas = torch.randn(3, 300)
    mean = (deltas.double().sum(0) / 3).float()
    assert torch.equal(methods.ram(deltas, epsilon=0.0), mean)
    assert torch.equal(methods.ramplus_tl(deltas, epsilon=0.0), mean)


def test_a_change_of_epsilon_is_none():
    epsilon = float(np.float32(1e-5))
    deltas = torch.tensor([[epsilon, np.nextafter(np.float32(epsilon), np.float32(1))]])
    assert methods.ram(deltas, epsilon=1e-5).tolist() == [0.0, deltas[0, 1].item()]


def test_ramplus_without_strength_is_ram():
    deltas = sparse(4, 500)
    assert torch.equal(methods.ramplus_tl(deltas, r=0.0), methods.ram(deltas))
    assert torch.equal(methods.ramplus_tl(deltas, alpha=0.0), methods.ram(deltas))
    assert not torch.equal(methods.ramplus_tl(deltas), methods.ram(deltas))


def test_pcb_of_one_model_is_a_trim():
    delta = torch.randn(1, 1000)
    kept = methods.ties(delta, density=0.1)
    assert torch.equal(methods.pcb(delta, lambda_=1.0), kept)


def test_pcb_gives_no_share_to_who_disagrees_with_the_sum():
    deltas = torch.tensor([[0.3, -0.1], [-0.1, 0.3]])
    assert methods.pcb(deltas, density=1.0, lambda_=1.0).tolist() == pytest.approx([0.3, 0.3])


def test_pcb_outlives_many_models():
    """exp(K) itself overflows from K = 710 on."""
    deltas = torch.randn(800, 20)
    assert bool(methods.pcb(deltas, density=1.0).isfinite().all())


@given(
    size=st.sampled_from([1e-12, 1e-4, 0.3, 3.0, 1e3, 1e19]),
    models=st.sampled_from([1, 2, 5]),
    dtype=st.sampled_from([np.float32, np.float64]),
    density=st.sampled_from([0.001, 0.1, 0.6]),
    seed=st.integers(0, 1 << 20),
)
@oracle_test
def test_scores_from_a_floor_on_are_the_same(size, models, dtype, density, seed):
    """What is left out is below the floor: of light models, and where float32 would overflow or vanish."""
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((models + 1, 1500)) * size).astype(dtype)
    rows[1:] += rows[:1]
    tops = [float(abs(row - rows[0]).max()) or 1.0 for row in rows[1:]]

    def ranks(floors):
        found = np.empty((models, 1500), dtype)
        scratch, highest = fused_competition.new_scratch(dtype(0)), np.zeros((models, 1))
        contenders = tuple(
            fused_competition.Contender(tuple(rows[1:]), *one, scratch)
            for one in zip(rows[1:], tops, floors, highest, strict=True)
        )
        fused.all_scores(rows[0], contenders, found)
        return found, highest

    every, highest = ranks([0.0] * models)
    level = np.quantile(every, 1 - density, axis=1, method="higher").astype(dtype)
    some, still_highest = ranks(competition.scores_of(level).tolist())
    kept = every >= level[:, None]
    assert np.array_equal(some[kept], every[kept])
    assert bool((some[~kept] < np.broadcast_to(level[:, None], kept.shape)[~kept]).all())
    assert np.array_equal(still_highest, highest)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_pcb_keeps_what_is_not_finite_to_its_entries(bad):
    """The largest delta is the largest finite one, and what is broken takes no place among the best."""
    deltas = torch.randn(3, 400)
    deltas[:, 7] = 0.0
    whole = methods.pcb(deltas)
    deltas[1, 7] = bad
    found = methods.pcb.applied(deltas)
    assert bool(found[7].isnan())
    assert torch.equal(torch.cat([found[:7], found[8:]]), torch.cat([whole[:7], whole[8:]]))


# The fused forms, through the engine

SHAPES = {"big": (1030, 1020), "row": (7,), "one": (1,), "scalar": (), "none": (0, 4), "packed": (9, 2, 3)}
SMALL = {name: shape for name, shape in SHAPES.items() if name != "big"}


def write_models(home, dtypes, shapes, count=4):
    """A base and sparse fine-tunes of it."""
    paths = []
    for i in range(count):
        tensors = {name: torch.linspace(-1, 1, 1 + int(np.prod(s)))[1:].reshape(s) for name, s in shapes.items()}
        if i:
            tensors = {name: t + sparse(*t.shape, seed=i) for name, t in tensors.items()}
        path = home / f"m{i}"
        path.mkdir(parents=True)
        dtype = getattr(torch, dtypes[min(i, len(dtypes) - 1)])
        write_safetensors(path / "model.safetensors", {name: t.to(dtype) for name, t in tensors.items()})
        paths.append(str(path))
    return paths


def recipe(name, paths, **parameters):
    models = [{"model": path} for path in paths[1:]]
    return {"merge_method": name, "base_model": paths[0], "models": models, "parameters": parameters}


def merged_bytes(given, out, **options):
    eutectic.merge(given, out, options=Options(**{"threads": 1} | options))
    return (out / "model.safetensors").read_bytes()


def expect_reference(given, home):
    fused = merged_bytes(given, home / "fused")
    assert merged_bytes(given, home / "reference", reference=True, memory=4 << 30) == fused
    return fused


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("big"), ["bfloat16"], SHAPES)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("small"), ["float32", "bfloat16", "float16"], SMALL)


@pytest.mark.parametrize("name", ALL)
def test_blocks_equal_the_reference(name, big, tmp_path):
    fused = expect_reference(recipe(name, big), tmp_path)
    assert merged_bytes(recipe(name, big), tmp_path / "threads", threads=3) == fused
    turned = [big[0], *big[:0:-1]]
    assert merged_bytes(recipe(name, turned), tmp_path / "turned") == fused


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtypes_equal_the_reference(name, dtype, tmp_path):
    expect_reference(recipe(name, write_models(tmp_path, [dtype], SMALL)), tmp_path)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("out", ["bfloat16", "float32"])
def test_mixed_dtypes_equal_the_reference(name, out, small, tmp_path):
    expect_reference(recipe(name, small) | {"out_dtype": out}, tmp_path)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("consensus_ta", {"k": 1, "tall_lambda": 0.7, "lambda": 0.3}),
        ("consensus_ta", {"k": 3, "tall_lambda": 0.0}),
        ("magmax", {"lambda": 1.0}),
        ("emr", {"lambda": -0.3}),
        ("ram", {"epsilon": 0.005}),
        ("ramplus_tl", {"epsilon": 0.005, "r": 0.7, "alpha": 3.0}),
        ("pcb", {"density": 0.5, "lambda": -0.3}),
        ("pcb", {"density": 1.0}),
    ],
)
@pytest.mark.parametrize("count", [2, 4])
def test_parameters_equal_the_reference(name, parameters, count, small, tmp_path):
    paths = small[: count + 1] if parameters.get("k", 0) <= count else small
    expect_reference(recipe(name, paths, **parameters), tmp_path)


@pytest.mark.parametrize("name", ["emr", "magmax", "pcb", "ram", "ramplus_tl"])
def test_one_model_equals_the_reference(name, small, tmp_path):
    expect_reference(recipe(name, small[:2]), tmp_path)


def test_levels_one_a_model(small, tmp_path):
    given = recipe("consensus_ta", small)
    for model, level in zip(given["models"], (0.0, 0.4, 1.5), strict=True):
        model["parameters"] = {"tall_lambda": level}
    expect_reference(given, tmp_path)


def flat(path, shapes):
    source = eutectic.open(str(path))
    return np.concatenate([source[name].numpy().ravel() for name in shapes])


@pytest.mark.parametrize("threads", [1, 3])
def test_model_scope_takes_one_ratio_a_model(threads, tmp_path):
    """The paper's RAM+: counts of the whole model, against an oracle on all entries in one row."""
    shapes = {"a": (40, 30), "b": (64,), "c": (9, 2, 3)}
    paths = write_models(tmp_path, ["float32"], shapes)
    given = recipe("ramplus_tl", paths, scope="model", r=0.5, alpha=2.0)
    eutectic.merge(given, tmp_path / "out", options=Options(threads=threads))

    base = flat(paths[0], shapes)
    deltas = np.stack([flat(path, shapes) - base for path in paths[1:]]).astype(np.float64)
    expected = base + ram_oracle(deltas, float(np.float32(1e-5)), 0.5, 2.0)[0]
    np.testing.assert_allclose(flat(tmp_path / "out", shapes), expected, rtol=1e-6, atol=1e-9)
    local = merged_bytes(recipe("ramplus_tl", paths, r=0.5, alpha=2.0), tmp_path / "local")
    assert (tmp_path / "out/model.safetensors").read_bytes() != local


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("density", [0.1, 0.6])
def test_model_scope_ranks_all_scores_together(threads, density, tmp_path):
    """The paper's PCB-Merging, against an oracle on all entries in one row; more of them than are kept whole."""
    shapes = {"a": (400, 400), "b": (64,), "c": (9, 2, 3), "none": (0, 4)}
    paths = write_models(tmp_path, ["float32"], shapes)
    given = recipe("pcb", paths, scope="model", density=density)
    eutectic.merge(given, tmp_path / "out", options=Options(threads=threads))
    base = flat(paths[0], shapes)
    deltas = np.stack([flat(path, shapes) - base for path in paths[1:]]).astype(np.float64)
    expected = base + pcb_oracle(deltas, density, 1.2)[0]
    np.testing.assert_allclose(flat(tmp_path / "out", shapes), expected, rtol=1e-6, atol=1e-9)
    local = merged_bytes(recipe("pcb", paths, density=density), tmp_path / "local")
    assert (tmp_path / "out/model.safetensors").read_bytes() != local
