"""Breadcrumbs, SCE and DELLA: against short oracles, at their limits, and in passes over blocks of stored bits."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

import eutectic
from eutectic import methods
from eutectic.api import Options
from eutectic.kernels.random import random_words
from eutectic.kernels.ranked import keep_bounds
from eutectic.kernels.streams import Block, StreamJob
from eutectic.methods import Rng
from eutectic.run.groups import units_of
from eutectic.testing import check_method, write_safetensors

NAMES = ("a", "b", "c", "d", "e")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((), (0,), (0, 4), (1,), (64,), (4, 1, 3), (3, 1), (7, 300), (2, 3, 500))
oracle_test = settings(max_examples=60, deadline=None)


# Oracles: float64 `(K, n)` in and out


def band_oracle(x, density, gamma):
    kept = np.zeros_like(x)
    for row, values, share, outliers in zip(kept, x, density, gamma, strict=True):
        count = max(1, int(Fraction(str(share)) * len(values)))
        top = min(int(Fraction(str(outliers)) * len(values)), len(values) - count)
        chosen = np.lexsort((np.arange(len(values)), -np.abs(values)))[top : top + count]
        row[chosen] = values[chosen]
    return kept


def vote_oracle(x, weight, votes, normalize):
    parts = weight[:, None] * x
    sign = np.where(sum(votes[:, None] * x) >= 0, 1, -1)
    agrees = parts * sign > 0
    share = np.where(agrees, weight[:, None], 0).sum(0)
    return np.where(agrees, parts, 0).sum(0) / (np.where(share == 0, 1, share) if normalize else 1)


def sce_oracle(x, share):
    chosen = np.arange(x.shape[1])
    differing = np.count_nonzero((x != x[0]).any(0))
    if share < 1 and differing:
        spread = np.sqrt(((x - x.mean(0)) ** 2).sum(0)).astype(np.float32)
        chosen = np.lexsort((chosen, -spread))[: max(1, int(Fraction(str(share)) * differing))]
    selected = np.zeros_like(x)
    selected[:, chosen] = x[:, chosen]
    energy = (selected**2).sum(1)
    return vote_oracle(selected, energy / (energy.sum() or 1), np.ones(len(x)), True)


def della_oracle(x, length, density, epsilon, rescale, rng):
    kept = np.zeros_like(x)
    for model, (row, values, share) in enumerate(zip(kept, x, density, strict=True)):
        high = random_words(len(values), rng.key(model)).numpy() >> 16
        width = min(epsilon, share, 1 - share)
        for first in range(0, len(values), length):
            part = values[first : first + length]
            ranks = rankdata(np.abs(part), method="average") - 1
            for at, rank in enumerate(ranks):
                p = round((share - width + 2 * width * (rank / (length - 1) if length > 1 else 0.5)) * 65536)
                if high[first + at] < p:
                    row[first + at] = part[at] * 65536 / p if rescale is True else part[at]
    norms = np.abs(kept).sum(1)
    return kept * (np.abs(x).sum(1) / np.where(norms == 0, 1, norms))[:, None] if rescale == "l1" else kept


@st.composite
def stacks(draw, entries=range(1, 41)):
    """`(K, n)` tensors with many equal magnitudes and zeros, or with hardly any."""
    k, n = draw(st.integers(1, 5)), draw(st.sampled_from(entries))
    coarse = st.integers(-4, 4).map(lambda step: step / 64)
    fine = st.floats(-1, 1, width=32, allow_subnormal=False)
    values = draw(st.lists(draw(st.sampled_from([coarse, coarse | fine, fine])), min_size=k * n, max_size=k * n))
    return torch.tensor(values, dtype=torch.float32).reshape(k, n).to(draw(st.sampled_from(DTYPES)))


def per_model(values):
    return st.lists(st.sampled_from(values), min_size=5, max_size=5).map(np.array)


def clear_votes(x, weight):
    """Entries whose vote is no near tie: scale factors are rounded to float32, so those are left to either side."""
    return np.abs((weight[:, None] * x).sum(0)) > 1e-5 * np.abs(weight[:, None] * x).sum(0)


def expect(found, oracle, scale, where=True):
    """Half a unit of the dtype for the one rounding, sixteen of float32 for the arithmetic, of the largest input."""
    bound = (torch.finfo(found.dtype).eps / 2 * np.abs(oracle)) + 16 * 2.0**-23 * scale + 1e-7 * (scale == 0)
    bound = np.maximum(bound, float(torch.finfo(found.dtype).smallest_normal))
    wrong = (np.abs(found.double().numpy() - oracle) > bound) & where
    assert not wrong.any(), (found[wrong], oracle[wrong])


weights = per_model([1.0, 1.0, 0.5, 0.7, -0.3, 0.0, 2.0])
densities = per_model([0.05, 0.2, 0.29, 0.5, 0.9, 1.0])
gammas = per_model([0.0, 0.01, 0.1, 0.29, 0.6])
rescales = st.sampled_from([True, False, "l1"])


@given(x=stacks(), weight=weights, density=densities, gamma=gammas, rescale=st.booleans())
@oracle_test
def test_breadcrumbs(x, weight, density, gamma, rescale):
    weight, density, gamma = weight[: len(x)], density[: len(x)], gamma[: len(x)]
    wide = x.double().numpy()
    kept = band_oracle(wide, density, gamma)
    if rescale:
        norms = np.abs(kept).sum(1)
        kept *= (np.abs(wide).sum(1) / np.where(norms == 0, 1, norms))[:, None]
    given = {
        "weight": weight.tolist(),
        "density": density.tolist(),
        "gamma": gamma.tolist(),
        "rescale": rescale,
    }
    scale = np.abs(weight) @ np.abs(kept)
    expect(methods.breadcrumbs(x, **given), weight @ kept, scale)
    voted = vote_oracle(kept, weight, weight, False)
    expect(methods.breadcrumbs_ties(x, **given), voted, scale, clear_votes(kept, weight) | ~np.bool_(rescale))


@given(x=stacks(), density=densities, gamma=gammas)
@oracle_test
def test_breadcrumbs_of_one_model_keeps_exactly_the_oracles_set(x, density, gamma):
    kept = methods.breadcrumbs(x[:1], density=float(density[0]), gamma=float(gamma[0]))
    assert kept.double().tolist() == band_oracle(x[:1].double().numpy(), density[:1], gamma[:1])[0].tolist()


@given(x=stacks(), share=st.sampled_from([0.05, 0.29, 0.5, 0.9, 1.0]))
@oracle_test
def test_sce(x, share):
    wide = x.double().numpy()
    expect(methods.sce(x, select_topk=share), sce_oracle(wide, share), np.abs(wide).max(0))


@given(
    x=stacks(entries=(5, 10, 35)),
    weight=weights,
    density=densities,
    epsilon=st.sampled_from([0.0, 0.07, 0.15, 0.6]),
    rescale=rescales,
)
@oracle_test
def test_della(x, weight, density, epsilon, rescale):
    weight, density, rng = weight[: len(x)], density[: len(x)], Rng(3, "tensor", NAMES[: len(x)])
    length = x.shape[1] // 5
    kept = della_oracle(x.double().numpy(), length, density, epsilon, rescale, rng)
    given = {"weight": weight.tolist(), "density": density.tolist(), "epsilon": epsilon, "rescale": rescale}
    rows, scale = x.reshape(len(x), 5, length), np.abs(weight) @ np.abs(kept)
    expect(methods.della_linear(rows, **given, rng=rng).reshape(-1), weight @ kept, scale)
    found = methods.della(rows, **given, normalize=False, rng=rng).reshape(-1)
    expect(found, vote_oracle(kept, weight, weight, False), scale, clear_votes(kept, weight))


# Numbers of mergekit 0.1.5, float64, six significant digits

BASE = torch.tensor([[1, -2, 0.5, 0], [3, 0.25, -1, 2]], dtype=torch.float64)
TUNED = [[[1.1, -2.4, 0.55, 0.3], [3, 0.05, -0.4, 1.99]], [[0.8, -2.1, 1, 0.02], [3.07, 0.25, -1.3, 2.4]]]
DELTAS = torch.tensor(TUNED, dtype=torch.float64) - BASE
BAND = {"weight": [0.7, 0.4], "density": 0.5, "gamma": 0.25}


@pytest.mark.parametrize(
    ("merged", "golden"),
    [
        (methods.breadcrumbs(DELTAS, **BAND), [0.99, -2.04, 0.535, 0.21, 3.028, 0.11, -1.12, 2]),
        (methods.breadcrumbs_ties(DELTAS, **BAND), [0.92, -2.04, 0.535, 0.21, 3.028, 0.11, -1.12, 2]),
        (methods.sce(DELTAS, select_topk=0.5), [0.8, -2, 0.816272, 0, 3, 0.25, -0.4, 2.4]),
        (methods.sce(DELTAS), [0.8, -2.26322, 0.755177, 0.172334, 3.07, 0.05, -0.4, 2.4]),
    ],
)
def test_mergekits_numbers(merged, golden):
    assert (BASE + merged).reshape(-1).tolist() == pytest.approx(golden, rel=6e-6, abs=1e-9)


# Identities, limits, and what other implementations do wrong


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("breadcrumbs", {"density": 0.5, "gamma": 0.3, "rescale": True}),
        ("breadcrumbs_ties", {"density": 0.9, "gamma": 0.3}),
        ("sce", {"select_topk": 0.3}),
        ("della", {"density": 0.1, "epsilon": 0.15}),
        ("della_linear", {"rescale": "l1", "normalize": True}),
    ],
)
def test_other_parameters_keep_the_contract(name, parameters):
    check_method(methods.get(name), parameters=parameters)


def test_without_outliers_breadcrumbs_is_a_trim():
    deltas = normal(3, 500)
    banded = methods.breadcrumbs_ties(deltas, density=0.2, gamma=0.0, normalize=True)
    assert torch.equal(banded, methods.ties(deltas, density=0.2))


def test_breadcrumbs_removes_the_outliers_and_keeps_the_share():
    delta = normal(1, 1000)
    kept = methods.breadcrumbs(delta, density=0.15, gamma=0.01).abs()
    falling = delta[0].abs().sort(descending=True).values
    assert sorted(kept[kept > 0].tolist(), reverse=True) == falling[10:160].tolist()


@pytest.mark.parametrize("entries", [1, 3, 64, 99])
def test_breadcrumbs_of_a_small_tensor_keeps_its_share(entries):
    """Where γ·n is less than one, an empty slice has zeroed whole biases elsewhere."""
    merged = methods.breadcrumbs(normal(1, entries), density=0.9, gamma=0.01)
    assert int(merged.count_nonzero()) == max(1, entries * 9 // 10)


def test_density_comes_before_gamma():
    """At most what the density leaves is removed: 0.99 of 100 entries stay, so one outlier goes."""
    delta = normal(1, 100)
    merged = methods.breadcrumbs(delta, density=0.99, gamma=0.2)
    assert int(merged.count_nonzero()) == 99
    assert merged[delta[0].abs().argmax()] == 0
    assert torch.equal(methods.breadcrumbs(delta, density=1.0, gamma=0.2), delta[0])


@pytest.mark.parametrize("power", [-100, -20, 0, 40])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_sce_is_the_same_at_any_scale(power, share):
    deltas = normal(3, 200, dtype=torch.float32) * torch.tensor([[0.1], [1.0], [3.0]])
    scaled = methods.sce(deltas * 2.0**power, select_topk=share)
    assert torch.equal(scaled, methods.sce(deltas, select_topk=share) * 2.0**power)


def test_sce_passes_on_what_one_model_alone_changed():
    """However little: a floor under the sum of coefficients would shrink it."""
    deltas = torch.zeros(2, 10)
    deltas[0, :5], deltas[1, 5:] = 1.0, 1e-7
    assert torch.equal(methods.sce(deltas), deltas.sum(0))


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_sce_of_models_that_agree_is_the_model(share):
    model = normal(50, dtype=torch.float32)
    assert torch.equal(methods.sce(model.expand(3, 50).clone(), select_topk=share), model)
    assert torch.equal(methods.sce(model[None], select_topk=share), model)


def test_sce_selects_exactly_the_share_of_entries_that_differ():
    deltas = torch.ones(2, 100)
    deltas[1, :40] = 2.0
    merged = methods.sce(deltas, select_topk=0.5)
    assert merged.count_nonzero() == 20
    assert bool((merged[:20] > 0).all())  # of equals, the first
    assert methods.sce(deltas, select_topk=0.001).count_nonzero() == 1


def test_a_window_that_does_not_fit_is_narrowed():
    assert keep_bounds(3, 0.1, 0.15)[1::2].tolist() == [0, 6554, 13107]
    assert keep_bounds(3, 0.9, 0.15)[1::2].tolist() == [52429, 58982, 65536]
    assert keep_bounds(4, 1.0, 0.5)[1:].tolist() == [65536] * 7
    assert keep_bounds(1, 0.3, 0.1)[1:].tolist() == [19661]


@pytest.mark.parametrize("density", [0.05, 0.15, 0.85, 0.95, 1.0])
def test_della_takes_any_density(density):
    assert bool(methods.della(normal(2, 8, 5), density=density, epsilon=0.15).isfinite().all())


@pytest.mark.parametrize("shape", [(6, 1), (6, 1, 1), (1,), ()])
def test_rows_of_one_entry_have_the_density(shape):
    delta = normal(1, *shape)
    assert torch.equal(methods.della_linear(delta, density=1.0), delta[0])
    many = methods.della_linear(torch.ones(1, 4000, 1), density=0.5, epsilon=0.5, rescale=False)
    assert abs(float(many.mean()) - 0.5) < 5 * (0.25 / 4000) ** 0.5


def test_packed_tensors_are_ranked_along_the_last_axis():
    delta, rng = normal(1, 3, 5, 40), Rng(1, "x", ("a",))
    packed = methods.della_linear(delta, rng=rng)
    assert torch.equal(packed.reshape(15, 40), methods.della_linear(delta.reshape(1, 15, 40), rng=rng))


def test_each_rank_is_kept_with_its_probability_and_the_mean_is_the_delta():
    """4,000 rows of one vector; five standard errors (3e-5 by chance for 64 entries)."""
    copies, delta = 4000, normal(64)
    rows = delta.expand(1, copies, 64)
    wanted = keep_bounds(64, 0.5, 0.3)[2 * delta.abs().argsort().argsort().numpy() + 1] / 65536
    kept = (methods.della_linear(rows, density=0.5, epsilon=0.3, rescale=False) != 0).double().mean(0).numpy()
    assert bool((np.abs(kept - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / copies)).all())
    merged = methods.della_linear(rows, density=0.5, epsilon=0.3).mean(0)
    error = delta.abs() * torch.from_numpy(np.sqrt((1 - wanted) / wanted / copies))
    assert bool(((merged - delta).abs() < 5 * error).all())


def test_norms_of_a_large_float16_tensor_do_not_overflow():
    deltas = torch.ones(1, 1000, 1100, dtype=torch.float16)
    assert bool(methods.della_linear(deltas, rescale="l1").isfinite().all())
    assert torch.equal(methods.breadcrumbs(deltas, rescale=True).unique(), torch.tensor([0.0, 1 / 0.15]).half())


def test_without_a_window_della_drops_like_dare():
    deltas, rng = normal(3, 20, 30, dtype=torch.float32), Rng(1, "x", NAMES[:3])
    merged = methods.della_linear(deltas, density=0.5, epsilon=0.0, rng=rng)
    assert torch.equal(merged, methods.dare_linear(deltas, density=0.5, rng=rng))


# In passes over blocks of stored bits


def as_bits(tensor):
    narrow = {torch.bfloat16: np.uint16, torch.float16: np.int16}.get(tensor.dtype)
    flat = tensor.reshape(len(tensor), -1)
    return flat.view(torch.int16).numpy().view(narrow) if narrow else flat.numpy()


def streamed(name, models, size, step, **given):
    """The method's stream on `(M, *shape)`, the base first, over blocks of `size` entries in the order of `step`."""
    method, shape, bits = methods.get(name), tuple(models.shape[1:]), as_bits(models)
    defaults = {p.name if p.name != "lambda" else "lambda_": p.default for p in method.params.values()}
    parameters = defaults | {"wide": models.dtype == torch.float64, "scope": "tensor"} | given
    stream = method.streamed([StreamJob(bits.shape[1], len(models) - 1, parameters, shape)])
    job = SimpleNamespace(spec=SimpleNamespace(numel=bits.shape[1]))
    row = max(shape[-1], 1) if method.by_row and shape else 1
    blocks = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eutectic.run.groups.BLOCK", size)
        for unit in units_of(job, 0, 0, False, row):
            assert unit.start % row == unit.stop % row == 0
            around = bits[:, unit.start : unit.stop].copy()
            own = around[:, unit.before : unit.before + unit.count]
            blocks.append(Block(0, unit.index, unit.first, own, around, unit.before))
    while stream.pending:
        for block in blocks[::step]:
            if stream.wants(block.index):
                stream.reduce(block)
        stream.fold()
    out = np.empty(bits.shape[1], bits.dtype)
    for block in blocks[::step]:
        stream.combine(block, out[block.first : block.first + len(block.base)])
    stored = torch.from_numpy(out.view(np.int16) if bits.itemsize == 2 else out)
    return stored.view(models.dtype).reshape(shape)


