"""Sentence encoders: Spearman's correlation of cosine similarities with gold scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from eutectic.checkpoint import Source
from eutectic.checkpoint.vocabulary import json_of
from eutectic.errors import CheckpointError, Problem, RecipeError
from eutectic.evaluate import intervals, options
from eutectic.evaluate.content import files_of
from eutectic.evaluate.data import DataTask, Row, text_of
from eutectic.evaluate.model import Score, Settings, basis_of, refuse_nonfinite
from eutectic.evaluate.options import option
from eutectic.lazy import LazyModule
from eutectic.recipe.located import shown

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

RESAMPLES = 1000
# Their positions begin at 2, so two of `max_position_embeddings` are never used.
_COUNTED_FROM_TWO = ("roberta", "xlm-roberta", "camembert", "mpnet")
_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class Similarity(DataTask):
    """Spearman's ρ between the cosine of two sentences' embeddings and how alike people find them.

    A `.tsv` file with the columns `sentence1`, `sentence2` and `score` among its first line's names (as STS-B has
    them), or a `.jsonl` with these keys. The interval is a bootstrap's: 1000 resamples of the pairs, drawn by the
    seed, the same for every model, by which differences are paired.

    Attributes:
        data: the pairs.
        name: label; the file's name where it is empty.
        pooling: of a sentence's tokens: their `mean`, the first one's (`cls`), or what the model's own
            sentence-transformers config says (`auto`; without one the mean).
        dtype: of the arithmetic; None: as stored.
    """

    kind: ClassVar[str] = "similarity"
    name: str = options.name()
    pooling: str = option("auto", choices=("auto", "mean", "cls"))
    dtype: str | None = options.dtype()
    metric: ClassVar[str] = "spearman"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name:
            object.__setattr__(self, "name", self.label())

    @cached_property
    def pairs(self) -> list[Row]:
        """The pairs: `a`, `b` and the gold `score`."""
        return self.rows(_pair)

    def check(self, source: Source, run: Settings) -> None:
        """See `Task.check`."""
        chosen = [self.pairs[number]["score"] for number in run.chosen(len(self.pairs))]
        if len(set(chosen)) < 2:
            message = "every pair has the same score, with which nothing correlates"
            raise RecipeError(Problem("E904", message, "data", file=self.data))
        run.loader.config(source, "encoder")
        run.loader.tokenizer(source)
        self._pooling(source)

    def score(self, source: Source, run: Settings) -> Score:
        """See `Task.score`."""
        numbers = run.chosen(len(self.pairs))
        pairs = [self.pairs[number] for number in numbers]
        texts = list(dict.fromkeys(text for pair in pairs for text in (pair["a"], pair["b"])))
        found = self._embeddings(source, run, texts)
        place = {text: at for at, text in enumerate(texts)}
        a = found[[place[pair["a"]] for pair in pairs]]
        b = found[[place[pair["b"]] for pair in pairs]]
        cosines = np.sum(a * b, 1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        refuse_nonfinite(self, source, cosines, numbers)
        gold = np.array([pair["score"] for pair in pairs])
        value = spearman(cosines, gold)
        draw = np.random.default_rng(run.seed)
        picks = (draw.integers(0, len(gold), len(gold)) for _ in range(RESAMPLES))
        replicates = np.array([spearman(cosines[pick], gold[pick]) for pick in picks])
        error, bounds = intervals.of_replicates(replicates)
        return Score(
            self.name,
            self.metric,
            self.higher_is_better,
            value,
            error,
            bounds,
            cosines,
            np.ones(len(gold)),
            {"pearson": float(np.corrcoef(cosines, gold)[0, 1]) if np.ptp(cosines) else 0.0},
            "resampled",
            replicates,
            basis_of(self, run),
        )

    def _embeddings(self, source: Source, run: Settings, texts: Sequence[str]) -> NDArray[np.float64]:
        """One vector a text, sentences of like lengths together, padded on the right and masked."""
        tokenizer, pooling = run.loader.tokenizer(source), self._pooling(source)
        longest = _longest(source, run.loader.config(source, "encoder"), tokenizer)
        tokens = [tokenizer(text, verbose=False, **longest)["input_ids"] for text in texts]
        order = sorted(range(len(texts)), key=lambda i: -len(tokens[i]))
        found: list[Any] = [None] * len(texts)
        with run.loader.module(source, "encoder", device=run.device, dtype=self.dtype) as model:
            device = next(model.parameters()).device
            for at in range(0, len(order), run.batch):
                chosen = order[at : at + run.batch]
                ids = torch.zeros((len(chosen), len(tokens[chosen[0]])), dtype=torch.long)
                mask = torch.zeros_like(ids)
                for place, i in enumerate(chosen):
                    ids[place, : len(tokens[i])] = torch.tensor(tokens[i])
                    mask[place, : len(tokens[i])] = 1
                states = (
                    model(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state.double().cpu()
                )
                shares = mask.double() / mask.sum(1, keepdim=True)
                pooled = states[:, 0] if pooling == "cls" else (states * shares[..., None]).sum(1)
                for place, i in enumerate(chosen):
                    found[i] = pooled[place].numpy()
                run.tell(len(chosen) / len(order))
        return np.stack(found)

    def _pooling(self, source: Source) -> str:
        """`mean` or `cls`. Raises `CheckpointError` (E905) where the model's own config says something else."""
        if self.pooling != "auto":
            return self.pooling
        files = files_of(source)
        parts = _json(files.get("modules.json", b"[]"), list)
        kinds = [str(part.get("type")).rpartition(".")[2] for part in parts if isinstance(part, dict)]
        pooled = [_json(data, dict) for name, data in files.items() if name.endswith("_Pooling/config.json")]
        own: dict[str, Any] = pooled[0] if pooled else {}
        # `pooling_mode_mean_tokens: true`, or `pooling_mode: mean` in newer ones.
        flags = [key.removeprefix("pooling_mode_") for key, value in own.items() if value is True]
        modes = [flag for flag in flags if "_token" in flag] or [str(own[key]) for key in own if key == "pooling_mode"]
        strange = [kind for kind in kinds if kind not in _MODULES]
        if strange or modes not in ([], ["cls_token"], ["cls"], ["mean_tokens"], ["mean"]):
            what = ", ".join(strange or modes)
            message = f"the sentence-transformers config of {source.label!r} has {what}, which is not understood here"
            raise CheckpointError(Problem("E905", message, "pooling", "set pooling: mean or cls"))
        return "cls" if modes and modes[0].startswith("cls") else "mean"


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's ρ: Pearson's correlation of ranks, equal values sharing theirs; 0 where all are equal."""
    x, y = (_ranks(values) - (len(values) + 1) / 2 for values in (a, b))
    size = float(np.sqrt(np.dot(x, x) * np.dot(y, y)))
    return float(np.dot(x, y)) / size if size else 0.0


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place.reshape(-1)])


def _longest(source: Source, config: Any, tokenizer: Any) -> dict[str, Any]:
    """How encoders cut long sentences: at the length they were trained for."""
    own = _json(files_of(source).get("sentence_bert_config.json", b"{}"), dict).get("max_seq_length")
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and getattr(config, "model_type", "") in _COUNTED_FROM_TWO:
        positions -= 2
    limits = [limit for limit in (own, positions, tokenizer.model_max_length) if isinstance(limit, int)]
    return {"truncation": True, "max_length": min(limits)} if limits and min(limits) < 10**9 else {}


def _json(data: bytes, kind: type) -> Any:
    """What a small file says; nothing where it is damaged or something else."""
    found = json_of(data)
    return found if isinstance(found, kind) else kind()


def _pair(row: Row) -> Row:
    score: Any = row.get("score")
    try:
        gold = float(score)
    except (TypeError, ValueError):
        gold = float("nan")
    if not np.isfinite(gold) or isinstance(score, bool):
        raise ValueError(f"'score' must be a number, not {shown(score)}")
    return {"a": text_of(row, "sentence1"), "b": text_of(row, "sentence2"), "score": gold}
