"""What is declared for families of transformers holds: random elements leave outputs as they were in float64."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from family_nets import DECODERS, ENCODERS, EXPERTS, TOKENS, config_of, specs_of, transformer, tried

from eutectic.alignment.families import attempt
from eutectic.alignment.moves import random_moves
from eutectic.alignment.proof import check
from eutectic.checkpoint.source import Spec
from eutectic.checkpoint.symmetry import Axis, Symmetries


def has(symmetries: Symmetries, name: str) -> bool:
    """Whether a table has a group (of a scale) or a gauge (of a kind) of this name, in the first layer or the whole."""
    name, _, of = name.partition(":")
    for full, group in symmetries.groups.items():
        if full in (name, f"layers.0.{name}") or full.endswith(f".0.{name}"):
            return group.scale == of
    return any(full.endswith(f".0.{name}") and gauge.kind == of for full, gauge in symmetries.gauges.items())


def kinds(symmetries: Symmetries) -> set[str]:
    """The last parts of the names of all groups and gauges."""
    names = [*symmetries.groups, *symmetries.gauges]
    return {name.rpartition(".")[2] for name in names if ".expert." not in name}


@pytest.mark.parametrize(("kind", "head", "sizes", "due"), DECODERS + ENCODERS)
def test_random_elements_leave_logits_as_they_are(kind: str, head: str, sizes: Mapping[str, Any], due: str) -> None:
    module = transformer(kind, f"AutoModelFor{head}" if head else "AutoModel", **sizes)
    found = tried(module)
    assert found.symmetries is not None, found.problems
    assert found.symmetries.origin == f"declared for {kind}"
    lacking = [name for name in due.split() if not has(found.symmetries, name)]
    assert lacking == []
    # A dense layer among those with experts has units of its own.
    expected = {name.partition(":")[0] for name in due.split() if "expert." not in name}
    assert kinds(found.symmetries) - {"mlp"} == expected - {"mlp"}
    proof = check(module, found.symmetries, TOKENS, elements=2)
    assert proof.error < 1e-11, proof


def test_old_names_of_norms_mean_the_same() -> None:
    module = transformer("bert", "AutoModelForMaskedLM", max_position_embeddings=20)
    usual = tried(module).symmetries
    assert usual is not None

    def old(name: str) -> str:
        return re.sub("weight$", "gamma", re.sub("bias$", "beta", name)) if "LayerNorm" in name else name

    table = attempt({old(name): spec for name, spec in specs_of(module).items()}, config_of(module)).symmetries
    assert table is not None
    assert table.groups == usual.groups

    def places(axes: tuple[Axis, ...]) -> list[object]:
        return [part.factors for parts in axes for part in parts]

    assert {name: places(axes) for name, axes in table.axes.items()} == {
        old(name): places(axes) for name, axes in usual.axes.items()
    }


def test_a_classifier_of_tokens_reads_no_pooler_that_its_file_has_too() -> None:
    module = transformer("bert", "AutoModelForTokenClassification", max_position_embeddings=20)
    whole = transformer("bert", "AutoModelForSequenceClassification", max_position_embeddings=20)
    old = {name: spec for name, spec in specs_of(whole).items() if ".pooler." in name} | specs_of(module)
    table = attempt(old, config_of(module)).symmetries
    assert table is not None and "pooler" not in table.groups
    read = {name: axes for name, axes in table.axes.items() if ".pooler." not in name}
    assert check(module, replace(table, axes=read), TOKENS).holds


def test_vectors_of_a_model_whose_name_has_the_letters_of_a_head_are_its_output() -> None:
    module = transformer("xlm-roberta", "AutoModel", max_position_embeddings=20)
    found = tried(module).symmetries
    assert found is not None and check(module, found, TOKENS).holds


def test_experts_are_stacks_of_slices_and_of_tensors() -> None:
    module = transformer("qwen3_moe", **EXPERTS)
    fused = module.state_dict()
    apart: dict[str, torch.Tensor] = {}
    for name, tensor in fused.items():
        at, _, last = name.rpartition(".")
        for expert, one in enumerate(tensor if at.endswith("experts") else ()):
            for kind, piece in zip(("gate", "up"), one.chunk(2), strict=True) if "gate_up" in last else [("down", one)]:
                apart[f"{at}.{expert}.{kind}_proj.weight"] = piece
        if not at.endswith("experts"):
            apart[name] = tensor

    specs = {name: Spec("float64", tuple(tensor.shape)) for name, tensor in apart.items()}
    one, other = (attempt(each, config_of(module)).symmetries for each in (specs_of(module), specs))
    assert one is not None and other is not None
    assert one.groups == other.groups
    assert Symmetries.from_json(other.as_json()) == other
    assert other.stacks["layers.0.experts"][0] == "model.layers.0.mlp.experts.{}.gate_proj.weight"
    moves = random_moves(one, 1)
    for layer in range(2):
        at = f"model.layers.{layer}.mlp.experts"
        whole = one.made(f"{at}.gate_up_proj", fused.__getitem__, moves)
        down = one.made(f"{at}.down_proj", fused.__getitem__, moves)
        for expert in range(4):
            pieces = [
                other.made(f"{at}.{expert}.{kind}_proj.weight", apart.__getitem__, moves)
                for kind in ("gate", "up", "down")
            ]
            assert torch.equal(torch.cat(pieces[:2]), whole[expert])
            assert torch.equal(pieces[2], down[expert])
