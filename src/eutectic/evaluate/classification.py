"""Classification by any module over a loader: accuracy, cross-entropy, and how far confidence is from accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from eutectic.checkpoint import Source
from eutectic.errors import Problem, RecipeError, several
from eutectic.evaluate import options
from eutectic.evaluate.content import digest_of_bytes
from eutectic.evaluate.model import Score, Settings, score_of
from eutectic.evaluate.options import Checked, option
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")


@dataclass(frozen=True)
class Classification(Checked):
    """Accuracy of a module that gives one logit a class; cross-entropy and calibration are in the details. Python only.

    Never cached, since nothing tells what a loader holds. torch is seeded before the loader is read, so one that
    shuffles gives every model the same order. `limit` takes the first items.

    Attributes:
        loader: gives pairs of inputs (a tensor, a tuple of them or a dict) and labels (class numbers). It is read once
            for each score, in its own batches.
        name: label.
        metric: `accuracy` or `cross_entropy` (nats).
        bins: of the calibration error (Guo and others, arXiv:1706.04599): the mean distance of confidence and accuracy
            over bins of equal width, weighted by their items.
    """

    kind: ClassVar[str] = "classification"
    loader: Any = option()  # noqa: RUF009 (a field)
    name: str = option("classification")
    metric: str = option("accuracy", choices=("accuracy", "cross_entropy"))
    bins: int = option(15, least=1)
    dtype: str | None = options.dtype()

    @property
    def higher_is_better(self) -> bool:
        """Of accuracy, not of cross-entropy."""
        return self.metric == "accuracy"

    def identity(self) -> None:
        """See `Task.identity`: nothing tells what a loader holds."""

    def check(self, source: Source, run: Settings) -> None:
        """See `Task.check`."""
        if not isinstance(self.loader, Iterable):
            message = f"must give pairs of inputs and labels, not be a {type(self.loader).__name__}"
            raise RecipeError(Problem("E902", message, "loader"))
        run.loader.check_module(source)

    def score(self, source: Source, run: Settings) -> Score:
        """See `Task.score`."""
        with run.loader.module(source, device=run.device, dtype=self.dtype) as model:
            logits, labels = self._outputs(model, run)
        run.tell(1.0)
        shifted = logits - logits.max(1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        loss = -logs[np.arange(len(labels)), labels]
        # argmax would take NaN for an answer.
        right = np.where(np.isfinite(logits).all(1), (logits.argmax(1) == labels).astype(float), np.nan)
        confidence = np.exp(logs.max(1))
        accuracy = self.metric == "accuracy"
        details = {
            "cross_entropy" if accuracy else "accuracy": float(np.mean(loss if accuracy else right)),
            "ece": calibration_error(confidence, right, self.bins),
        }
        basis = digest_of_bytes(labels.tobytes())
        return score_of(self, source, run, right if accuracy else loss, details=details, basis=basis)

    def _outputs(self, model: torch.nn.Module, run: Settings) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        one = next(iter(model.parameters()), None)
        device = one.device if one is not None else torch.device(run.device)
        logits, labels, count = [], [], 0
        for number, pair in enumerate(self.loader, 1):
            found, wanted = self._answers(model, device, pair, number)
            logits.append(found)
            labels.append(wanted)
            count += len(wanted)
            if run.limit is not None and count >= run.limit:
                break
        if not count:
            raise RecipeError(Problem("E904", f"the loader of {self.name!r} gives no item", "loader"))
        return np.concatenate(logits)[: run.limit], np.concatenate(labels)[: run.limit]

    def _answers(
        self, model: torch.nn.Module, device: torch.device, pair: Any, number: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Logits and labels of one batch. Raises `RecipeError` (E904) for what gives no logit a class and label."""
        try:
            inputs, given = pair
            positional, named = _arguments(inputs)
            moved = [_to(value, device) for value in positional]
            found = model(*moved, **{key: _to(value, device) for key, value in named.items()})
            logits = getattr(found, "logits", found).double().cpu().numpy()
            labels = np.asarray(given.cpu() if isinstance(given, torch.Tensor) else given)
        except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise self._wrong(number, f"cannot be run: {type(error).__name__}: {said}") from error
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise self._wrong(
                number, f"has labels of {labels.dtype} and shape {labels.shape}, not one whole number each"
            )
        if logits.ndim != 2 or len(logits) != len(labels):
            raise self._wrong(
                number, f"gives logits of shape {logits.shape} for {several(len(labels), 'label')}, not one row each"
            )
        strange = labels[(labels < 0) | (labels >= logits.shape[1])]
        if len(strange):
            raise self._wrong(number, f"has the label {strange[0]}, and the module {logits.shape[1]} classes")
        return logits, labels.astype(np.int64)

    def _wrong(self, number: int, message: str) -> RecipeError:
        hint = "a batch is a pair of inputs and class numbers from 0, and the module gives one logit a class"
        return RecipeError(Problem("E904", f"batch {number} of {self.name!r} {message}", "loader", hint))


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.float64], bins: int) -> float:
    """The expected calibration error over `bins` bins of equal width, each closed on the right."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1) if np.isfinite(confidence).all() else None
    if place is None:
        return float("nan")
    gaps = np.bincount(place, right - confidence, bins)
    return float(np.abs(gaps).sum() / len(right))


def _arguments(inputs: Any) -> tuple[list[Any], Mapping[str, Any]]:
    if isinstance(inputs, Mapping):
        return [], inputs
    return (list(inputs), {}) if isinstance(inputs, list | tuple) else ([inputs], {})


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
