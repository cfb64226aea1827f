"""GPT-2, GPT-Neo, GPT-NeoX and OPT: layer norms, learned positions or rotary ones, plain units."""

from __future__ import annotations

from eutectic.alignment.families.blocks import Attention, modules
from eutectic.alignment.families.reading import Model
from eutectic.alignment.families.rules import Layout

_HEADS = {"lm_head.weight": "- <residual", "score.weight": "- <residual"}
_NORMS = modules({"h.{}.ln_1": "=residual", "h.{}.ln_2": "=residual", "ln_f": "=residual"})
_EMBEDDINGS = {"wte.weight": "- residual", "wpe.weight": "- residual"}

# Weights are (in, out) here; masks are buffers of old files.
_GPT2 = {
    **_HEADS,
    **_NORMS,
    **_EMBEDDINGS,
    "h.{}.attn.bias": "- - - -",
    "h.{}.attn.masked_bias": "",
    "h.{}.attn.c_attn.weight": "<residual @query+@key+@value",
    "h.{}.attn.c_attn.bias": "@query+@key+@value",
    "h.{}.attn.c_proj.weight": "@out residual",
    "h.{}.attn.c_proj.bias": "residual",
    "h.{}.mlp.c_fc.weight": "<residual @mlp",
    "h.{}.mlp.c_fc.bias": "@mlp",
    "h.{}.mlp.c_proj.weight": "<@mlp residual",
    "h.{}.mlp.c_proj.bias": "residual",
}
_GPT_NEO = {
    **_HEADS,
    **_NORMS,
    **_EMBEDDINGS,
    "h.{}.attn.attention.bias": "- - - -",
    "h.{}.attn.attention.masked_bias": "",
    **modules(
        {
            "h.{}.attn.attention.q_proj": "@query <residual",
            "h.{}.attn.attention.k_proj": "@key <residual",
            "h.{}.attn.attention.v_proj": "@value <residual",
            "h.{}.attn.attention.out_proj": "residual @out",
            "h.{}.mlp.c_fc": "@mlp <residual",
            "h.{}.mlp.c_proj": "residual <@mlp",
        }
    ),
}
_OPT = {
    **_HEADS,
    "embed_tokens.weight": "- residual",
    "embed_positions.weight": "- residual",
    **modules(
        {
            "final_layer_norm": "=residual",
            "layers.{}.self_attn_layer_norm": "=residual",
            "layers.{}.final_layer_norm": "=residual",
            "layers.{}.self_attn.q_proj": "@query <residual",
            "layers.{}.self_attn.k_proj": "@key <residual",
            "layers.{}.self_attn.v_proj": "@value <residual",
            "layers.{}.self_attn.out_proj": "residual @out",
            "layers.{}.fc1": "@mlp <residual",
            "layers.{}.fc2": "residual <@mlp",
        }
    ),
}
# Queries, keys and values of a head stand together in its rows, so that heads change places and nothing inside does.
_GPT_NEOX = {
    "embed_out.weight": "- <residual",
    "lm_head.weight": "- <residual",
    "embed_in.weight": "- residual",
    "layers.{}.attention.rotary_emb.inv_freq": "-",
    "layers.{}.attention.bias": "- - - -",
    "layers.{}.attention.masked_bias": "",
    **modules(
        {
            "final_layer_norm": "=residual",
            "layers.{}.input_layernorm": "=residual",
            "layers.{}.post_attention_layernorm": "=residual",
            "layers.{}.attention.query_key_value": "@heads* <residual",
            "layers.{}.attention.dense": "residual <@heads*",
            "layers.{}.mlp.dense_h_to_4h": "@mlp <residual",
            "layers.{}.mlp.dense_4h_to_h": "residual <@mlp",
        }
    ),
}
TYPES = {
    "gpt2": (_GPT2, "transformer."),
    "gpt_neo": (_GPT_NEO, "transformer."),
    "gpt_neox": (_GPT_NEOX, "gpt_neox."),
    "opt": (_OPT, "model.decoder."),
}


def gpt(model: Model, kind: str) -> Layout:
    """The layout of a model of one of `TYPES`. Keys have the whole linear gauge, as no rotation stands in between."""
    rules, prefix = TYPES[kind]
    heads = model.number("num_attention_heads", "n_head", "num_heads")
    width = model.number("hidden_size", "n_embd")
    return Layout(
        kind,
        rules,
        prefix,
        None if kind == "gpt_neox" else Attention(heads, heads, width // heads, "linear"),
        {"mlp": model.behind_relu()},
        sizes={"heads": heads},
        fixed=model.anchored(("lm_head.", "score.", "embed_out.")),
    )
