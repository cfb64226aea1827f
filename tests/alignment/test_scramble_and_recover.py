"""A model whose units were moved at random is found again, by its weights alone, in every family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from family_nets import DECODERS, ENCODERS, drawn, transformer
from named_nets import NETS

from eutectic.alignment.families import declared
from eutectic.alignment.finding import symmetries_of
from eutectic.alignment.matching import match_weights
from eutectic.alignment.moves import random_moves
from eutectic.checkpoint.memory import MemorySource
from eutectic.checkpoint.symmetry import Symmetries


def recovered(tensors: Mapping[str, Tensor], table: Symmetries) -> None:
    """Scrambles, aligns, and merges with the original: that is what comes out."""
    element = random_moves(table, 5)
    scrambled = {name: table.made(name, tensors.__getitem__, element) for name in tensors}
    found = match_weights(MemorySource("a", tensors), MemorySource("b", scrambled), table)
    assert found.before > 1
    for name, tensor in tensors.items():
        back = table.made(name, scrambled.__getitem__, found.moves)
        merged = (tensor.double() + back.double()) / 2
        torch.testing.assert_close(merged, tensor.double(), rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize(("kind", "head", "sizes", "due"), DECODERS + ENCODERS)
def test_transformers(kind: str, head: str, sizes: Mapping[str, Any], due: str) -> None:
    module = transformer(kind, f"AutoModelFor{head}" if head else "AutoModel", **sizes)
    source = MemorySource("a", module)
    recovered({name: source[name] for name in source.specs}, symmetries_of(source, module=module))


@pytest.mark.parametrize(("net", "config", "inputs", "due"), NETS)
def test_networks_known_by_their_names(
    net: Callable[[], nn.Module], config: Mapping[str, Any], inputs: Tensor, due: dict[str, str]
) -> None:
    source = MemorySource("a", drawn(net()))
    table = declared(source.specs, config)
    assert table is not None
    recovered({name: source[name] for name in source.specs}, table)
