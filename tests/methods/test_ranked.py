"""DELLA's ranks: equal magnitudes share the mean, found exactly however a row's magnitudes are distributed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

import eutectic
from eutectic import methods
from eutectic.kernels import fused_ranked, ranked
from eutectic.kernels.ranked import keep_bounds
from eutectic.methods import Rng

STORED = {"bfloat16": np.uint16, "float16": np.int16, "float32": np.float32, "float64": np.float64}


def widened(bits):
    """Stored bits as the working floats."""
    if bits.dtype == np.uint16:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16).astype(np.float32) if bits.dtype == np.int16 else bits


def stored(values, dtype):
    """Values in a dtype, as blocks have them."""
    tensor = torch.from_numpy(np.asarray(values, np.float64)).to(getattr(torch, dtype))
    return (tensor.view(torch.int16) if tensor.itemsize == 2 else tensor).numpy().view(STORED[dtype])


def places_oracle(base, row, length):
    with np.errstate(invalid="ignore", over="ignore"):
        sizes = np.abs(widened(row) - widened(base))
    words = sizes.view(f"u{sizes.itemsize}").reshape(-1, length)
    return (2 * rankdata(words, axis=1) - 1).astype(int).reshape(-1)


def places(base, row, length):
    """What the compiled ranking finds: a table that has each place at its place is looked up."""
    wide = row.dtype == np.float64
    words = np.uint64 if wide else np.uint32
    table = np.arange(2 * length + 1, dtype=words).view(np.float64 if wide else np.float32)
    out = np.empty(len(row), table.dtype)
    ranked._look_up(base, row, length, table, out)
    return out.view(words).astype(int)


def kinds(length):
    """Deltas of two rows, of every kind that has made a ranking wrong or slow."""
    random = np.random.default_rng(length)
    noise = random.standard_normal(2 * length)
    yield "noise", noise
    yield "fine-tune", np.rint(noise * 40) / 2**14
    yield "equal", np.full(2 * length, -0.3)
    yield "zero", np.zeros(2 * length)
    yield "sparse", np.where(random.random(2 * length) < 0.01, noise, 0)
    yield "one that is huge", np.where(np.arange(2 * length) % length == length // 2, 1e30, noise)
    yield "many scales", noise * 10.0 ** random.integers(-30, 30, 2 * length)
    yield "subnormal", noise * 1e-42
    yield "infinite", np.where(random.random(2 * length) < 0.1, np.inf, noise)
    yield "NaN", np.where(random.random(2 * length) < 0.1, np.nan, noise)
    yield "zero first", np.where(np.arange(2 * length) % length < 40, 0, noise)
    yield "rows of two scales", noise * np.where(np.arange(2 * length) < length, 1e-3, 1e3)
    # Where none of the sample is.
    yield "one NaN", np.where(np.arange(2 * length) % length == 1, np.nan, noise)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("length", [1, 2, 3, 32, 33, 64, 300, 2048, 5888, 17000, 70000])
def test_places_are_those_of_mean_ranks(length, dtype):
    for name, deltas in kinds(length):
        base = stored(np.random.default_rng(1).standard_normal(len(deltas)) * (name == "fine-tune") * 0.02, dtype)
        row = stored(widened(base).astype(np.float64) + deltas, dtype)
        assert (places(base, row, length) == places_oracle(base, row, length)).all(), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("length", [64, 300, 2048])
def test_places_where_deltas_are_multiples_of_no_common_width(length, dtype):
    """Models without a common base, in rows enough for narrower bins; in the last ones most are in one bin."""
    random = np.random.default_rng(5)
    base, row = (stored(random.standard_normal(40 * length), dtype) for _ in range(2))
    row[-5 * length :: length] = stored([2.0**14], dtype)
    assert (places(base, row, length) == places_oracle(base, row, length)).all()


@given(data=st.data(), length=st.sampled_from([3, 40, 130]), dtype=st.sampled_from(["bfloat16", "float16", "float32"]))
@settings(max_examples=60, deadline=None)
def test_places_of_any_bits(data, length, dtype):
    """Bits of any kind, drawn from few, so that some are equal."""
    kind = np.dtype(STORED[dtype])
    few = data.draw(st.lists(st.integers(0, 2 ** (8 * kind.itemsize) - 1), min_size=1, max_size=length))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    base, row = random.choice(np.array(few, f"u{kind.itemsize}"), (2, 2 * length)).view(kind)
    assert (places(base, row, length) == places_oracle(base, row, length)).all()


def test_the_inverse_decides_as_the_probability_does():
    """Every probability with the two random words between which it lies."""
    for floats in (np.float32, np.float64):
        with np.errstate(divide="ignore"):
            inverse = (floats(65536) / np.arange(65537).astype(floats))[:, None].repeat(2, 1).reshape(-1)
        asked = (np.arange(65537)[:, None] + [-1, 0]).reshape(-1)
        one, nothing, out = np.ones(1024, floats), np.zeros(1024, floats), np.empty(1024, floats)
        for first in range(0, len(asked), 1024):
            part = asked[first : first + 1024]
            octets = np.zeros((2, 1280), np.uint8)
            octets[0, : len(part)], octets[1, : len(part)] = (part & 65535) >> 8, part & 255
            fused_ranked.kept(nothing, one, 0, len(part), inverse, first, octets.view(np.uint64), 0, False, out)
            there = (part >= 0) & (part < 65536)
            keeps = (np.arange(first, first + len(part)) % 2 == 0).astype(floats)
            assert (out[: len(part)] == keeps)[there].all()


def test_probabilities_follow_the_columns():
    """In another order of columns every entry has the probability that it had, ties or not."""
    random = np.random.default_rng(0)
    deltas, order = random.integers(-9, 10, (1, 6, 500)) / 64, random.permutation(500)
    row, moved = (stored(d.reshape(-1), "bfloat16") for d in (deltas, deltas[..., order]))
    found = places(np.zeros_like(row), row, 500).reshape(6, 500)
    assert (places(np.zeros_like(row), moved, 500).reshape(6, 500) == found[:, order]).all()


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_equal_entries_are_kept_with_the_density(value):
    """A row without differences is dropped as by DARE, whatever the window."""
    deltas, rng = torch.full((1, 50, 200), value), Rng(1, "x", ("a",))
    merged = methods.della_linear(deltas, density=0.5, epsilon=0.3, rng=rng)
    assert torch.equal(merged, methods.dare_linear(deltas, density=0.5, rng=rng))


def test_the_mean_probability_is_the_density():
    random = np.random.default_rng(2)
    bounds = keep_bounds(400, 0.7, 0.2)
    for deltas in (random.integers(-3, 4, 400), random.standard_normal(400)):
        place = places_oracle(np.zeros(400), deltas.astype(np.float64), 400)
        assert abs(bounds[place].mean() / 65536 - 0.7) < 2.0**-17


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(40, 700), (3, 2, 5000), (3, 70000), (9000, 3)])
def test_pieces_of_any_size_give_the_reference(shape, dtype, monkeypatch):
    made = torch.Generator().manual_seed(4)
    base = torch.randn(shape, generator=made).to(dtype)
    tuned = [(base + 0.03 * torch.randn(shape, generator=made)).to(dtype) for _ in range(2)]
    wide = torch.stack(tuned).float() - base.float()
    for name, own in (("della", {"epsilon": [0.3, 0.0]}), ("della_linear", {"density": [0.5, 0.9]})):
        listed = [
            {"model": {"w": tensor}, "parameters": {key: values[k] for key, values in own.items()}}
            for k, tensor in enumerate(tuned)
        ]
        recipe = {"merge_method": name, "base_model": {"w": base}, "models": listed, "seed": 3}
        recipe["parameters"] = {"rescale": name == "della"}
        found = []
        for size in (1, 3000, 1 << 17):
            monkeypatch.setattr(ranked, "RANKED", size)
            found.append(eutectic.merged(recipe)["w"])
        labels = tuple(item.label for item in eutectic.plan(recipe).inputs[1:])
        change = methods.get(name)(wide, **own, **recipe["parameters"], rng=Rng(3, "w", labels))
        wanted = torch.where(change == 0, base.float(), base.float() + change).to(dtype)
        assert all(torch.equal(tensor, wanted) for tensor in found), (name, labels)
