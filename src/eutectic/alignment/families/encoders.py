"""BERT and its kin: layer norms behind the blocks, learned positions, plain units, a pooler or a head over tokens."""

from __future__ import annotations

from eutectic.alignment.families.blocks import Attention, modules
from eutectic.alignment.families.reading import Model
from eutectic.alignment.families.rules import Layout

_BERT = {
    "embeddings.position_ids": "- -",
    "embeddings.token_type_ids": "- -",
    "embeddings.word_embeddings.weight": "- residual",
    "embeddings.position_embeddings.weight": "- residual",
    "embeddings.token_type_embeddings.weight": "- residual",
    **modules(
        {
            "embeddings.LayerNorm": "=residual",
            "encoder.layer.{}.attention.self.query": "@query <residual",
            "encoder.layer.{}.attention.self.key": "@key <residual",
            "encoder.layer.{}.attention.self.value": "@value <residual",
            "encoder.layer.{}.attention.output.dense": "residual @out",
            "encoder.layer.{}.attention.output.LayerNorm": "=residual",
            "encoder.layer.{}.intermediate.dense": "@mlp <residual",
            "encoder.layer.{}.output.dense": "residual <@mlp",
            "encoder.layer.{}.output.LayerNorm": "=residual",
        }
    ),
}
# Old files call gains and biases of norms so.
_BERT |= {
    name.replace(".weight", ".gamma").replace(".bias", ".beta"): axes
    for name, axes in _BERT.items()
    if ".LayerNorm." in name
}
_DISTILBERT = {
    "embeddings.word_embeddings.weight": "- residual",
    "embeddings.position_embeddings.weight": "- residual",
    **modules(
        {
            "embeddings.LayerNorm": "=residual",
            "transformer.layer.{}.attention.q_lin": "@query <residual",
            "transformer.layer.{}.attention.k_lin": "@key <residual",
            "transformer.layer.{}.attention.v_lin": "@value <residual",
            "transformer.layer.{}.attention.out_lin": "residual @out",
            "transformer.layer.{}.sa_layer_norm": "=residual",
            "transformer.layer.{}.ffn.lin1": "@mlp <residual",
            "transformer.layer.{}.ffn.lin2": "residual <@mlp",
            "transformer.layer.{}.output_layer_norm": "=residual",
        }
    ),
}
# Over tokens, the layer before the embedding is in the embedding's terms: the residual stream on both sides.
_TOKENS = {
    "cls.predictions.bias": "-",
    "cls.predictions.transform.LayerNorm.gamma": "=residual",
    "cls.predictions.transform.LayerNorm.beta": "residual",
    "lm_head.bias": "-",
    **modules(
        {
            "cls.predictions.transform.dense": "residual <residual",
            "cls.predictions.transform.LayerNorm": "=residual",
            "cls.predictions.decoder": "- <residual",
            "lm_head.dense": "residual <residual",
            "lm_head.layer_norm": "=residual",
            "lm_head.decoder": "- <residual",
            "vocab_transform": "residual <residual",
            "vocab_layer_norm": "=residual",
            "vocab_projector": "- <residual",
            "qa_outputs": "- <residual",
        }
    ),
}
TYPES = {
    "bert": (_BERT, "bert."),
    "roberta": (_BERT, "roberta."),
    "xlm-roberta": (_BERT, "roberta."),
    "camembert": (_BERT, "roberta."),
    "distilbert": (_DISTILBERT, "distilbert."),
}


def encoder(model: Model, kind: str) -> Layout:
    """The layout of a model of one of `TYPES`. The vectors of a model without a head are its output, and stay."""
    rules, prefix = TYPES[kind]
    heads = model.number("num_attention_heads", "n_heads")
    return Layout(
        kind,
        rules | _TOKENS | modules(_classifier(model)),
        prefix,
        Attention(heads, heads, model.number("hidden_size", "dim") // heads, "linear"),
        {
            "mlp": model.behind_relu(),
            # tanh is odd; a ReLU stands behind DistilBERT's.
            "pooler": "sign",
            "pre_classifier": "positive",
        },
        fixed=model.anchored(("cls.", "lm_head.", "vocab_", "qa_outputs.", "classifier.")) | _unread(model),
    )


def _classifier(model: Model) -> dict[str, str]:
    """Rules of what follows the body: a classifier reads the pooler, a layer of its own, or the body itself."""
    pooled = {"pooler.dense": "pooler <residual", "cls.seq_relationship": "- <pooler"}
    if model.has("classifier.out_proj.weight"):
        return pooled | {"classifier.dense": "pooler <residual", "classifier.out_proj": "- <pooler"}
    if model.has("pre_classifier.weight"):
        return {"pre_classifier": "pre_classifier <residual", "classifier": "- <pre_classifier"}
    return pooled | {"classifier": "- <pooler" if _pools(model) else "- <residual"}


def _pools(model: Model) -> bool:
    """Whether a classifier reads the pooler: old files have one beside a classifier of tokens, which nothing reads."""
    of_tokens = any(one.endswith("ForTokenClassification") for one in model.classes())
    return model.has("pooler.dense.weight") and not of_tokens


def _unread(model: Model) -> frozenset[str]:
    """The pooler, where it is the output."""
    pools = _pools(model) or model.has("classifier.dense.weight")
    read = ("cls.seq_relationship.", "classifier.") if pools else ("cls.seq_relationship.",)
    return frozenset(() if any(name.startswith(read) for name in model.specs) else ("pooler",))
