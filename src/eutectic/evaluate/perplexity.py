"""Perplexity and bits per byte of local text under a causal language model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from eutectic.checkpoint import Source
from eutectic.errors import Problem, RecipeError
from eutectic.evaluate import options
from eutectic.evaluate.data import DataTask
from eutectic.evaluate.language import Language, Row, log_likelihoods
from eutectic.evaluate.model import Score, Settings, score_of
from eutectic.evaluate.options import option


@dataclass(frozen=True)
class Perplexity(DataTask):
    """exp of the mean negative log-likelihood a token, or bits a byte, of held-out text.

    A `.jsonl` file has one document a line; any other file is one document. Each begins anew after the tokenizer's own
    opening, or else after its BOS or EOS token, so every token is scored, once. A document longer than `block` tokens
    is read in windows: the first scores `block` tokens, each further one the next `stride`, given the `block - stride`
    tokens and one before them. Items are the documents; if there is only one, its windows (neighbours in a text are
    not quite independent, so that interval is a little narrow). They weigh as much as they have tokens (bytes).

    Attributes:
        data: the text.
        name: label; the file's name where it is empty.
        field: of a `.jsonl` file, the key of the text.
        block: tokens a window.
        stride: tokens that each further window scores; None: `block`, so no token is read twice.
        metric: `perplexity`, or `bits_per_byte`, which compares models with different tokenizers.
        dtype: of the arithmetic; None: as stored.
    """

    kind: ClassVar[str] = "perplexity"
    name: str = options.name()
    field: str = option("text")
    block: int = option(512, least=2)
    stride: int | None = option(None, least=1)
    metric: str = option("perplexity", choices=("perplexity", "bits_per_byte"))
    dtype: str | None = options.dtype()
    higher_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride is not None and self.stride > self.block:
            message = f"must be at most block, {self.block}, not {self.stride}"
            raise RecipeError(Problem("E902", message, "stride"))
        if not self.name:
            object.__setattr__(self, "name", self.label())

    @cached_property
    def documents(self) -> list[str]:
        """The documents, those of white space alone left out."""
        return self.texts(self.field)

    def check(self, source: Source, run: Settings) -> None:
        """See `Task.check`."""
        self.windows(Language(source, run), run.chosen(len(self.documents)))

    def score(self, source: Source, run: Settings) -> Score:
        """See `Task.score`."""
        numbers = run.chosen(len(self.documents))
        windows = self.windows(Language(source, run), numbers)
        size = np.array([len(self.documents[i].encode()) for i in numbers], np.float64)
        several = numbers if len(self.documents) > 1 else None
        if several is None:
            # Of one document its windows are the items, so these are what is limited; the bytes go with the tokens.
            several = run.chosen(len(windows))
            before = _scored(windows).sum()
            windows = [windows[i] for i in several]
            size = size * (_scored(windows).sum() / before)
        with run.loader.module(source, "causal", device=run.device, dtype=self.dtype) as model:
            found = log_likelihoods(model, [row for _, row in windows], run.batch, run.tell)
        tokens = _scored(windows)
        owner = np.array([item for item, _ in windows])
        total = -np.bincount(owner, found, len(numbers))
        scored = np.bincount(owner, tokens, len(numbers))
        details = {
            "nll": float(math.fsum(total) / math.fsum(scored)),
            "bits_per_byte": float(math.fsum(total) / math.fsum(size) / math.log(2)),
            "tokens": float(math.fsum(scored)),
            "bytes": float(math.fsum(size)),
        }
        if self.metric == "bits_per_byte":
            # A document is the unit: its bytes cannot be divided among windows of tokens.
            items = np.asarray(total / size / math.log(2))
            return score_of(self, source, run, items, weights=size, details=details, numbers=numbers)
        one = len(self.documents) == 1
        items, weights = (np.asarray(-found / tokens), tokens) if one else (np.asarray(total / scored), scored)
        return score_of(self, source, run, items, weights=weights, scale="exp", details=details, numbers=several)

    def windows(self, language: Language, numbers: list[int]) -> list[tuple[int, Row]]:
        """Every window with the place of its document among those chosen."""
        if language.limit is not None and self.block > language.limit:
            message = f"{language.label!r} takes {language.limit} tokens, a window has {self.block}"
            raise RecipeError(
                Problem("E907", message, "block", f"set block: {language.limit} or less in a task file, for all models")
            )
        found = []
        for place, number in enumerate(numbers):
            tokens = language.document(self.documents[number])
            if len(tokens) < 2:
                message = f"document {number + 1} has no token to score"
                raise RecipeError(Problem("E904", message, "data", file=self.data))
            found += [(place, row) for row in windows_of(tokens, self.block, self.stride or self.block, language.first)]
        return found


def _scored(windows: list[tuple[int, Row]]) -> NDArray[np.float64]:
    return np.array([len(row.tokens) - row.first for _, row in windows], np.float64)


def windows_of(tokens: list[int], block: int, stride: int, first: int = 1) -> Iterator[Row]:
    """Windows of at most `block` inputs that score every token from `first` on, once."""
    stop = min(len(tokens), max(block + 1, first + 1))
    while True:
        start = max(0, stop - 1 - block)
        yield Row(tokens[start:stop], first - start)
        if stop == len(tokens):
            return
        first, stop = stop, min(len(tokens), stop + stride)
