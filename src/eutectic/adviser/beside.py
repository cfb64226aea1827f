"""What stands beside the weights: the config, and which token has which number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eutectic.checkpoint import Source
from eutectic.checkpoint.companions import files_named
from eutectic.checkpoint.vocabulary import json_of, tokens_of
from eutectic.kernels.digests import block_digest, digest_of

_TOKENIZER = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


@dataclass(frozen=True, slots=True)
class Beside:
    """`config` as read, `tokenizer` file → digest, and `tokens` → number (empty if no file tells)."""

    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, str] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)


def beside(source: Source) -> Beside:
    """Reads the small files of a model's folder; a model without one has none. They are data and never run.

    Raises `CheckpointError` for a file that cannot be read or that a link leads out of the folder.
    """
    folder = source.folder()
    files = files_named(folder, _TOKENIZER, source.label)
    config = json_of(files_named(folder, ["config.json"], source.label).get("config.json"))
    return Beside(
        config if isinstance(config, dict) else {},
        {name: digest_of([block_digest(data)]) for name, data in files.items()},
        tokens_of(files),
    )
