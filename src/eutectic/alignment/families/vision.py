"""Vision transformers, as transformers, timm and torchvision name them: layer norms in front, plain units, patches."""

from __future__ import annotations

from eutectic.alignment.families.blocks import Attention, modules
from eutectic.alignment.families.reading import Model
from eutectic.alignment.families.rules import Layout

_EMBEDDINGS = {
    "embeddings.cls_token": "- - residual",
    "embeddings.distillation_token": "- - residual",
    "embeddings.mask_token": "- residual",
    "embeddings.position_embeddings": "- - residual",
    "embeddings.patch_embeddings.projection.weight": "residual - - -",
    "embeddings.patch_embeddings.projection.bias": "residual",
}
_TRANSFORMERS = {
    **_EMBEDDINGS,
    **modules(
        {
            "layernorm": "=residual",
            "pooler.dense": "- <residual",
            "classifier": "- <residual",
            "cls_classifier": "- <residual",
            "distillation_classifier": "- <residual",
            # As files have them.
            "encoder.layer.{}.layernorm_before": "=residual",
            "encoder.layer.{}.layernorm_after": "=residual",
            "encoder.layer.{}.attention.attention.query": "@query <residual",
            "encoder.layer.{}.attention.attention.key": "@key <residual",
            "encoder.layer.{}.attention.attention.value": "@value <residual",
            "encoder.layer.{}.attention.output.dense": "residual @out",
            "encoder.layer.{}.intermediate.dense": "@mlp <residual",
            "encoder.layer.{}.output.dense": "residual <@mlp",
            # As live modules have them.
            "layers.{}.layernorm_before": "=residual",
            "layers.{}.layernorm_after": "=residual",
            "layers.{}.attention.q_proj": "@query <residual",
            "layers.{}.attention.k_proj": "@key <residual",
            "layers.{}.attention.v_proj": "@value <residual",
            "layers.{}.attention.o_proj": "residual @out",
            "layers.{}.mlp.fc1": "@mlp <residual",
            "layers.{}.mlp.fc2": "residual <@mlp",
        }
    ),
}
_TIMM = {
    "cls_token": "- - residual",
    "dist_token": "- - residual",
    "reg_token": "- - residual",
    "pos_embed": "- - residual",
    "patch_embed.proj.weight": "residual - - -",
    "patch_embed.proj.bias": "residual",
    "blocks.{}.ls1.gamma": "=residual",
    "blocks.{}.ls2.gamma": "=residual",
    **modules(
        {
            "norm": "=residual",
            "fc_norm": "=residual",
            "head": "- <residual",
            "head_dist": "- <residual",
            "blocks.{}.norm1": "=residual",
            "blocks.{}.norm2": "=residual",
            "blocks.{}.attn.qkv": "@query+@key+@value <residual",
            "blocks.{}.attn.proj": "residual @out",
            "blocks.{}.mlp.fc1": "@mlp <residual",
            "blocks.{}.mlp.fc2": "residual <@mlp",
        }
    ),
}
_LAYER = "encoder.layers.encoder_layer_{}."
_TORCHVISION = {
    "class_token": "- - residual",
    "encoder.pos_embedding": "- - residual",
    "conv_proj.weight": "residual - - -",
    "conv_proj.bias": "residual",
    f"{_LAYER}self_attention.in_proj_weight": "@query+@key+@value <residual",
    f"{_LAYER}self_attention.in_proj_bias": "@query+@key+@value",
    **modules(
        {
            "encoder.ln": "=residual",
            "heads.head": "- <residual",
            f"{_LAYER}ln_1": "=residual",
            f"{_LAYER}ln_2": "=residual",
            f"{_LAYER}self_attention.out_proj": "residual @out",
            f"{_LAYER}mlp.0": "@mlp <residual",
            f"{_LAYER}mlp.3": "residual <@mlp",
        }
    ),
}
# The tensor that tells whose names they are.
TYPES = {
    "vit": (_TRANSFORMERS, "vit.", "patch_embeddings.projection.weight"),
    "deit": (_TRANSFORMERS, "deit.", "patch_embeddings.projection.weight"),
    "timm vit": (_TIMM, "", "patch_embed.proj.weight"),
    "torchvision vit": (_TORCHVISION, "", "conv_proj.weight"),
}
_HEADS = ("classifier.", "cls_classifier.", "head.", "heads.head.")


def vision(model: Model, kind: str) -> Layout:
    """The layout of a model of one of `TYPES`. Without a head the residual stream is the output, and stays."""
    rules, prefix, _ = TYPES[kind]
    heads = model.number("num_attention_heads", "num_heads")
    width = next((spec.shape[0] for name, spec in model.specs.items() if name.endswith(TYPES[kind][2])), heads)
    return Layout(
        kind,
        rules,
        prefix,
        Attention(heads, heads, width // heads, "linear"),
        {"mlp": model.behind_relu()},
        fixed=model.anchored(_HEADS),
    )
