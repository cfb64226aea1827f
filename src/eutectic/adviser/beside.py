"""What stands beside the weights: the config, and which token has which number."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eutectic.checkpoint import REAL, Source, inside
from eutectic.checkpoint.extents import unreadable
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
    config = _json(_read(folder, "config.json", source.label))
    return Beside(
        config if isinstance(config, dict) else {},
        {name: digest_of([block_digest(data)]) for name, data in files.items()},
        _tokens(files),
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


def _json(data: bytes | None) -> Any:
    try:
        return None if data is None else json.loads(data)
    except (ValueError, RecursionError):
        return None


def _tokens(files: Mapping[str, bytes]) -> dict[str, int]:
    """Token → number, from the file that says it best."""
    found = _json(files.get("tokenizer.json"))
    if isinstance(found, dict) and isinstance(model := found.get("model"), dict):
        tokens = _numbered(model.get("vocab"))
        added = found.get("added_tokens")
        for one in added if isinstance(added, list) else []:
            if isinstance(one, dict) and isinstance(one.get("content"), str) and isinstance(one.get("id"), int):
                tokens[one["content"]] = one["id"]
        return tokens
    if "vocab.json" in files:
        return _numbered(_json(files["vocab.json"])) | _numbered(_json(files.get("added_tokens.json")))
    if "vocab.txt" in files:
        return {token: at for at, token in enumerate(files["vocab.txt"].decode(errors="replace").splitlines())}
    return {}


def _numbered(vocabulary: Any) -> dict[str, int]:
    """A vocabulary as a table of numbers, or as a list of tokens with their scores."""
    if isinstance(vocabulary, dict):
        return {token: at for token, at in vocabulary.items() if isinstance(at, int)}
    if isinstance(vocabulary, list):
        pairs = enumerate(vocabulary)
        return {str(one[0]): at for at, one in pairs if isinstance(one, list | tuple) and one}
    return {}
