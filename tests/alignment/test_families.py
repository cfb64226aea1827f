"""What is declared for families of transformers holds: random elements leave outputs as they were in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from family_nets import TOKENS, config_of, specs_of, transformer, tried

from eutectic.alignment.families import attempt
from eutectic.alignment.moves import random_moves
from eutectic.alignment.proof import check
from eutectic.checkpoint.source import Spec
from eutectic.checkpoint.symmetry import Symmetries

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "num_local_experts": 4, "moe_intermediate_size": 12}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 20}
BERT = {"max_position_embeddings": 20}
DISTILBERT = {"dim": 16, "hidden_dim": 24, "n_heads": 4, "n_layers": 2, "max_position_embeddings": 20}
RMS, MLP, HEADS = "residual:sign", "mlp:any", "heads queries"
LLAMA = f"{RMS} {HEADS} {MLP}"
ROTARY, NORMED = "keys:rotary values:linear", "values:linear"
LINEAR = "keys:linear values:linear"

# Model type, class, sizes → the groups and gauges that one layer and the whole have.
DECODERS: list[tuple[str, str, Mapping[str, Any], str]] = [
    ("llama", "CausalLM", {}, f"{LLAMA} {ROTARY}"),
    ("llama", "CausalLM", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}, f"{LLAMA} {ROTARY}"),
    ("llama", "CausalLM", {"num_key_value_heads": 4}, f"{RMS} heads {MLP} {ROTARY}"),
    ("llama", "CausalLM", {"num_key_value_heads": 1, "head_dim": 6}, f"{LLAMA} {ROTARY}"),
    ("llama", "SequenceClassification", {}, f"{LLAMA} {ROTARY}"),
    ("llama", "", {}, f"{HEADS} {MLP} {ROTARY}"),
    ("mistral", "CausalLM", {}, f"{LLAMA} {ROTARY}"),
    ("granite", "CausalLM", {}, f"{LLAMA} {ROTARY}"),
    ("smollm3", "CausalLM", {}, f"{LLAMA} {ROTARY}"),
    ("gemma", "CausalLM", {"head_dim": 8}, f"{LLAMA} {ROTARY}"),
    ("gemma2", "CausalLM", {"head_dim": 8}, f"{LLAMA} {ROTARY}"),
    ("gemma3_text", "CausalLM", {"head_dim": 8}, f"{LLAMA} {NORMED}"),
    ("qwen2", "CausalLM", {}, f"{LLAMA} {ROTARY}"),
    ("qwen3", "CausalLM", {"head_dim": 8}, f"{LLAMA} {NORMED}"),
    ("phi3", "CausalLM", {}, f"{LLAMA} {ROTARY}"),
    ("olmo", "CausalLM", {}, f"residual: {HEADS} {MLP} {ROTARY}"),
    ("olmo", "CausalLM", {"clip_qkv": 0.1}, f"residual: {HEADS} {MLP}"),
    ("olmo2", "CausalLM", {}, f"{LLAMA} {NORMED}"),
    ("olmo3", "CausalLM", {}, f"{LLAMA} {NORMED}"),
    ("stablelm", "CausalLM", {}, f"residual: {HEADS} {MLP} {NORMED}"),
    ("starcoder2", "CausalLM", {}, f"residual: {HEADS} mlp: {ROTARY}"),
    ("phi", "CausalLM", {}, f"residual: {HEADS} mlp: {NORMED}"),
    ("mixtral", "CausalLM", EXPERTS, f"{RMS} {HEADS} experts expert.0:any expert.3:any {ROTARY}"),
    ("olmoe", "CausalLM", EXPERTS, f"{RMS} {HEADS} experts expert.0:any expert.3:any {NORMED}"),
    (
        "qwen2_moe",
        "CausalLM",
        {**EXPERTS, "shared_expert_intermediate_size": 20, "mlp_only_layers": [1]},
        f"{RMS} {HEADS} experts expert.0:any shared:any {ROTARY}",
    ),
    ("qwen3_moe", "CausalLM", EXPERTS, f"{RMS} {HEADS} experts expert.0:any {NORMED}"),
    ("gpt2", "CausalLM", GPT2, f"residual: heads mlp: {LINEAR}"),
    ("gpt2", "SequenceClassification", GPT2, f"residual: heads mlp: {LINEAR}"),
    ("gpt2", "", GPT2, f"heads mlp: {LINEAR}"),
    (
        "gpt_neo",
        "CausalLM",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        f"residual: heads mlp: {LINEAR}",
    ),
    ("gpt_neox", "CausalLM", {}, "residual: heads: mlp:"),
    (
        "opt",
        "CausalLM",
        {"ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 20},
        f"residual: heads mlp:positive {LINEAR}",
    ),
]
ENCODERS: list[tuple[str, str, Mapping[str, Any], str]] = [
    ("bert", "", BERT, f"heads mlp: {LINEAR}"),
    ("bert", "MaskedLM", BERT, f"residual: heads mlp: {LINEAR}"),
    ("bert", "MaskedLM", {**BERT, "hidden_act": "relu"}, f"residual: heads mlp:positive {LINEAR}"),
    ("bert", "PreTraining", BERT, f"residual: heads mlp: pooler:sign {LINEAR}"),
    ("bert", "SequenceClassification", BERT, f"residual: heads mlp: pooler:sign {LINEAR}"),
    ("bert", "TokenClassification", BERT, f"residual: heads mlp: {LINEAR}"),
    ("bert", "QuestionAnswering", BERT, f"residual: heads mlp: {LINEAR}"),
    ("roberta", "MaskedLM", BERT, f"residual: heads mlp: {LINEAR}"),
    ("roberta", "SequenceClassification", BERT, f"residual: heads mlp: pooler:sign {LINEAR}"),
    ("distilbert", "MaskedLM", DISTILBERT, f"residual: heads mlp: {LINEAR}"),
    ("distilbert", "SequenceClassification", DISTILBERT, f"residual: heads mlp: pre_classifier:positive {LINEAR}"),
]


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
