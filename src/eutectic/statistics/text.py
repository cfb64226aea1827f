"""Local text → sequences of tokens for a causal language model, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from eutectic.errors import Problem, RecipeError
from eutectic.evaluate.data import DataTask
from eutectic.evaluate.language import Language, Row, alike, padded
from eutectic.evaluate.options import option
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

# Tokens of a sequence where nothing is said, and the model takes as many.
LENGTH = 512
# What stands for "no target" among targets, as in cross_entropy.
IGNORED = -100


@dataclass(frozen=True)
class Text(DataTask):
    """Text for a causal language model: a sample is a sequence of at most `length` tokens.

    A `.jsonl` file has one document a line, any other file is one document. Each begins after the tokenizer's own
    opening (or its BOS or EOS token), and is cut into sequences where it is longer: each token is an input once and
    predicted once, from those before it in its sequence. With `pack` documents follow one another, each with its
    opening, so that all sequences but the last are full; tokens then see the end of the document before.

    Attributes:
        data: the file.
        field: of a `.jsonl` file, the key of the text.
        length: tokens a sequence; None: 512, or what the model takes if that is less.
        pack: whether documents are joined.
    """

    kind: ClassVar[str] = "text"
    field: str = option("text")
    length: int | None = option(None, least=2)
    pack: bool = option(False)

    @cached_property
    def documents(self) -> list[str]:
        """The documents, those of white space alone left out. Raises `RecipeError` (E904)."""
        return self.with_text(self._all)

    @property
    def empty(self) -> int:
        """How many documents are left out."""
        return len(self._all) - len(self.documents)

    @cached_property
    def _all(self) -> list[str]:
        return self.all_texts(self.field)

    def sequences(self, language: Language) -> list[Row]:
        """Every sequence, each with the token that is predicted last. Raises `RecipeError` (E907, F101)."""
        length = min(LENGTH, language.limit or LENGTH) if self.length is None else self.length
        if language.limit is not None and length > language.limit:
            message = f"{language.label!r} takes {language.limit} tokens, a sequence is to have {length}"
            raise RecipeError(Problem("E907", message, "length", f"give {language.limit} or less"))
        texts = [language.document(text) for text in self.documents]
        if self.pack:
            texts = [[token for text in texts for token in text]]
        first = language.first
        found = [row for text in texts if len(text) > first for row in _cut(text, length, first)]
        if not found:
            raise RecipeError(Problem("F101", "no document has a token to predict", "data", file=self.data))
        return found


def _cut(tokens: list[int], length: int, first: int) -> Iterator[Row]:
    """Sequences of `length` inputs, one behind the other, that predict every token from `first` on."""
    for start in range(0, len(tokens) - 1, length):
        yield Row(tokens[start : start + length + 1], max(1, first - start))


def batches_of(rows: Sequence[Row], size: int) -> Iterator[dict[str, Any]]:
    """Batches of `size` sequences of like lengths, padded on the right: the inputs, their mask, and the targets."""
    for numbers in alike([row.tokens for row in rows], size):
        chosen = [rows[i] for i in numbers]
        tokens, mask = padded([row.tokens[:-1] for row in chosen])
        targets = torch.full_like(tokens, IGNORED)
        for place, row in enumerate(chosen):
            targets[place, row.first - 1 : len(row.tokens) - 1] = torch.tensor(row.tokens[row.first :])
        yield {"input_ids": tokens, "attention_mask": mask, "targets": targets}
