"""Llama and its kin: RMS norms (or layer norms), rotary embeddings, gated units, mixtures of experts.

Under norms with gains the units of the residual stream may change places; under RMS norms each may change its sign too,
and its gain stays as it is. A norm of queries and keys leaves no other basis for them.
"""

from __future__ import annotations

from typing import Literal

from eutectic.alignment.families.blocks import Attention, modules
from eutectic.alignment.families.reading import Model
from eutectic.alignment.families.rules import Layout

_HEADS = {"lm_head.weight": "- <residual", "lm_head.bias": "-", "score.weight": "- <residual"}
_NORMS = (
    "norm",
    "final_layernorm",
    "layers.{}.input_layernorm",
    "layers.{}.post_attention_layernorm",
    "layers.{}.pre_feedforward_layernorm",
    "layers.{}.post_feedforward_layernorm",
)
_BODY = {
    "embed_tokens.weight": "- residual",
    "rotary_emb.inv_freq": "-",
    "layers.{}.self_attn.rotary_emb.inv_freq": "-",
    **{f"{norm}.weight": "=residual" for norm in _NORMS},
    **{f"{norm}.bias": "residual" for norm in _NORMS},
    **modules(
        {
            "layers.{}.self_attn.q_proj": "@query <residual",
            "layers.{}.self_attn.k_proj": "@key <residual",
            "layers.{}.self_attn.v_proj": "@value <residual",
            "layers.{}.self_attn.qkv_proj": "@query+@key+@value <residual",
            "layers.{}.self_attn.o_proj": "residual @out",
            "layers.{}.self_attn.dense": "residual @out",
        }
    ),
}
_GATED = modules(
    {
        "layers.{}.mlp.gate_proj": "=@mlp <residual",
        "layers.{}.mlp.up_proj": "@mlp <residual",
        "layers.{}.mlp.gate_up_proj": "=@mlp+@mlp <residual",
        "layers.{}.mlp.down_proj": "residual <@mlp",
    }
)
_PLAIN = modules(
    {
        "layers.{}.mlp.c_fc": "@mlp <residual",
        "layers.{}.mlp.c_proj": "residual <@mlp",
        "layers.{}.mlp.fc1": "@mlp <residual",
        "layers.{}.mlp.fc2": "residual <@mlp",
    }
)
# Experts one tensor each, as files have them, or one behind the other in a third dimension, as live modules do.
_EXPERTS = {
    "layers.{}.mlp.gate.weight": "@experts <residual",
    "layers.{}.mlp.experts.{}.gate_proj.weight": "=@expert <residual",
    "layers.{}.mlp.experts.{}.up_proj.weight": "@expert <residual",
    "layers.{}.mlp.experts.{}.down_proj.weight": "residual <@expert",
    "layers.{}.mlp.experts.gate_up_proj[{}]": "=@expert+@expert <residual",
    "layers.{}.mlp.experts.down_proj[{}]": "residual <@expert",
    "layers.{}.mlp.shared_expert.gate_proj.weight": "=@shared <residual",
    "layers.{}.mlp.shared_expert.up_proj.weight": "@shared <residual",
    "layers.{}.mlp.shared_expert.down_proj.weight": "residual <@shared",
    "layers.{}.mlp.shared_expert_gate.weight": "- <residual",
    "layers.{}.block_sparse_moe.gate.weight": "@experts <residual",
    "layers.{}.block_sparse_moe.experts.{}.w1.weight": "=@expert <residual",
    "layers.{}.block_sparse_moe.experts.{}.w3.weight": "@expert <residual",
    "layers.{}.block_sparse_moe.experts.{}.w2.weight": "residual <@expert",
}
_GAINS_OF_VECTORS = {"layers.{}.self_attn.q_norm.weight": "-", "layers.{}.self_attn.k_norm.weight": "-"}
_GAINS_OF_HEADS = {
    "layers.{}.self_attn.q_norm.weight": "@querygain",
    "layers.{}.self_attn.k_norm.weight": "@keygain",
}

# What a model type has besides the body: its blocks, its norm of queries and keys, whether its norms subtract means.
_Norm = Literal["rms", "layer"]
TYPES: dict[str, tuple[dict[str, str], _Norm]] = {
    "llama": (_GATED, "rms"),
    "mistral": (_GATED, "rms"),
    "ministral": (_GATED, "rms"),
    "granite": (_GATED, "rms"),
    "smollm3": (_GATED, "rms"),
    "gemma": (_GATED, "rms"),
    "gemma2": (_GATED, "rms"),
    "gemma3_text": (_GATED | _GAINS_OF_VECTORS, "rms"),
    "phi3": (_GATED, "rms"),
    "qwen2": (_GATED, "rms"),
    "qwen3": (_GATED | _GAINS_OF_VECTORS, "rms"),
    "olmo": (_GATED, "layer"),
    "olmo2": (_GATED | _GAINS_OF_HEADS, "rms"),
    "olmo3": (_GATED | _GAINS_OF_HEADS, "rms"),
    "stablelm": (_GATED, "layer"),
    "starcoder2": (_PLAIN, "layer"),
    "phi": (_PLAIN, "layer"),
    "mixtral": (_EXPERTS, "rms"),
    "olmoe": (_EXPERTS | _GAINS_OF_HEADS, "rms"),
    "qwen2_moe": (_GATED | _EXPERTS, "rms"),
    "qwen3_moe": (_GATED | _EXPERTS | _GAINS_OF_VECTORS, "rms"),
}
_PARTLY_ROTARY = ("stablelm", "phi")


def decoder(model: Model, kind: str) -> Layout:
    """The layout of a model of one of `TYPES`.

    Left out where they do not hold: the gauge of keys under norms of queries and keys, partial rotary embeddings and
    clipping, that of values under clipping; the residual stream of a model without a head.
    """
    blocks, norm = TYPES[kind]
    heads = model.number("num_attention_heads")
    clipped = model.says("clip_qkv") is not None
    turned = model.has("self_attn.q_norm.weight") or _share_of_rotary(model, kind) != 1 or clipped
    attention = Attention(
        heads,
        model.number("num_key_value_heads", otherwise=heads),
        model.number("head_dim") if model.says("head_dim") else model.number("hidden_size") // heads,
        None if turned else "rotary",
        None if clipped else "linear",
    )
    return Layout(
        kind,
        _HEADS | _BODY | blocks,
        "model.",
        attention,
        {"residual": "sign" if norm == "rms" else "", **_scales(model, blocks)},
        fixed=model.anchored(tuple(_HEADS)),
    )


def _share_of_rotary(model: Model, kind: str) -> float:
    """The share of a head's coordinates that rotary embeddings turn; 0 where only the class knows, or nobody."""
    inner = model.says("rope_parameters")
    stated = inner.get("partial_rotary_factor") if isinstance(inner, dict) else None
    usual = 0 if kind in _PARTLY_ROTARY else 1
    share = model.says("partial_rotary_factor", usual if stated is None else stated)
    return share if isinstance(share, int | float) else 0


def _scales(model: Model, blocks: dict[str, str]) -> dict[str, Literal["", "sign", "positive", "any"]]:
    """Gated units have any scale, those of experts too; plain ones a positive one behind a ReLU."""
    if blocks is _PLAIN:
        return {"mlp": model.behind_relu()}
    return {"mlp": "any", "expert": "any", "shared": "any"}
