"""What stands beside the weights: the config, and which token has which number."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eutectic.checkpoint import REAL, Source, inside
from eutectic.checkpoint.extents import unreadable
from eutectic.checkpoint.vocabulary import json_of, tokens_of
from eutectic.kernels.digests import block_digest, digest_of

_LIMIT = 256 << 20
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
    if folder is None:
        return Beside()
    files = {name: data for name in _TOKENIZER if (data := _read(folder, name, source.label)) is not None}
    config = json_of(_read(folder, "config.json", source.label))
    return Beside(
        config if isinstance(config, dict) else {},
        {name: digest_of([block_digest(data)]) for name, data in files.items()},
        tokens_of(files),
    )


def _read(folder: str, name: str, label: str) -> bytes | None:
    path = os.path.join(folder, name)
    try:
        if not REAL.exists(path):
            return None
        inside(folder, name, label)
        return REAL.read_bytes(path, _LIMIT)
    except OSError as error:
        raise unreadable(error, path, label) from error