def reference(name, models, **given):
    wide = models.to(torch.promote_types(models.dtype, torch.float32))
    change = methods.get(name)(wide[1:] - wide[0], **given)
    return torch.where(change == 0, wide[0], wide[0] + change).to(models.dtype)


def adversarial(shape, dtype):
    """Stacks of a base and three models: plain, full of ties, without change, huge, tiny, with an outlier."""
    base, noise = normal(1, *shape, seed=1), normal(3, *shape, seed=2)
    steps = torch.randint(-2, 3, (4, *shape), generator=torch.Generator().manual_seed(3)).double() / 4
    spiked = noise.clone()
    spiked.reshape(3, -1)[:, -1:] *= 1e4
    top = min(torch.finfo(dtype).max / 64, 2.0**500)
    yield from (torch.cat([base, base + 0.02 * noise]), steps, base.expand(4, *shape), steps * top)
    small = torch.cat([torch.zeros_like(base), noise * 2.0**-140])
    yield from (small, torch.cat([base, base + 0.02 * spiked]))


CASES = [
    ("breadcrumbs", {}),
    ("breadcrumbs", {"density": [0.5, 0.2, 1.0], "gamma": [0.2, 0.0, 0.1], "weight": [1.0, -0.3, 0.5]}),
    ("breadcrumbs_ties", {"density": 0.5, "gamma": 0.25, "normalize": True, "lambda_": 0.4}),
    ("sce", {}),
    ("sce", {"select_topk": 0.1}),
    ("sce", {"select_topk": 0.9}),
    ("della", {}),
    ("della", {"density": [0.5, 0.1, 1.0], "epsilon": [0.3, 0.2, 0.1], "weight": [1.0, -0.3, 0.5], "rescale": False}),
    ("della_linear", {"normalize": True}),
]


