"""The exact k-th largest magnitude, by every path: the guess that is right, the guess that is wrong, and no guess."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
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
    chosen = Selection(ranks, numel, wide)
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


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "BLOCK", SIZE)


def test_a_good_guess_takes_one_pass() -> None:
    deltas = np.random.default_rng(0).normal(size=(3, 64 * SIZE)).astype(np.float32)
    ranks = [800, 2000, 4000]
    chosen, stages = select(deltas, ranks)
    expect(deltas, ranks, chosen)
    # Four blocks are a rough sample, so a guess may miss; the result may not.
    assert stages[:2] == ["sample", "window"]


def test_quantised_deltas_are_guessed_right() -> None:
    deltas = (np.random.default_rng(1).integers(-8, 9, (2, 64 * SIZE)) / 64).astype(np.float32)
    ranks = [725, 2650]
    chosen, stages = select(deltas, ranks)
    expect(deltas, ranks, chosen)
    assert stages == ["sample", "window"]
    assert min(chosen.rank) > 1  # ties, of which only some belong


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_a_wrong_guess_costs_two_passes_and_nothing_else(factor: float) -> None:
    deltas = np.random.default_rng(2).normal(size=(2, 64 * SIZE)).astype(np.float32)
    for at in range(0, 64, selection.SAMPLE):
        deltas[:, at * SIZE : (at + 1) * SIZE] *= factor
    ranks = [500, 2500]
    chosen, stages = select(deltas, ranks)
    expect(deltas, ranks, chosen)
    assert stages == ["sample", "window", "level", "level"]


@pytest.mark.parametrize(("wide", "passes"), [(False, 2), (True, 4)])
def test_without_a_guess(wide: bool, passes: int) -> None:
    numel = 3 * SIZE if not wide else 20 * SIZE
    deltas = np.random.default_rng(3).normal(size=(2, numel)).astype(np.float64 if wide else np.float32)
    ranks = [1, numel]
    chosen, stages = select(deltas, ranks, wide=wide)
    expect(deltas, ranks, chosen)
    assert stages == ["level"] * passes


@pytest.mark.parametrize("value", [0.0, 1e-45, 3e38, 1.0])
def test_all_entries_equal(value: float) -> None:
    deltas = np.full((1, 40 * SIZE), value, np.float32)
    chosen, _ = select(deltas, [77])
    expect(deltas, [77], chosen)
    assert chosen.rank == [77]
