"""Exact match: what a causal language model writes after a prompt, greedily, against the answer."""

from __future__ import annotations

import json
import string
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from eutectic.checkpoint import Source
from eutectic.evaluate import options
from eutectic.evaluate.content import files_of
from eutectic.evaluate.data import DataTask, Row, text_of
from eutectic.evaluate.language import Language, continuations
from eutectic.evaluate.model import Score, Settings, refuse_nonfinite, score_of
from eutectic.evaluate.options import option
from eutectic.recipe.located import shown

_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class ExactMatch(DataTask):
    """The share of prompts that are continued with the answer, the likeliest token taken at each step.

    A line of the data: `{"prompt": ..., "answer": ...}` (or `question`), the answer a text or a list of texts that
    are all right.

    Attributes:
        data: prompts and answers.
        name: label; the file's name where it is empty.
        max_new_tokens: of a continuation.
        stop: texts before the first of which a continuation ends; the model's own end of text ends it too.
        normalise: before comparing: `none`; `strip` white space at both ends; `words`: case, punctuation and how much
            white space there is do not count.
        dtype: of the arithmetic; None: as stored.
    """

    kind: ClassVar[str] = "exact_match"
    name: str = options.name()
    max_new_tokens: int = option(32, least=1)
    stop: tuple[str, ...] = option(("\n",))
    normalise: str = option("strip", choices=("none", "strip", "words"))
    dtype: str | None = options.dtype()
    metric: ClassVar[str] = "exact_match"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "stop", tuple(self.stop))
        if not self.name:
            object.__setattr__(self, "name", self.label())

    @cached_property
    def prompts(self) -> list[Row]:
        """The prompts: `prompt` and all right `answers`."""
        return self.rows(_prompt)

    def check(self, source: Source, run: Settings) -> None:
        """See `Task.check`."""
        self._tokens(Language(source, run), run.chosen(len(self.prompts)))

    def score(self, source: Source, run: Settings) -> Score:
        """See `Task.score`."""
        language = Language(source, run)
        numbers = run.chosen(len(self.prompts))
        prompts = self._tokens(language, numbers)
        end = language.tokenizer.eos_token_id
        padding = language.tokenizer.pad_token_id
        padding = padding if padding is not None else end if end is not None else 0
        with run.loader.module(source, "causal", device=run.device, dtype=self.dtype) as model:
            # A model of NaN is known by its first token, before long work.
            first = model(input_ids=prompts_tensor(prompts[0], model), use_cache=False).logits[0, -1].float()
            refuse_nonfinite(self, source, [float(first.sum())], numbers)
            stops = sorted({*ends_of(source, model), *([] if end is None else [end])})
            made = continuations(model, prompts, self.max_new_tokens, run, stops, padding)
        right = []
        for number, tokens in zip(numbers, made, strict=True):
            if tokens is None:
                right.append(np.nan)
                continue
            text = self._cut(language.tokenizer.decode(tokens, skip_special_tokens=True))
            answers = {self._normal(answer) for answer in self.prompts[number]["answers"]}
            right.append(float(self._normal(text) in answers))
        details = {"tokens": float(np.mean([len(tokens or []) for tokens in made]))}
        return score_of(self, source, run, right, details=details, numbers=numbers)

    def _tokens(self, language: Language, numbers: list[int]) -> list[list[int]]:
        found = []
        for number in numbers:
            tokens = [*language.opening, *language.encode(self.prompts[number]["prompt"])] or language.start
            language.fits(len(tokens) + self.max_new_tokens, number)
            found.append(tokens)
        return found

    def _cut(self, text: str) -> str:
        return text[: min((at for stop in self.stop if (at := text.find(stop)) >= 0), default=len(text))]

    def _normal(self, text: str) -> str:
        if self.normalise == "words":
            return " ".join(text.casefold().translate(_PUNCTUATION).split())
        return text.strip() if self.normalise == "strip" else text


def prompts_tensor(tokens: list[int], model: Any) -> Any:
    """One prompt as the input of a model."""
    import torch

    return torch.tensor([tokens], device=next(model.parameters()).device)


def ends_of(source: Source, model: Any) -> list[int]:
    """The tokens that end a text, by generation_config.json, or else by the model's own settings."""
    try:
        ends = json.loads(files_of(source)["generation_config.json"])["eos_token_id"]
    except (KeyError, ValueError, TypeError, RecursionError):
        ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int)]


def _prompt(row: Row) -> Row:
    prompt = text_of(row, "prompt", "question")
    answer: Any = row.get("answer")
    answers = answer if isinstance(answer, list) and answer else [answer]
    if not all(isinstance(one, str) for one in answers):
        raise ValueError(f"'answer' must be text or a list of texts, not {shown(answer)}")
    return {"prompt": prompt, "answers": answers}
