"""Log-likelihoods whose gradients by sample make the Fisher information: labels from the model, or from the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from eutectic.errors import Problem, RecipeError, several
from eutectic.lazy import LazyModule
from eutectic.statistics.batches import Batch
from eutectic.statistics.text import IGNORED

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional
else:
    torch = LazyModule("torch")
    functional = LazyModule("torch.nn.functional")

Labels = Literal["model", "data"]
# The expectation over labels is exact up to so many classes, at one backward pass a class; beyond, labels are drawn.
EXACT_CLASSES = 64
_LOSS = "give `loss=`: a function of output and batch that returns one number a sample"

# From an output, its batch and the number of its first sample: sums over samples, whose gradients by sample are
# squared one after the other.
Likelihood = Callable[[Any, Batch, int], Iterator["Tensor"]]


def likelihood(labels: Labels = "model", seed: int = 0) -> Likelihood:
    """The log-likelihood of classifiers and of causal language models.

    Args:
        labels: `model`: the expectation over labels that the model gives, exact up to `EXACT_CLASSES` classes, drawn
            beyond and for every token. `data`: those of the batch (the empirical Fisher information).
        seed: of drawn labels; they depend on it and on the number of the sample alone.
    """

    def of(output: Any, batch: Batch, first: int) -> Iterator[Tensor]:
        logits = _logits(output).float()
        if logits.dim() == 3 and isinstance(batch.inputs, Mapping) and "input_ids" in batch.inputs:
            yield _of_tokens(logits, batch, labels, seed, first)
        elif logits.dim() == 2 and logits.shape[1] > 1:
            yield from _of_classes(logits, batch, labels, seed, first)
        else:
            shape = tuple(logits.shape)
            raise RecipeError(Problem("F103", f"no likelihood is known for an output of shape {shape}", "loss", _LOSS))

    return of


def own_loss(loss: Callable[[Any, Any], Tensor]) -> Likelihood:
    """That of a function of output and batch, one number a sample."""

    def of(output: Any, batch: Batch, first: int) -> Iterator[Tensor]:
        found = loss(output, batch.value)
        if not isinstance(found, torch.Tensor) or found.numel() != batch.size:
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            message = f"the loss gives {shape} for {several(batch.size, 'sample')}"
            raise RecipeError(Problem("F103", message, "loss", "return one number a sample, not their mean"))
        yield found.sum()

    return of


def _logits(output: Any) -> Tensor:
    found = getattr(output, "logits", output)
    found = found[0] if isinstance(found, list | tuple) and found else found
    if not isinstance(found, torch.Tensor):
        raise RecipeError(Problem("F103", f"the module returns a {type(found).__name__}, no logits", "loss", _LOSS))
    return found


def _of_classes(logits: Tensor, batch: Batch, labels: Labels, seed: int, first: int) -> Iterator[Tensor]:
    logs = functional.log_softmax(logits, dim=1)
    if labels == "model" and logits.shape[1] <= EXACT_CLASSES:
        weights = logs.detach().exp().sqrt()
        for number in range(logits.shape[1]):
            yield (weights[:, number] * logs[:, number]).sum()
        return
    if labels == "model":
        wanted = torch.cat([_drawn(row[None], seed, first + i) for i, row in enumerate(logits.detach())])
    else:
        wanted = _labels(batch).to(logits.device).reshape(-1)
        if len(wanted) != len(logits) or wanted.is_floating_point():
            message = f"labels of shape {tuple(wanted.shape)} and dtype {wanted.dtype} are no class numbers"
            raise RecipeError(Problem("F103", message, "labels", _LOSS))
        _check_range(wanted, logits.shape[1], "labels")
    yield logs.gather(1, wanted[:, None]).sum()


def _of_tokens(logits: Tensor, batch: Batch, labels: Labels, seed: int, first: int) -> Tensor:
    """Σ over the positions of a sequence whose next token is known."""
    wanted = _targets(batch, logits.shape[1]).to(logits.device)
    known = wanted != IGNORED
    # Fewer classes than tokens: no language model, but one that classifies tokens.
    _check_range(wanted[known], logits.shape[2], "loss")
    if labels == "model":
        wanted = wanted.clone()
        for i in range(len(wanted)):
            wanted[i, known[i]] = _drawn(logits[i, known[i]].detach(), seed, first + i)
    return -functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum")


def _check_range(wanted: Tensor, classes: int, where: str) -> None:
    if len(wanted) and (int(wanted.min()) < 0 or int(wanted.max()) >= classes):
        message = f"there are {classes} classes, and labels from {int(wanted.min())} to {int(wanted.max())}"
        raise RecipeError(Problem("F103", message, where, _LOSS))


def _targets(batch: Batch, length: int) -> Tensor:
    """The token after each position: as given, or shifted as causal language models of `transformers` do."""
    given: Mapping[str, Tensor] = batch.inputs
    if "targets" in given:
        return given["targets"]
    ids = given.get("labels", given["input_ids"])
    if "decoder_input_ids" in given or ids.shape[1] != length:
        message = f"{several(length, 'position')} of logits for {several(ids.shape[1], 'token')}"
        message += " of an encoder" if "decoder_input_ids" in given else ""
        raise RecipeError(Problem("F103", message, "loss", _LOSS))
    wanted = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], IGNORED)], dim=1)
    if batch.mask is None:
        return wanted
    # Neither is padding predicted, nor the first token from the padding on its left.
    both = batch.mask & batch.mask.roll(-1, dims=1)
    return wanted.masked_fill(~both, IGNORED)


def _labels(batch: Batch) -> Tensor:
    if isinstance(batch.value, Mapping):
        found = batch.value.get("labels")
    else:
        found = batch.value[1] if isinstance(batch.value, list | tuple) and len(batch.value) > 1 else None
    if not isinstance(found, torch.Tensor):
        hint = "batches are (inputs, labels) or mappings with `labels`"
        raise RecipeError(Problem("F103", "the batch has no labels", "labels", hint))
    return found


def _drawn(logits: Tensor, seed: int, number: int) -> Tensor:
    """One label a row, from the distribution of the row: the inverse of its cumulative sum at a random number."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))
    at = torch.from_numpy(generator.random(len(logits))).to(logits.device)
    sums = logits.softmax(-1).double().cumsum(-1)
    found = torch.searchsorted(sums, (at * sums[:, -1])[:, None], right=True)[:, 0]
    return found.clamp_(max=logits.shape[-1] - 1)
