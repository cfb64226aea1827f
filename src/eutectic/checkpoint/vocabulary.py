"""Which token has which number: from the small files of a tokenizer, as data, and whether two vocabularies are one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

# Fine-tunes put a few tokens of their own into reserved rows. Where more than this share of the tokens stands in
# other rows, rows of the embeddings that mean different words would be averaged.
MOVED_TOKENS = 0.01


class Moved(NamedTuple):
    """How two vocabularies differ: tokens that have other numbers, and tokens that are in one only.

    `apart`: so many that rows of the embeddings mean different tokens.
    """

    moved: int
    extra: int
    apart: bool

    def __str__(self) -> str:
        return f"{self.moved} tokens have other numbers, {self.extra} are in one only"


def moved_tokens(first: Mapping[str, int], other: Mapping[str, int]) -> Moved:
    """Compares two vocabularies, neither of them empty."""
    moved = sum(other.get(token, at) != at for token, at in first.items())
    apart = moved > MOVED_TOKENS * len(first) or not other.keys() & first.keys()
    return Moved(moved, len(other.keys() ^ first.keys()), apart)


def tokens_of(files: Mapping[str, bytes]) -> dict[str, int]:
    """Token → number, from the file that says it best; empty if none does."""
    found = json_of(files.get("tokenizer.json"))
    if isinstance(found, dict) and isinstance(model := found.get("model"), dict):
        tokens = _numbered(model.get("vocab"))
        added = found.get("added_tokens")
        for one in added if isinstance(added, list) else []:
            if isinstance(one, dict) and isinstance(one.get("content"), str) and isinstance(one.get("id"), int):
                tokens[one["content"]] = one["id"]
        return tokens
    if "vocab.json" in files:
        return _numbered(json_of(files["vocab.json"])) | _numbered(json_of(files.get("added_tokens.json")))
    if "vocab.txt" in files:
        return {token: at for at, token in enumerate(files["vocab.txt"].decode(errors="replace").splitlines())}
    return {}


def json_of(data: bytes | None) -> Any:
    """What a file says; None where there is none or it is damaged."""
    try:
        return None if data is None else json.loads(data)
    except (ValueError, RecursionError):
        return None


def _numbered(vocabulary: Any) -> dict[str, int]:
    """A vocabulary as a table of numbers, or as a list of tokens with their scores."""
    if isinstance(vocabulary, dict):
        return {token: at for token, at in vocabulary.items() if isinstance(at, int)}
    if isinstance(vocabulary, list):
        pairs = enumerate(vocabulary)
        return {str(one[0]): at for at, one in pairs if isinstance(one, list | tuple) and one}
    return {}
