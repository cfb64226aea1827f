"""Multiple choice by log-likelihood: the answer that a causal language model finds likeliest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from eutectic.checkpoint import Source
from eutectic.errors import Problem, RecipeError
from eutectic.evaluate import options
from eutectic.evaluate.data import DataTask, Row, text_of
from eutectic.evaluate.language import Language, log_likelihoods
from eutectic.evaluate.language import Row as Tokens
from eutectic.evaluate.model import Score, Settings, score_of
from eutectic.evaluate.options import option
from eutectic.recipe.located import shown


@dataclass(frozen=True)
class Choice(DataTask):
    """The share of questions whose right answer has the highest log-likelihood, given the question.

    A line of the data: `{"question": ..., "choices": [...], "answer": ...}` (or `context`), the answer by its number
    from 0 or by its text. Tokens are those of question and answer written together. Equal likelihoods: the first wins.

    Attributes:
        data: the questions.
        name: label; the file's name where it is empty.
        metric: `acc`, by the log-likelihood of the whole answer, or `acc_norm`, by that a character of it, which does
            not prefer short answers. The other one, and the mean nll a token of the right answers, are in the details.
        delimiter: between question and answer.
        dtype: of the arithmetic; None: as stored.
    """

    kind: ClassVar[str] = "choice"
    name: str = options.name()
    metric: str = option("acc", choices=("acc", "acc_norm"))
    delimiter: str = option(" ")
    dtype: str | None = options.dtype()
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name:
            object.__setattr__(self, "name", self.label())

    @cached_property
    def questions(self) -> list[Row]:
        """The questions: `context`, `choices`, and the number of the `answer`."""
        return self.rows(_question)

    def check(self, source: Source, run: Settings) -> None:
        """See `Task.check`."""
        self._rows(Language(source, run), run.chosen(len(self.questions)))

    def score(self, source: Source, run: Settings) -> Score:
        """See `Task.score`."""
        numbers = run.chosen(len(self.questions))
        rows = self._rows(Language(source, run), numbers)
        with run.loader.module(source, "causal", device=run.device, dtype=self.dtype) as model:
            found = log_likelihoods(model, rows, run.batch, run.tell)
        plain, normal, nll, at = [], [], [], 0
        for number in numbers:
            question = self.questions[number]
            texts, answer = question["choices"], question["answer"]
            logs = found[at : at + len(texts)]
            length = len(rows[at + answer].tokens) - rows[at + answer].first
            at += len(texts)
            lost = not np.isfinite(logs).all()  # argmax would take NaN for an answer
            plain.append(np.nan if lost else float(np.argmax(logs) == answer))
            normal.append(np.nan if lost else float(np.argmax(logs / [len(text) for text in texts]) == answer))
            nll.append(-logs[answer] / length)
        items, other, key = (plain, normal, "acc_norm") if self.metric == "acc" else (normal, plain, "acc")
        details = {key: float(np.mean(other)), "nll": float(np.mean(nll))}
        return score_of(self, source, run, items, details=details, numbers=numbers)

    def _rows(self, language: Language, numbers: list[int]) -> list[Tokens]:
        """One row for each choice of each question, in order."""
        found = []
        for number in numbers:
            question = self.questions[number]
            for text in question["choices"]:
                row = joined(language, question["context"], self.delimiter + text)
                if row is None:
                    message = f"item {number + 1}: {shown(text)} adds no token to the question"
                    raise RecipeError(Problem("E904", message, "data", file=self.data))
                language.fits(len(row.tokens) - 1, number)
                found.append(row)
        return found


def joined(language: Language, context: str, answer: str) -> Tokens | None:
    """The tokens of a text and its end, of which those of the end are scored; None if the end has none.

    White space at the end of the text belongs to what follows, as tokenizers see it.
    """
    bare = context.rstrip()
    whole = language.encode(context + answer)
    start = language.encode(bare)
    opening = language.opening if start else language.start
    first = len(opening) + len(start)
    tokens = [*opening, *whole]
    return Tokens(tokens, first) if 0 < first < len(tokens) else None


def _question(row: Row) -> Row:
    context = text_of(row, "context", "question", empty=True)
    choices: Any = row.get("choices")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise ValueError(f"'choices' must be a list of two texts or more, not {shown(choices)}")
    answer: Any = row.get("answer")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ValueError(f"'answer' must be one of the choices, or its number from 0, not {shown(answer)}")
    return {"context": context, "choices": choices, "answer": answer}
