"""What a notebook or a log shows of results: a line that counts and says where to look, never their tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eutectic.alignment import check, match_weights, repair, symmetries_of
from eutectic.alignment.zipit import zipit
from eutectic.checkpoint import MemorySource

BATCHES = [torch.randn(8, 4, generator=torch.Generator().manual_seed(1))] * 2


def net(seed: int, depth: int = 12) -> nn.Sequential:
    """Layers in a row."""
    torch.manual_seed(seed)
    hidden = [part for _ in range(depth) for part in (nn.Linear(16, 16), nn.ReLU())]
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), *hidden, nn.Linear(16, 3)).eval()


@pytest.fixture(scope="module")
def nets() -> list[nn.Module]:
    return [net(1), net(2)]


def test_results_of_matching_are_lines(nets: list[nn.Module]) -> None:
    a, b = (MemorySource(label, one) for label, one in zip("ab", nets, strict=True))
    table = symmetries_of(a)
    assert repr(table) == f"<Symmetries {table.origin}: 13 groups and 0 gauges in 28 tensors>"
    found = match_weights(a, b, table)
    moved = sum(change.moved for change in found.changes.values())
    assert repr(found).startswith(f"<Match: {moved} of 208 units in 13 groups move, objective ")
    assert f"→ {found.objective[-1]:.6g} in {len(found.objective)} steps" in repr(found) and len(repr(found)) < 200
    assert repr(found.moves) == f"<Moves: {len(found.moves.orders)} orders, 0 scales, 0 matrices>"
    held = check(nets[0], table, BATCHES[0])
    assert repr(held) == f"<Check: {held}>" and len(repr(held)) < 200


def test_merged_modules_are_lines(nets: list[nn.Module]) -> None:
    zipped = zipit(nets, BATCHES)
    said = f"2 models with {len(zipped.shared)} tensors of 13 groups in common; see .groups and .members"
    assert repr(zipped) == f"<Zipped: {said}>"
    assert repr(repair(nets[0], nets, BATCHES)) == (
        "<Repaired Sequential: 26 tensors changed, 1 layer left as they were; see .changed and .left>"
    )