@pytest.mark.parametrize(("name", "given"), CASES)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_the_streamed_form_is_the_reference(name, given, dtype):
    """Bit for bit, but for SCE in float64, whose energies are added in another order."""
    rng = {"rng": Rng(3, "tensor", NAMES[:3])} if methods.get(name).random else {}
    for shape in SHAPES:
        for models in adversarial(shape, dtype):
            stored = models.to(dtype)
            wanted = reference(name, stored, **given, **rng)
            largest = float(stored.abs().max()) if stored.numel() else 0.0
            for size, step in ((128, 1), (256, -1), (1 << 20, 1)):
                found = streamed(name, stored, size, step, **given, **rng)
                if name == "sce" and dtype == torch.float64:
                    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14 * largest)
                else:
                    assert torch.equal(found, wanted), (shape, size)


@pytest.mark.parametrize(
    ("name", "given"),
    [("breadcrumbs", {"rescale": True}), ("della", {"rescale": "l1"}), ("della_linear", {"rescale": "l1"})],
)
def test_matched_norms_are_the_references_up_to_their_last_bit(name, given):
    rng = {"rng": Rng(3, "tensor", NAMES[:3])} if methods.get(name).random else {}
    models = torch.cat([normal(1, 30, 31), normal(3, 30, 31, seed=1)])
    found = streamed(name, models, 128, -1, **given, **rng)
    torch.testing.assert_close(found, reference(name, models, **given, **rng), rtol=1e-13, atol=1e-15)


