"""Batch normalisation statistics of a model, computed anew from data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from eutectic.errors import Problem, RecipeError
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

Forward = Callable[["nn.Module", Any], object]
_A_BATCH = "a batch is a tensor, a sequence whose first item is the input, or a mapping of keyword arguments"


@contextmanager
def batch_refused(code: str, message: str, hint: str) -> Iterator[None]:
    """Turns what a module raises on a batch into `RecipeError`; too little memory is no fault of the batch."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, IndexError, KeyError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise RecipeError(Problem(code, f"{message}: {type(error).__name__}: {said}", "loader", hint)) from error


def statistics_layers(model: nn.Module) -> list[Any]:
    """The layers that keep running statistics of their inputs, each once."""
    kind = torch.nn.modules.batchnorm._NormBase
    return [layer for layer in model.modules() if isinstance(layer, kind) and layer.running_mean is not None]


def update_bn(
    loader: Iterable[Any],
    model: nn.Module,
    *,
    device: torch.device | str | None = None,
    forward: Forward | None = None,
) -> None:
    """Computes the running statistics of batch normalisation anew, from one pass over data.

    Every value counts the same: a short last batch weighs by its size (`torch.optim.swa_utils.update_bn` gives each
    batch the same weight). Only the normalisation layers are in training mode, so that dropout does not change what
    they see. Modes and momenta are put back; if the pass fails, so are the statistics. A model without such layers is
    left alone, and the loader is not read.

    Args:
        loader: batches: tensors, sequences whose first item is the input, or mappings of keyword arguments.
        model: the model, its weights already those that it will be used with.
        device: where tensors are moved; by default to that of the model's first tensor.
        forward: how to run the model on a batch, as `forward(model, batch)`, for batches of another kind.

    Raises `RecipeError`: T701 for arguments that cannot be, T704 if there was no batch, T708 for a batch that the model
    cannot be run on.
    """
    if problems := list(_faults(loader, model, device, forward)):
        raise RecipeError(problems)
    update_layers(statistics_layers(model), loader, model, device=device, forward=forward)


def _faults(loader: Any, model: Any, device: Any, forward: Any) -> Iterator[Problem]:
    """Arguments of `update_bn` that cannot be."""
    if not isinstance(model, torch.nn.Module):
        hint = "the loader comes first: update_bn(loader, model)" if isinstance(loader, torch.nn.Module) else ""
        yield Problem("T701", f"must be a torch module, not a {type(model).__name__}", "model", hint)
    iterable = isinstance(loader, Iterable) or hasattr(loader, "__getitem__")
    if not iterable or isinstance(loader, str | torch.nn.Module):
        yield Problem("T701", f"must be batches to go through, not a {type(loader).__name__}", "loader")
    if forward is not None and not callable(forward):
        yield Problem("T701", f"must be a function of the model and a batch, not {forward!r}", "forward")
    try:
        torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError):
        yield Problem("T701", f"{device!r} is no device", "device", "use cpu, cuda or cuda:N")


def update_layers(
    layers: Sequence[Any],
    loader: Iterable[Any],
    model: nn.Module,
    *,
    device: torch.device | str | None = None,
    forward: Forward | None = None,
) -> None:
    """As `update_bn`, of some of the model's layers: the others normalise by the statistics that they have."""
    if not layers:
        return
    modes = [(module, module.training) for module in model.modules()]
    kept = [(layer, layer.momentum, {n: b.clone() for n, b in layer.named_buffers(recurse=False)}) for layer in layers]
    counts = dict.fromkeys(layers, 0)
    hooks = [layer.register_forward_pre_hook(_weighing(counts), with_kwargs=True) for layer in layers]
    model.eval()
    for layer in layers:
        layer.train()
        layer.reset_running_stats()
    done = False
    try:
        with torch.no_grad():
            _run(loader, model, _place(model, device), forward)
        done = any(counts.values())
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
        for layer, momentum, buffers in kept:
            layer.momentum = momentum
            if not done or not counts[layer]:
                for name, buffer in buffers.items():
                    getattr(layer, name).copy_(buffer)
    if not done:
        message = "no batch reached a normalisation layer"
        raise RecipeError(Problem("T704", message, "loader", "give a loader that is not empty and not used up"))


def _weighing(counts: dict[Any, int]) -> Callable[..., None]:
    """A hook that sets a layer's momentum so that its statistics become a mean over all values seen so far."""

    def weigh(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = (args[0] if args else kwargs["input"]).numel() // layer.num_features
        counts[layer] += values
        layer.momentum = values / counts[layer] if values else 0.0

    return weigh


def _run(loader: Iterable[Any], model: nn.Module, device: torch.device | None, forward: Forward | None) -> None:
    for number, batch in enumerate(loader, 1):
        placed = _moved(batch, device)
        with batch_refused("T708", f"{type(model).__name__} cannot be run on batch {number}", _A_BATCH):
            if forward is not None:
                forward(model, placed)
            elif isinstance(placed, Mapping):
                model(**placed)
            else:
                model(placed[0] if isinstance(placed, Sequence) else placed)


def _place(model: nn.Module, device: torch.device | str | None) -> torch.device | None:
    if device is not None:
        return torch.device(device)
    first: Tensor | None = next(model.parameters(), next(model.buffers(), None))
    return None if first is None else first.device


def _moved(batch: Any, device: torch.device | None) -> Any:
    """The batch with its tensors on the device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device) if device is not None else batch
    if isinstance(batch, Mapping):
        return {name: _moved(item, device) for name, item in batch.items()}
    if isinstance(batch, list | tuple):
        return [_moved(item, device) for item in batch]
    return batch
