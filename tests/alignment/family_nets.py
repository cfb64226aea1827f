"""Tiny networks of many families, with nothing at its initial value, and how they are proved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn

from eutectic.alignment.families import Attempt, attempt
from eutectic.checkpoint.source import Spec

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
TOKENS = {"input_ids": torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(0))}


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64, each parameter and statistic drawn anew: gains near 1, biases not 0."""
    draw = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point() or "inv_freq" in name:
            continue
        gain = tensor.dim() == 1 and name.endswith(("weight", "running_var", "gamma"))
        noise = torch.randn(tensor.shape, generator=draw, dtype=torch.float64) * 0.2
        tensor.data.copy_(noise.abs() + 0.7 if gain else noise)
    return module


def transformer(kind: str, head: str = "AutoModelForCausalLM", **sizes: Any) -> Any:
    """A tiny module of transformers, of one of its model types."""
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **sizes})
    made = getattr(transformers, head).from_config(config, attn_implementation="eager", experts_implementation="eager")
    return drawn(made)


def specs_of(module: nn.Module) -> dict[str, Spec]:
    """Every name of a module's tensors, tied ones too."""
    return {name: Spec("float64", tuple(tensor.shape)) for name, tensor in module.state_dict().items()}


def config_of(module: Any) -> Mapping[str, Any]:
    """What the config.json of a module of transformers says."""
    return {**module.config.to_dict(), "architectures": [type(module).__name__]}


def tried(module: nn.Module, config: Mapping[str, Any] | None = None) -> Attempt:
    """What is declared for a module."""
    return attempt(specs_of(module), config_of(module) if hasattr(module, "config") else config)


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
