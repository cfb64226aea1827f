"""The exact k-th largest magnitude, by every path: the guess that is right, the guess that is wrong, and no guess."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eutectic.kernels import selection
from eutectic.kernels.selection import Selection
from eutectic.kernels.streams import Block

SIZE = 64


def select(deltas: NDArray[Any], ranks: list[int], *, wide: bool = False) -> tuple[Selection, list[str]]:
    """Runs a selection over blocks of 64 entries, backwards; returns it and the stages it went through."""
    numel = deltas.shape[1]
    bits = np.concatenate([np.zeros((1, numel), deltas.dtype), deltas])
    blocks = [
        Block(0, i, at, np.ascontiguousarray(bits[:, at : at + SIZE])) for i, at in enumerate(range(0, numel, SIZE))
    ]
    chosen = Selection(ranks, [numel], wide)
    stages = []
    while chosen.pending:
        stages.append(chosen._stage)
        for block in reversed(blocks):
            if chosen.wants(block.index):
                chosen.reduce(block)
        chosen.fold()
    return chosen, stages


def expect(deltas: NDArray[Any], ranks: list[int], chosen: Selection) -> None:
    for model, rank in enumerate(ranks):
        size = np.sort(np.abs(deltas[model]))[::-1]
        assert chosen.threshold[model] == size[rank - 1]
        assert chosen.rank[model] == rank - np.count_nonzero(size > size[rank - 1])
        for (_, index), equal in (chosen.equal or {}).items():
            block = np.abs(deltas[model, index * SIZE : (index + 1) * SIZE])
            assert equal[model] == np.count_nonzero(block == size[rank - 1])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BLOCK": SIZE, "SMALLEST": 4 * SIZE, "AIM": 1024, "MOST": 8, "KEPT": 2048}.items():
        monkeypatch.setattr(selection, name, value)


def test_a_good_guess_takes_one_pass() -> None:
    deltas = np.random.default_rng(0).normal(size=(3, 64 * SIZE)).astype(np.float32)
    ranks = [800, 2000, 4000]
    chosen, stages = select(deltas, ranks)
    expect(deltas, ranks, chosen)
    assert stages == ["sample", "near"]
    assert chosen.equal is not None


def test_quantised_deltas_are_counted_and_not_kept() -> None:
    deltas = (np.random.default_rng(1).integers(-8, 9, (2, 64 * SIZE)) / 64).astype(np.float32)
    ranks = [725, 2650]
    chosen, stages = select(deltas, ranks)
    expect(deltas, ranks, chosen)
    assert stages == ["sample", "near"]
    assert min(chosen.rank) > 1  # ties, of which only some belong


def test_too_many_to_be_kept_are_narrowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "KEPT", 100)
    deltas = np.random.default_rng(4).normal(size=(2, 64 * SIZE)).astype(np.float32)
    chosen, stages = select(deltas, [800, 1])
    expect(deltas, [800, 1], chosen)
    assert stages == ["sample", "narrow", "near"]


def test_heaps_in_a_wide_window_are_narrowed_down_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "KEPT", 100)
    # Half are one of forty neighbouring patterns, the others larger by orders: any window holds all forty in a bin.
    rng = np.random.default_rng(5)
    near = (np.uint32(0x3F800000) + np.arange(40, dtype=np.uint32)).view(np.float32)
    deltas = np.where(rng.random(64 * SIZE) < 0.5, rng.choice(near, 64 * SIZE), np.float32(1e30))[None]
    rank = int((deltas > 2).sum()) + 3
    chosen, stages = select(deltas.astype(np.float32), [rank])
    expect(deltas, [rank], chosen)
    assert stages == ["sample", "narrow", "narrow", "near"]


def test_more_between_than_promised_are_narrowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "KEPT", 1000)
    rng = np.random.default_rng(6)
    # Most of what is not sampled lies close around the median, and as much above it as below.
    heap = 0.6745 * (1 + 0.01 * rng.normal(size=64 * SIZE))
    hidden = rng.choice([1.0, 0.1, 10.0], 64 * SIZE, p=[0.6, 0.2, 0.2])
    deltas = (heap * hidden).astype(np.float32)
    for at in range(0, 64, 4):
        deltas[at * SIZE : (at + 1) * SIZE : 3] = rng.normal(size=22)
    chosen, stages = select(deltas[None], [32 * SIZE])
    expect(deltas[None], [32 * SIZE], chosen)
    assert stages == ["sample", "near", "narrow", "near"]


@pytest.mark.parametrize("rank", [1200, 1600, 2000, 2400, 2800])
def test_frequent_patterns_among_rare_ones(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "KEPT", 600)
    rng = np.random.default_rng(7)
    deltas = rng.normal(size=64 * SIZE).astype(np.float32)
    common = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], np.float32)
    deltas = np.where(rng.random(64 * SIZE) < 0.4, rng.choice(common, 64 * SIZE), deltas)[None]
    chosen, stages = select(deltas, [rank])
    expect(deltas, [rank], chosen)
    assert stages in (["sample", "near"], ["sample", "narrow", "near"])


@given(
    st.lists(st.integers(0, 9), max_size=30),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=4),
    st.integers(-1, 60),
)
def test_the_kth_of_kept_and_counted(kept: list[int], counted: list[tuple[int, int]], left: int) -> None:
    heavy = dict(counted)
    inside = [pattern for pattern in kept if pattern not in heavy]
    everything = sorted(inside + [pattern for pattern, count in heavy.items() for _ in range(count)], reverse=True)
    found = selection._kth(
        left, np.array(inside, np.int32), np.array(list(heavy), np.int32), np.array(list(heavy.values()), np.int64)
    )
    if not 0 < left <= len(everything):
        assert found is None
    else:
        pattern = everything[left - 1]
        assert found == (pattern, left - everything.index(pattern))


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_a_wrong_guess_costs_passes_and_nothing_else(factor: float) -> None:
    deltas = np.random.default_rng(2).normal(size=(2, 64 * SIZE)).astype(np.float32)
    for at in range(0, 64, 4):
        deltas[:, at * SIZE : (at + 1) * SIZE] *= factor
    ranks = [500, 2500]
    chosen, stages = select(deltas, ranks)
    expect(deltas, ranks, chosen)
    assert stages[-2:] == ["level", "level"]
    assert chosen.equal is None


def test_without_a_guess() -> None:
    deltas = np.random.default_rng(3).normal(size=(2, 20 * SIZE))
    ranks = [1, 20 * SIZE]
    chosen, stages = select(deltas, ranks, wide=True)
    expect(deltas, ranks, chosen)
    assert stages == ["level"] * 4


@pytest.mark.parametrize("numel", [1, 7, SIZE, 3 * SIZE + 5])
def test_a_small_group_is_kept_whole(numel: int) -> None:
    deltas = np.random.default_rng(3).integers(-9, 9, (3, numel)).astype(np.float32)
    deltas[2] = np.nan
    ranks = [1, numel, numel]
    chosen, stages = select(deltas, ranks)
    expect(deltas[:2], ranks[:2], chosen)
    assert stages == ["near"]
    assert np.isnan(chosen.threshold[2])


def test_the_sample_of_a_model_of_any_size_is_small() -> None:
    for numel in (1 << 20, 1 << 27, 1 << 36):
        assert numel // Selection([1], [numel], False)._one_in <= selection.KEPT


@pytest.mark.parametrize("value", [0.0, 1e-45, 3e38, 1.0])
def test_all_entries_equal(value: float) -> None:
    deltas = np.full((1, 40 * SIZE), value, np.float32)
    chosen, _ = select(deltas, [77])
    expect(deltas, [77], chosen)
    assert chosen.rank == [77]


@pytest.mark.parametrize("coarse", [False, True])
def test_neighbouring_ranks_of_one_row_are_counted_once(coarse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    deltas = np.random.default_rng(5).normal(size=(1, 64 * SIZE)).astype(np.float32)
    deltas = np.round(deltas * 8) / 8 if coarse else deltas
    counted = []
    count_near = selection.fused.count_near

    class Repeated(Block):
        @property
        def models(self) -> tuple[Any, ...]:
            return (self.bits[1],) * 4

    monkeypatch.setattr(selection.fused, "count_near", lambda *given: counted.append(1) or count_near(*given))
    monkeypatch.setattr(f"{__name__}.Block", Repeated)
    ranks = [900, 901, 3000, 3001]
    row = np.broadcast_to(deltas, (1, deltas.shape[1]))
    chosen, stages = select(row, ranks)
    expect(np.repeat(deltas, 4, axis=0), ranks, chosen)
    assert stages == ["sample", "near"]
    assert len(counted) < 3 * 64
