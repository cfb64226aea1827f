"""Every code that can be printed is explained, and every explanation is of a code; the words of messages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import eutectic
from eutectic.api import CODES
from eutectic.errors import RecipeError, several

SOURCES = Path(eutectic.__file__).parent
CODE = re.compile(r'"([A-Z]\d{3})"')


def literals() -> dict[str, int]:
    """How often each code stands in the sources; once is its explanation alone."""
    found: dict[str, int] = {}
    for path in SOURCES.rglob("*.py"):
        for code in CODE.findall(path.read_text()):
            found[code] = found.get(code, 0) + 1
    return found


def test_every_code_is_explained_and_every_explanation_is_used() -> None:
    found = literals()
    assert found.keys() == CODES.keys()
    assert [code for code, count in found.items() if count < 2] == []


@pytest.mark.parametrize("code", sorted(CODES))
def test_an_explanation_reads_well(code: str) -> None:
    title, text = eutectic.explain(code)
    assert eutectic.explain(code.lower()) == (title, text)
    assert title and not title.endswith((".", "!")) and not title[0].isspace()
    assert text.endswith(".") and len(text) > 40 and "!" not in text.replace("!!", "")


def test_no_such_code() -> None:
    with pytest.raises(RecipeError, match=r"^X902 there is no code 'R1'"):
        eutectic.explain("R1")
    with pytest.raises(RecipeError, match=r"^X902 there is no code 101"):
        eutectic.explain(101)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "words", "said"),
    [
        (0, ("tensor",), "0 tensors"),
        (1, ("tensor",), "1 tensor"),
        (12345, ("tensor",), "12,345 tensors"),
        (1, ("batch",), "1 batch"),
        (2, ("batch",), "2 batches"),
        (3, ("pass",), "3 passes"),
        (1, ("step", "is", "are"), "1 step is"),
        (2, ("step", "is", "are"), "2 steps are"),
    ],
)
def test_numbers_go_with_their_nouns(count: int, words: tuple[str, ...], said: str) -> None:
    assert several(count, *words) == said
