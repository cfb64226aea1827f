"""Statistics of a live module over a loader, in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from eutectic.checkpoint import MemorySource
from eutectic.errors import Problem, RecipeError
from eutectic.lazy import LazyModule
from eutectic.statistics.batches import Batch
from eutectic.statistics.collecting import collect_all
from eutectic.statistics.fisher import FisherCollector
from eutectic.statistics.inputs import GramCollector, MomentCollector
from eutectic.statistics.labels import Labels, likelihood, own_loss
from eutectic.statistics.layers import Names, still
from eutectic.statistics.result import Statistics, result_of

if TYPE_CHECKING:
    from torch import Tensor, nn
else:
    nn = LazyModule("torch.nn")


def gram(
    module: nn.Module, loader: Iterable[Any], *, samples: int | None = None, device: str | None = None
) -> Statistics:
    """Gram matrices of the inputs of every linear layer and convolution: for RegMean.

    Args:
        module: any module, where it is; it runs in evaluation mode and is left as it was.
        loader: batches: tensors, mappings of keyword arguments, or sequences whose first item is one of these. Where an
            `attention_mask` is 0, positions count nowhere.
        samples: stop after so many; None: all.
        device: where batches are moved; None: to the module's first parameter.

    Raises `RecipeError` (F101, F104, F107), and `NumericError` (F102) for NaN or infinity.
    """
    return _inputs_of(GramCollector, module, loader, samples, device)


def activations(
    module: nn.Module, loader: Iterable[Any], *, samples: int | None = None, device: str | None = None
) -> Statistics:
    """Mean and mean square of every input of every linear layer and convolution. Arguments and errors as for `gram`."""
    return _inputs_of(MomentCollector, module, loader, samples, device)


def fisher(
    module: nn.Module,
    loader: Iterable[Any],
    *,
    loss: Callable[[Any, Any], Tensor] | None = None,
    labels: Labels = "model",
    samples: int | None = None,
    seed: int = 0,
    device: str | None = None,
) -> Statistics:
    """The diagonal Fisher information of every parameter: the mean over samples of squared gradients by sample.

    Classifiers give logits (samples, classes); causal language models (samples, positions, tokens), for batches with
    `input_ids`: there a sample is a sequence, and its log-likelihood the sum over its tokens.

    Args:
        module: as for `gram`.
        loader: as for `gram`; with `labels="data"` batches are (inputs, labels), or mappings with `labels` (for a
            language model without them, the next tokens).
        loss: for any other module: a function of output and batch that returns one number a sample.
        labels: `model`: the expectation over labels as the model gives them, exact up to 64 classes, and drawn, once a
            sample or token, beyond; the Fisher information proper. `data`: those of the batch, which makes it the
            empirical one. With a `loss` it says nothing.
        samples: as for `gram`.
        seed: of drawn labels.
        device: as for `gram`.

    Raises `RecipeError` (F101, F103, F104, F107, F108), and `NumericError` (F102) for NaN or infinity.
    """
    if labels not in ("model", "data"):
        raise RecipeError(Problem("F108", f"must be model or data, not {labels!r}", "labels"))
    of = likelihood(labels, seed) if loss is None else own_loss(loss)
    _check(module, loader)
    place = place_of(module, device)
    with still(module):
        batches, first = _begun(loader, place)
        collector = FisherCollector(module, Names(module), first, of)
        collect_all(collector, batches, place, samples)
    settings: dict[str, Any] = {"seed": seed, "labels": "data" if loss else labels, "settings": {}}
    return result_of(collector, MemorySource(type(module).__name__, module), settings)


def _inputs_of(
    kind: type[GramCollector | MomentCollector],
    module: nn.Module,
    loader: Iterable[Any],
    samples: int | None,
    device: str | None,
) -> Statistics:
    _check(module, loader)
    with still(module):
        batches, first = _begun(loader, place_of(module, device))
        collector = kind(module, Names(module), first)
        collect_all(collector, batches, place_of(module, device), samples)
    return result_of(collector, MemorySource(type(module).__name__, module), {"seed": 0, "settings": {}})


def _check(module: Any, loader: Any) -> None:
    """Raises `RecipeError` (F108) for what is no module and no loader."""
    problems = []
    if not isinstance(module, nn.Module):
        hint = "`eutectic.statistics.collect` takes a folder or a hub id"
        problems.append(Problem("F108", f"must be a live module, not a {type(module).__name__}", "module", hint))
    if not isinstance(loader, Iterable) or isinstance(loader, str):
        problems.append(Problem("F108", f"must give batches, not be a {type(loader).__name__}", "loader"))
    if problems:
        raise RecipeError(problems)


def place_of(module: nn.Module, device: str | None = None) -> Any:
    """Where batches are moved: the device that is asked for, or that of the first parameter."""
    if device is not None:
        return device
    one = next(module.parameters(), None)
    return "cpu" if one is None else one.device


def _begun(loader: Iterable[Any], device: Any) -> tuple[Iterator[Any], Batch]:
    """The batches, and the first of them, which a generator gives only once."""
    batches = iter(loader)
    try:
        first = next(batches)
    except StopIteration:
        raise RecipeError(Problem("F101", "the loader gave no batch", "loader", "was it used up before?")) from None

    def again() -> Iterator[Any]:
        yield first
        yield from batches

    return again(), Batch.of(first, device)
