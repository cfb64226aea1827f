"""Which token has which number: from the small files of a tokenizer, as data, and whether two vocabularies are one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

# The files that say which token has which number; the config does so of added tokens, beside much else.
VOCABULARY_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
)
# Where more than this share of the tokens stands in other rows, rows that mean different words would be averaged.
MOVED_TOKENS = 0.01
# Fine-tunes put tokens of their own into reserved rows, which are a hundredth of all at most. Where more rows than this
# share stand for other tokens, the words are other ones, though none has moved.
REPLACED_TOKENS = 0.05
# Python does not read a number of thousands of digits.
_NUMBER = re.compile("[0-9]{1,18}")


def are_apart(first: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether two vocabularies, neither empty, are different ones: so many rows mean different tokens in them."""
    moved, _ = differing(first, other)
    named = {at: token for token, at in first.items()}
    replaced = sum(1 for token, at in other.items() if named.get(at, token) != token)
    size = min(len(first), len(other))
    many = len(moved) > MOVED_TOKENS * size or replaced > REPLACED_TOKENS * size
    return many or not other.keys() & first.keys()


def differing(first: Mapping[str, int], other: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """The tokens that have other numbers in another vocabulary, and those that are in one only, by their numbers."""
    moved = [token for token, at in first.items() if other.get(token, at) != at]
    numbers = {**other, **first}
    extra = sorted(first.keys() ^ other.keys(), key=lambda token: (numbers[token], token))
    return sorted(moved, key=first.__getitem__), extra


def same_numbers(first: Mapping[str, bytes], other: Mapping[str, bytes]) -> bool:
    """Whether two tokenizers number their tokens alike because the files that say so are the same byte for byte."""
    names = [name for name in VOCABULARY_FILES if name != "tokenizer_config.json"]
    told = [name for name in names if name in first]
    return bool(told) and all(first.get(name) == other.get(name) for name in names) and _added(first) == _added(other)


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
        return _numbered(json_of(files["vocab.json"])) | _added(files)
    if "vocab.txt" in files:
        # Other characters that end a line elsewhere may be tokens.
        lines = files["vocab.txt"].decode(errors="replace").replace("\r\n", "\n").removesuffix("\n").split("\n")
        return {token: at for at, token in enumerate(lines)} | _added(files)
    return {}


def _added(files: Mapping[str, bytes]) -> dict[str, int]:
    """Tokens that were added to a vocabulary: in a file of their own, later in the config."""
    config = json_of(files.get("tokenizer_config.json"))
    table = config.get("added_tokens_decoder") if isinstance(config, dict) else None
    found = _numbered(json_of(files.get("added_tokens.json")))
    for at, one in table.items() if isinstance(table, dict) else ():
        if _NUMBER.fullmatch(at) and isinstance(one, dict) and isinstance(one.get("content"), str):
            found[one["content"]] = int(at)
    return found


def json_of(data: bytes | None) -> Any:
    """What a file says; None where there is none or it is damaged."""
    try:
        return None if data is None else json.loads(data)
    except (ValueError, RecursionError):
        return None


def json_text(data: Mapping[str, Any]) -> bytes:
    """The content of a JSON file, as checkpoints have it."""
    # A lone surrogate, which JSON can escape and UTF-8 cannot hold, is escaped again.
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _numbered(vocabulary: Any) -> dict[str, int]:
    """A vocabulary as a table of numbers, or as a list of tokens with their scores."""
    if isinstance(vocabulary, dict):
        return {token: at for token, at in vocabulary.items() if isinstance(at, int)}
    if isinstance(vocabulary, list):
        pairs = enumerate(vocabulary)
        return {str(one[0]): at for at, one in pairs if isinstance(one, list | tuple) and one}
    return {}