def test_merges_of_a_sweep_share_what_does_not_differ():
    jobs = [StreamJob(4, 2, {"select_topk": share, "wide": False}, (4,)) for share in (0.5, 0.5, 0.2)]
    first, same, other = (methods.sce.streamed([job]) for job in jobs)
    assert same.shares(first)
    assert not other.shares(first)


# Through the engine


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and three models; rows of the large tensor do not divide a block, and one is longer than a block."""
    home = tmp_path_factory.mktemp("models")
    shapes = {
        "big": (1100, 1023),
        "long": (2, 1100000),
        "bias": (7,),
        "scalar": (),
        "none": (0, 4),
        "packed": (3, 5, 6),
    }
    paths = []
    for number in range(4):
        tensors = {
            name: (normal(*shape) + 0.02 * number * normal(*shape, seed=number)).bfloat16()
            for name, shape in shapes.items()
        }
        (home / f"m{number}").mkdir()
        write_safetensors(home / f"m{number}" / "model.safetensors", tensors)
        paths.append(str(home / f"m{number}"))
    return paths


@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties", "sce", "della", "della_linear"])
def test_merges_do_not_depend_on_form_threads_or_memory(models, name, tmp_path):
    listed = [{"model": path} for path in models[1:]]
    parameters = {"select_topk": 0.3} if name == "sce" else {"density": 0.4}
    recipe = {"merge_method": name, "base_model": models[0], "models": listed, "parameters": parameters, "seed": 7}
    written = {}
    for label, options in {
        "one": {"threads": 1},
        "four": {"threads": 4},
        "small": {"threads": 2, "memory": 700 << 20},
        "reference": {"threads": 1, "reference": True, "memory": 6 << 30},
    }.items():
        eutectic.merge(recipe, tmp_path / label, options=Options(**options))
        written[label] = (tmp_path / label / "model.safetensors").read_bytes()
    assert len(set(written.values())) == 1
    lazy, stored = eutectic.merged(recipe), eutectic.open(str(tmp_path / "one"))
    assert all(torch.equal(lazy[name], stored[name]) for name in stored)


def test_a_whole_model_is_ranked_together(tmp_path):
    """`scope: model`: the bands of the concatenated task vectors, in the order of the tensors' names."""
    shapes = {"a": (40, 30), "b": (64,), "c": (9, 2, 3)}
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.zeros(shape) for name, shape in shapes.items()}
    tuned = {
        name: torch.randint(-9, 10, shape, generator=generator) / (64 if name == "b" else 256)
        for name, shape in shapes.items()
    }
    for label, tensors in (("base", base), ("tuned", tuned)):
        (tmp_path / label).mkdir()
        write_safetensors(tmp_path / label / "model.safetensors", tensors)
    recipe = {
        "merge_method": "breadcrumbs",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / "tuned")}],
        "parameters": {"density": 0.3, "gamma": 0.05, "scope": "model"},
    }
    merged = eutectic.merged(recipe)
    flat = torch.cat([tuned[name].reshape(-1) for name in sorted(shapes)])
    found = torch.cat([merged[name].reshape(-1) for name in sorted(shapes)])
    wanted = band_oracle(flat[None].double().numpy(), [0.3], [0.05])[0]
    assert found.double().tolist() == wanted.tolist()


