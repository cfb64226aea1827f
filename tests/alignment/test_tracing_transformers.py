"""Symmetries traced in language and vision models of transformers, made from a config with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eutectic.alignment.proof import check
from eutectic.alignment.tracing import traced

transformers = pytest.importorskip("transformers")

IDS = torch.randint(1, 11, (2, 4), generator=torch.Generator().manual_seed(0))
SMALL = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 6, "num_hidden_layers": 1, "pad_token_id": 0}
LLAMA = {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 8}
BERT = {**SMALL, "num_attention_heads": 2, "max_position_embeddings": 8}
GPT2 = {"vocab_size": 11, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8, "n_inner": 6}
VIT = {**SMALL, "num_attention_heads": 2, "image_size": 4, "patch_size": 2}
GROUPED = [2, 4, 4, 6, 16]  # key heads, query heads, coordinates of values, units, residual stream
PLAIN = [2, 6, 16, 16, 16]  # heads, units; coordinates of queries and keys, of values, residual stream

CASES: dict[str, tuple[str, str, dict[str, Any], list[int]]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT2, PLAIN),
    "bert": ("BertConfig", "BertForSequenceClassification", BERT, sorted([*PLAIN, 16])),  # and the pooler
    "llama": ("LlamaConfig", "LlamaForCausalLM", LLAMA, GROUPED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", LLAMA, GROUPED),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", LLAMA, GROUPED),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", LLAMA, GROUPED),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {**LLAMA, "num_local_experts": 3}, GROUPED),
    "vit": ("ViTConfig", "ViTForImageClassification", VIT, PLAIN),
}


@pytest.mark.parametrize("name", CASES)
def test_models_of_transformers(name: str) -> None:
    config, model, sizes, due = CASES[name]
    torch.manual_seed(0)
    net = getattr(transformers, model)(getattr(transformers, config)(**sizes))
    inputs = {"pixel_values": torch.randn(2, 3, 4, 4)} if name == "vit" else {"input_ids": IDS}
    table = traced(net, **inputs)
    assert sorted(group.size for group in table.groups.values()) == due
    assert set(table.axes) == set(net.state_dict())
    found = check(net, table, inputs, elements=1)
    assert found.holds, str(found)
