"""Residual streams that turn: functions stay, turned models are found again, and what cannot turn is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

pytest.importorskip("transformers")

from family_nets import TOKENS, drawn, transformer
from tables import after, source

from eutectic.alignment.finding import symmetries_of
from eutectic.alignment.matching import match_weights
from eutectic.alignment.moves import random_moves
from eutectic.alignment.orthogonal import match_orthogonal
from eutectic.checkpoint.memory import MemorySource
from eutectic.checkpoint.symmetry import Moves, Symmetries
from eutectic.errors import RecipeError

UNTIED = {"tie_word_embeddings": False, "num_hidden_layers": 1}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "num_local_experts": 4, "moe_intermediate_size": 12}


def tensors(module: nn.Module) -> dict[str, Tensor]:
    found = MemorySource("a", module)
    return {name: found[name] for name in found.specs}


def logits(module: Any, weights: Mapping[str, Tensor]) -> Tensor:
    logits: Tensor = functional_call(module, dict(weights), kwargs=TOKENS).logits
    return logits


@pytest.mark.parametrize(("kind", "sizes"), [("llama", {}), ("qwen2", {}), ("qwen3", {"head_dim": 8}), ("phi3", {})])
def test_functions_stay_and_models_are_nearer_than_by_orders(kind: str, sizes: Mapping[str, Any]) -> None:
    a, b = (transformer(kind, **UNTIED, **sizes) for _ in range(2))
    drawn(b, 9)
    table = symmetries_of(MemorySource("a", a), module=a)
    found, turned = match_orthogonal(source("a", tensors(a)), source("b", tensors(b)), table)
    moved = after(turned, tensors(b), found.moves)
    # transformers computes norms in float32.
    torch.testing.assert_close(logits(b, moved), logits(b, tensors(b)), rtol=0, atol=1e-5)
    gains = [name for name in moved if name.endswith("norm.weight") and "self_attn" not in name]
    assert all(torch.allclose(moved[name], tensors(a)[name], rtol=1e-12) for name in gains)
    assert found.gain > match_weights(source("a", tensors(a)), source("b", tensors(b)), table).gain + 0.02


@pytest.mark.parametrize(("kind", "sizes"), [("llama", {}), ("mixtral", EXPERTS)])
def test_a_model_that_was_turned_is_found_again(kind: str, sizes: Mapping[str, Any]) -> None:
    module = transformer(kind, **UNTIED, **sizes)
    a = tensors(module)
    table = symmetries_of(MemorySource("a", module), module=module)
    _, turned = match_orthogonal(source("a", a), source("a", a), table)
    b = after(turned, a, turn(a, turned))
    torch.testing.assert_close(logits(module, b), logits(module, a), rtol=0, atol=1e-5)
    found, turned = match_orthogonal(source("a", a), source("b", b), table)
    for name, tensor in after(turned, b, found.moves).items():
        torch.testing.assert_close(tensor, a[name], rtol=0, atol=1e-6)


def turn(a: Mapping[str, Tensor], table: Symmetries) -> Moves:
    """Random moves of all units, a random rotation of the stream, and random gains: W′ = W diag(a) Oᵀ diag(1/gain)."""
    element = random_moves(table, 4)
    rotation = element.matrices["residual"][0]
    orders, matrices = dict(element.orders), dict(element.matrices)
    for norm in (name for name in a if f"behind {name}" in table.gauges):
        del orders[norm]
        matrices[f"behind {norm}"] = (element.scales[norm][:, None] * a[norm][:, None] * rotation / a[norm])[None]
    return Moves(orders, element.scales, matrices)


def test_fine_tunes_stay() -> None:
    module = transformer("llama", **UNTIED)
    a = tensors(module)
    draw = torch.Generator().manual_seed(1)
    b = {name: one + 1e-3 * torch.randn(one.shape, generator=draw, dtype=one.dtype) for name, one in a.items()}
    table = symmetries_of(MemorySource("a", module), module=module)
    found, _ = match_orthogonal(source("a", a), source("b", b), table)
    assert not (found.moves.orders or found.moves.scales or found.moves.matrices)


@pytest.mark.parametrize(
    ("kind", "sizes", "why"),
    [
        ("llama", {"tie_word_embeddings": True}, "tied to the embeddings"),
        ("gemma2", {"head_dim": 8}, "may not turn"),
        ("olmo2", UNTIED, "may not turn"),
        ("olmo", UNTIED, "may not turn"),
        ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 20}, "may not turn"),
    ],
)
def test_what_cannot_turn_is_refused(kind: str, sizes: Mapping[str, Any], why: str) -> None:
    module = transformer(kind, **sizes)
    model = MemorySource("a", module)
    with pytest.raises(RecipeError, match=f"G174.*{why}"):
        match_orthogonal(model, model, symmetries_of(model, module=module))


def test_gains_of_zero_are_refused() -> None:
    module = transformer("llama", **UNTIED)
    a = tensors(module)
    table = symmetries_of(MemorySource("a", module), module=module)
    b = a | {"model.norm.weight": torch.zeros_like(a["model.norm.weight"])}
    with pytest.raises(RecipeError, match=r"G174 model\.norm\.weight: some gains of 'b' are zero"):
        match_orthogonal(source("a", a), source("b", b), table)
