"""Output heads that config.json ties to the embeddings, whatever the weight files say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eutectic.checkpoint.source import Spec

HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
WHY = "config.json ties it to {}; if it is a head of its own, set tie_word_embeddings to false there"


def embedding_of_head(config: Any, specs: Mapping[str, Spec]) -> str | None:
    """The one embedding that `lm_head.weight` is tied to by a config, whether the head is stored or not, or None.

    Args:
        config: the content of config.json; anything but a mapping ties nothing.
        specs: the stored tensors.
    """
    if not isinstance(config, dict) or config.get("tie_word_embeddings") is not True:
        return None
    found = [
        name
        for name, spec in specs.items()
        if name.endswith(_EMBEDDINGS) and (HEAD not in specs or specs[HEAD].shape == spec.shape)
    ]
    return found[0] if len(found) == 1 else None
