"""Where the config.json of several models contradict each other: data, from which nothing is made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from eutectic.errors import listed

CONFIG = "config.json"
# Keys that cut tensors of the same shape into other parts: averaging those would mix unlike things.
_CUTS = ("num_attention_heads", "num_key_value_heads", "head_dim", "n_head", "num_heads", "num_local_experts")
# Keys that say nothing about what the weights mean: where they come from, how they were trained, what shapes say, and
# what id2label says.
_SILENT = {
    "_name_or_path",
    "_attn_implementation_autoset",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "dtype",
    "embd_pdrop",
    "hidden_dropout_prob",
    "initializer_range",
    "label2id",
    "resid_pdrop",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vocab_size",
}
# Models whose value is told of one key, and characters of a value.
_MODELS, _LONG = 8, 60


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A key of config.json that has several values: (label of a model, value), for the models that have it.

    `cuts`: tensors of the same shape are cut into other parts.
    """

    key: str
    values: tuple[tuple[str, Any], ...]
    cuts: bool

    def __str__(self) -> str:
        told = listed([f"{label} {_short(value)}" for label, value in self.values], _MODELS)
        return f"config.json says {self.key}: {told}"


def contradictions(configs: Iterable[tuple[str, Any]]) -> list[Contradiction]:
    """What (label, content of config.json) contradict each other in; what is no mapping says nothing."""
    known = [(label, config) for label, config in configs if isinstance(config, dict)]
    found = []
    for key in dict.fromkeys(key for _, config in known for key in config):
        values = tuple((label, config[key]) for label, config in known if key in config)
        if key not in _SILENT and any(value != values[0][1] for _, value in values):
            found.append(Contradiction(key, values, key in _CUTS))
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}…"
