"""Causal language models: text to tokens, log-likelihoods of tokens given those before, greedy continuations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic.checkpoint import Source
from eutectic.errors import CheckpointError, Problem, RecipeError
from eutectic.evaluate.loading import transformers_module
from eutectic.evaluate.model import Settings
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens of which those from `first` on are scored, each given all before it."""

    tokens: Sequence[int]
    first: int


class Language:
    """A source's tokenizer and what its model takes. Raises `CheckpointError` (E905, E906) without them."""

    def __init__(self, source: Source, run: Settings) -> None:
        self.label = source.label
        config = run.loader.config(source, "causal")
        self.tokenizer = run.loader.tokenizer(source)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        self.limit: int | None = next((found for key in _POSITIONS if (found := getattr(config, key, None))), None)
        self._vocabulary: int | None = getattr(config, "vocab_size", None)
        # What the tokenizer itself puts before a text: <s> for most, nothing for some. What it puts behind (</s>, for
        # a few) would say that there is no text.
        probe = self.tokenizer("a", return_special_tokens_mask=True)
        marked = zip(probe["input_ids"], probe["special_tokens_mask"], strict=True)
        self.opening: list[int] = [token for token, _ in takewhile(itemgetter(1), marked)]
        start = self.tokenizer.bos_token_id
        start = self.tokenizer.eos_token_id if start is None else start
        # What the first token of a text is predicted from.
        self.start: list[int] = self.opening or ([] if start is None else [start])
        # Of a document, the first token that is predicted.
        self.first = max(1, len(self.start))

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, none added. Raises `CheckpointError` (E906) for one that the model has no row for."""
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if self._vocabulary is not None and tokens and max(tokens) >= self._vocabulary:
            message = f"the tokenizer of {self.label!r} gives token {max(tokens)}, the model has {self._vocabulary}"
            raise CheckpointError(Problem("E906", message, hint="do tokenizer and weights belong together?"))
        return tokens

    def document(self, text: str) -> list[int]:
        """Tokens of a text behind what its first is predicted from."""
        return [*self.start, *self.encode(text)]

    def fits(self, length: int, item: int) -> None:
        """Raises `RecipeError` (E907) for more tokens than the model takes."""
        if self.limit is not None and length > self.limit:
            message = f"item {item + 1} has {length} tokens, {self.label!r} takes {self.limit}"
            raise RecipeError(Problem("E907", message, hint="shorten it; nothing is cut off by itself"))


def alike(items: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Numbers of items of like lengths, the longest first, `size` at a time."""
    order = sorted(range(len(items)), key=lambda i: -len(items[i]))
    return (order[at : at + size] for at in range(0, len(order), size))


def padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of tokens as `(rows, longest)` int64, padded on the right, and the mask of what is no padding."""
    tokens = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return tokens, mask


def log_likelihoods(
    model: torch.nn.Module, rows: Sequence[Row], batch: int, tell: Callable[[float], None]
) -> NDArray[np.float64]:
    """Σ log p of the scored tokens of each row, in float64 over float32 log-probabilities.

    Rows of like lengths go together, padded on the right and masked, so a row's value is that of any other batch but
    for rounding, and exactly that of the same rows in the same batches.
    """
    device = _device(model)
    found = np.empty(len(rows))
    for chosen in alike([row.tokens for row in rows], batch):
        tokens, mask = padded([rows[i].tokens[:-1] for i in chosen])
        logits = model(input_ids=tokens.to(device), attention_mask=mask.to(device), use_cache=False).logits
        for place, i in enumerate(chosen):
            row = rows[i]
            # One row at a time: float32 logits of a batch may be the largest tensor of all.
            own = torch.log_softmax(logits[place, row.first - 1 : len(row.tokens) - 1].float(), dim=-1)
            wanted = torch.tensor(row.tokens[row.first :], device=device)
            found[i] = float(own.gather(1, wanted[:, None]).double().sum())
        tell(len(chosen) / len(rows))
    return found


def continuations(
    model: Any, prompts: Sequence[Sequence[int]], most: int, run: Settings, stops: Sequence[int], padding: int
) -> list[list[int] | None]:
    """Greedy continuations of at most `most` tokens, each ended before the first of `stops`; None where logits are NaN.

    Prompts of like lengths go together, padded on the left and masked.
    """
    device = _device(model)
    found: list[list[int] | None] = [None for _ in prompts]
    greedy = transformers_module().GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=most, pad_token_id=padding, eos_token_id=list(stops) or None
    )
    for chosen in alike(prompts, run.batch):
        longest = len(prompts[chosen[0]])
        tokens = torch.full((len(chosen), longest), padding, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for place, i in enumerate(chosen):
            tokens[place, longest - len(prompts[i]) :] = torch.tensor(list(prompts[i]))
            mask[place, longest - len(prompts[i]) :] = 1
        watch = _Watch()
        made = model.generate(
            input_ids=tokens.to(device),
            attention_mask=mask.to(device),
            generation_config=greedy,
            logits_processor=[watch],
        ).tolist()
        lost = torch.stack(watch.lost).cpu()
        for place, i in enumerate(chosen):
            own = made[place][longest:]
            end = next((n for n, token in enumerate(own) if token in stops), len(own))
            found[i] = None if bool(lost[: end + 1, place].any()) else own[:end]
        run.tell(len(chosen) / len(prompts))
    return found


class _Watch:
    """Notes for each step of a generation which rows have logits of which no largest can be taken."""

    def __init__(self) -> None:
        self.lost: list[torch.Tensor] = []

    def __call__(self, _tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        self.lost.append((logits.isnan() | logits.isposinf()).any(-1))
        return logits


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device
