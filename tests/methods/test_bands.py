"""Breadcrumbs by rows in blocks: bit for bit the plain torch form, wherever blocks and pieces end."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import eutectic
from eutectic import methods
from eutectic.kernels import bands
from eutectic.kernels.streams import Block, StreamJob
from eutectic.kernels.trim import keep_band_of_rows
from eutectic.run.groups import Work, block_bytes, is_whole, units_of

NAMES = ("breadcrumbs", "breadcrumbs_ties")


def fine_tunes(shape, dtype, models=2):
    """A base and fine-tunes of it whose deltas are few different ones in 16 bits."""
    made = torch.Generator().manual_seed(4)
    base = 0.02 * torch.randn(shape, generator=made, dtype=torch.float64)
    tuned = [base + 1e-3 * torch.randn(shape, generator=made, dtype=torch.float64) for _ in range(models)]
    return base.to(dtype), [tensor.to(dtype) for tensor in tuned]


def by_hand(name, base, tuned, **parameters):
    """The method in plain torch, rounded as a merge rounds."""
    wide = torch.float64 if base.dtype == torch.float64 else torch.float32
    change = methods.get(name)(torch.stack(tuned).to(wide) - base.to(wide), scope="row", **parameters)
    return torch.where(change == 0, base.to(wide), base.to(wide) + change).to(base.dtype)


def recipe(name, base, tuned, **parameters):
    return {
        "merge_method": name,
        "base_model": {"w": base},
        "models": [{"w": tensor} for tensor in tuned],
        "parameters": {"scope": "row", **parameters},
    }


SHAPES = ((), (1,), (5, 1), (40, 700), (3, 2, 500), (2, 70000), (900, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_pieces_of_any_size_give_the_reference(name, dtype, monkeypatch):
    for shape in SHAPES:
        base, tuned = fine_tunes(shape, dtype)
        found = []
        for size in (1, 3000, 1 << 16):
            monkeypatch.setattr(bands, "RANKED", size)
            found.append(eutectic.merged(recipe(name, base, tuned, density=0.3, gamma=0.05))["w"])
        wanted = by_hand(name, base, tuned, density=0.3, gamma=0.05)
        assert all(torch.equal(tensor, wanted) for tensor in found), shape


def test_norms_are_those_of_the_tensor():
    """`rescale`, but for the last bit of sums in another order."""
    for shape in SHAPES:
        base, tuned = fine_tunes(shape, torch.float32)
        found = eutectic.merged(recipe("breadcrumbs", base, tuned, gamma=0.4, rescale=True))["w"]
        wanted = by_hand("breadcrumbs", base, tuned, gamma=0.4, rescale=True)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rescale", [False, True])
def test_rows_lie_across_blocks(rescale, monkeypatch):
    """Blocks that no row ends with, each with the rows that it touches around it, by any of the merges of a sweep."""
    monkeypatch.setattr("eutectic.run.groups.BLOCK", 512)
    base, tuned = fine_tunes((13, 300), torch.bfloat16)
    bits = torch.stack([base, *tuned]).view(torch.int16).numpy().view(np.uint16).reshape(3, -1)
    own = {"weight": 1.0, "density": 0.2, "gamma": 0.1, "normalize": False, "rescale": rescale, "lambda_": 1.0}
    job = StreamJob(base.numel(), 2, own | {"scope": "row"}, tuple(base.shape))
    first, second = bands.BandsOfRows([job]), bands.BandsOfRows([job])
    whole = SimpleNamespace(spec=SimpleNamespace(numel=base.numel()))
    blocks = []
    for unit in units_of(whole, 0, 0, False, 300):
        around = np.ascontiguousarray(bits[:, unit.start : unit.stop])
        inner = around[:, unit.before : unit.before + unit.count]
        blocks.append(Block(0, unit.index, unit.first, inner, around, unit.before))
    assert first.pending == rescale
    if rescale:
        for block in reversed(blocks):
            first.reduce(block)
        assert second.shares(first)
        first.fold()
        second.take(first)
    for stream in (first, second):
        out = np.empty(base.numel(), np.uint16)
        for block in blocks:
            stream.combine(block, out[block.first : block.first + len(block.base)])
        wanted = by_hand("breadcrumbs", base, tuned, density=0.2, gamma=0.1, rescale=rescale)
        assert torch.equal(torch.from_numpy(out.view(np.int16)).view(torch.bfloat16).reshape(13, 300), wanted)


@given(
    data=st.data(),
    length=st.sampled_from([1, 2, 5, 40, 130]),
    density=st.sampled_from([0.01, 0.15, 0.5, 0.99, 1.0]),
    gamma=st.sampled_from([0.0, 0.01, 0.3, 0.9]),
)
@settings(max_examples=60, deadline=None)
def test_bands_of_any_values(data, length, density, gamma):
    """Few different values, of which many are equal; infinities and NaN, which is larger than all."""
    few = st.sampled_from([0.0, -0.0, 1e-42, 0.5, -0.5, 1.0, 2.0**100, float("inf"), float("-inf"), float("nan")])
    values = data.draw(st.lists(few, min_size=3 * length, max_size=3 * length))
    row = np.array(values, np.float32)
    own = {"weight": 1.0, "normalize": False, "rescale": False, "lambda_": 1.0}
    parameters = own | {"density": density, "gamma": gamma, "scope": "row"}
    stream = bands.BandsOfRows([StreamJob(len(row), 1, parameters, (3, length))])
    out = np.empty_like(row)
    stream.combine(Block(0, 0, 0, np.stack([np.zeros_like(row), row])), out)
    wanted = keep_band_of_rows(torch.from_numpy(row).reshape(1, 3, length), density, gamma)
    np.testing.assert_array_equal(out, wanted.numpy().reshape(-1))


def test_steps_after_the_method_see_the_band():
    base, tuned = fine_tunes((40, 700), torch.float32)
    asked = recipe("breadcrumbs", base, tuned, density=0.3)
    asked["post"] = [{"norm_guard": {"factor": 0.5}}]
    change = eutectic.merged(asked)["w"] - base
    whole = by_hand("breadcrumbs", base, tuned, density=0.3) - base
    ratio = (change.norm() / whole.norm()).item()
    assert torch.equal(change == 0, whole == 0)
    torch.testing.assert_close(change, whole * ratio, rtol=1e-3, atol=1e-8)


def test_memory_follows_the_rows_and_not_the_tensor():
    """A tensor of many more rows needs no more than the same in blocks by tensor and a few of its rows."""
    zeros = torch.zeros(16384, 1024, dtype=torch.bfloat16)
    with eutectic.plan(recipe("breadcrumbs", zeros, [zeros])) as plan:
        by_row, by_tensor = (Work(one) for one in (plan, replace(plan, recipe=replace(plan.recipe, scope="tensor"))))
        assert not is_whole(by_row, 0)
        assert block_bytes(by_tensor, 0) < block_bytes(by_row, 0) < block_bytes(by_tensor, 0) + 100 * 1024
