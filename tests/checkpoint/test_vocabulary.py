"""The numbers of tokens, from whichever file of a tokenizer says them, and how two vocabularies differ."""

from __future__ import annotations

import json

import pytest

from eutectic.checkpoint.vocabulary import are_apart, differing, same_numbers, tokens_of

TABLE = {"a": 0, "b": 1, "c": 2}
ADDED = b'{"added_tokens_decoder": {"2": {"content": "c"}, "x": {"content": "d"}, "3": {"content": 3}, "4": "e"}}'


def in_tokenizer(vocab: object, added: object = None) -> dict[str, bytes]:
    return {"tokenizer.json": json.dumps({"model": {"vocab": vocab}, "added_tokens": added}).encode()}


@pytest.mark.parametrize(
    "files",
    [
        in_tokenizer({"a": 0, "b": 1}, [{"content": "c", "id": 2}, {"content": 7, "id": 3}, "d"]),
        in_tokenizer([["a", -1.0], ["b", -2.0], ["c", -3.5]]),
        {"vocab.json": b'{"a": 0, "b": 1, "x": "2"}', "added_tokens.json": b'{"c": 2}'},
        {"vocab.json": b'{"a": 0, "b": 1, "c": 2}'},
        {"vocab.txt": b"a\nb\nc\n"},
        {"vocab.txt": b"a\r\nb\r\nc"},
        {"vocab.txt": b"a\nb\n", "tokenizer_config.json": ADDED},
        {"vocab.json": b'{"a": 0, "b": 1}', "tokenizer_config.json": ADDED},
        {"tokenizer.json": b"{", "vocab.txt": b"a\nb\nc\n"},
        {"tokenizer.json": b"[" * 100_000, "vocab.txt": b"a\nb\nc\n"},
    ],
)
def test_every_kind_of_file_is_read(files: dict[str, bytes]) -> None:
    assert tokens_of(files) == TABLE


@pytest.mark.parametrize("files", [{}, {"vocab.json": b"3"}, in_tokenizer(None), {"tokenizer.json": b"null"}])
def test_what_says_nothing(files: dict[str, bytes]) -> None:
    assert tokens_of(files) == {}


@pytest.mark.parametrize(
    ("change", "apart"),
    [
        ({"new": 200}, False),
        ({"0": 1, "1": 0}, False),
        ({"0": 2, "1": 0, "2": 1}, True),
        ({str(i): i + 200 for i in range(3)}, True),
    ],
)
def test_a_few_tokens_in_other_rows_leave_vocabularies_one(change: dict[str, int], apart: bool) -> None:
    many = {str(i): i for i in range(200)}
    assert are_apart(many, many | change) is are_apart(many | change, many) is apart


def test_other_tokens_in_the_same_rows_are_another_vocabulary() -> None:
    """A few reserved rows may be used; rows that are all used for other words are not nearly the same."""
    many = {str(i): i for i in range(200)}
    for renamed, apart in ((10, False), (11, True), (197, True)):
        other = {(f"word{i}" if i < renamed else str(i)): i for i in range(200)}
        assert are_apart(many, other) is are_apart(other, many) is apart
    longer = many | {f"added{i}": 200 + i for i in range(1000)}
    assert not are_apart(many, longer) and not are_apart(longer, many)
    assert are_apart(TABLE, {"x": 0}) and are_apart(TABLE, {"x": 9})


def test_a_token_may_be_what_ends_a_line_elsewhere() -> None:
    assert tokens_of({"vocab.txt": "a\n\u2028\nc\n".encode()}) == {"a": 0, "\u2028": 1, "c": 2}


def test_which_tokens_differ() -> None:
    assert differing(TABLE, TABLE) == ([], [])
    assert differing(TABLE, {"d": 5, "c": 0, "a": 2, "e": 4}) == (["a", "c"], ["b", "e", "d"])
    assert differing({"c": 0, "a": 2}, TABLE) == (["c", "a"], ["b"])


def test_the_same_bytes_are_the_same_numbers_whatever_the_format() -> None:
    one = {"tokenizer.model": b"pieces", "tokenizer_config.json": ADDED}
    assert same_numbers(one, one)
    assert same_numbers(one, one | {"tokenizer_config.json": ADDED + b" "})
    assert not same_numbers(one, one | {"tokenizer_config.json": b"{}"})
    assert not same_numbers(one, one | {"tokenizer.model": b"others"})
    assert not same_numbers(one, one | {"vocab.json": b"{}"})
    assert not same_numbers({"tokenizer_config.json": ADDED}, {"tokenizer_config.json": ADDED})