@pytest.mark.parametrize("shape", [(0,), (64,), (7, 30), (4, 3, 3), (2, 3, 50)])
@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
def test_rows_are_ranked_by_themselves(name, shape, tmp_path):
    """`scope: row` is the method on every row, through a recipe as by hand; a vector is one row."""
    generator = torch.Generator().manual_seed(9)
    base = torch.randn(shape, generator=generator)
    tuned = [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(2)]
    made = methods.get(name)
    deltas = torch.stack(tuned) - base
    found = made(deltas, density=0.4, gamma=0.2, scope="row")
    rows = deltas.reshape(2, int(np.prod(shape[:-1])), shape[-1])
    expected = [made(rows[:, i], density=0.4, gamma=0.2) for i in range(rows.shape[1])]
    assert torch.equal(found, torch.stack(expected).reshape(shape) if expected else torch.zeros(shape))
    recipe = {
        "merge_method": name,
        "base_model": {"w": base},
        "models": [{"w": one} for one in tuned],
        "parameters": {"density": 0.4, "gamma": 0.2, "scope": "row"},
    }
    merged = eutectic.merged(recipe)["w"]
    assert torch.equal(merged, torch.where(found == 0, base, base + found))
    assert eutectic.plan(recipe).jobs[0].parameters["scope"] == "row"
