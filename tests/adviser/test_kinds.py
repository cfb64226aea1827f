"""What a tensor is, told from its name, in the families of models that people merge."""

from __future__ import annotations

import pytest
import torch

import eutectic
from eutectic.names import kind_of

NAMES = {
    "embedding": [
        "model.embed_tokens.weight",
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "embeddings.word_embeddings.weight",
        "vision_model.embeddings.patch_embedding.weight",
        "shared_embd.weight",
    ],
    "attention": [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.o_proj.bias",
        "transformer.h.3.attn.c_attn.weight",
        "encoder.layer.0.attention.output.dense.weight",
        "encoder.layer.0.attention.self.query.weight",
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "gpt_neox.layers.1.attention.query_key_value.weight",
    ],
    "mlp": [
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.block_sparse_moe.experts.3.w1.weight",
        "transformer.h.3.mlp.c_fc.weight",
        "encoder.layer.0.intermediate.dense.weight",
        "encoder.layer.0.output.dense.weight",
        "encoder.block.0.layer.1.DenseReluDense.wi.weight",
    ],
    "norm": [
        "model.norm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "transformer.ln_f.bias",
        "transformer.h.0.ln_1.weight",
        "encoder.layer.0.attention.output.LayerNorm.weight",
        "embeddings.LayerNorm.weight",
        "layer1.0.bn1.running_mean",
    ],
    "head": ["lm_head.weight", "classifier.bias", "score.weight", "embed_out.weight", "head.weight", "output.weight"],
    "other": ["pooler.weight", "w", "logit_scale", "conv1.weight"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_kinds(kind: str, name: str) -> None:
    assert kind_of(name) == kind


def test_the_order_of_models_only_orders_the_answer() -> None:
    generator = torch.Generator().manual_seed(4)
    base = {"w": torch.randn(40, 30, generator=generator)}
    models = [{"w": base["w"] + 0.02 * k * torch.randn(40, 30, generator=generator)} for k in (1, 2, 3)]
    there, back = (eutectic.compare(row, base=base).whole for row in (models, models[::-1]))
    assert there is not None and back is not None
    for a in range(3):
        assert there.change(a) == back.change(2 - a)
        assert there.rank(a) == back.rank(2 - a)
        for b in range(3):
            for name in ("cosine", "opposed", "opposed_by_size", "overlap", "overlap_by_chance"):
                assert getattr(there, name)(a, b) == getattr(back, name)(2 - a, 2 - b)
