"""One batch, of whatever form: its samples, its padding, and how a module is run on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from eutectic.averaging.statistics import batch_refused
from eutectic.errors import Problem, RecipeError
from eutectic.evaluate.content import digest_of_bytes, digest_of_json
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

# Keys of a mapping that say what is right, and are not inputs.
ANSWERS = ("labels", "targets")
# What to give where batches are to be gone through again and again.
AGAIN = "a list of them, or a DataLoader"
_INPUTS = "a batch has the inputs of the module, a sequence's first item or a mapping of keyword arguments"


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples along the first axis of every tensor.

    Attributes:
        value: the inputs (a tensor, or a mapping of keyword arguments), or a sequence whose first item they are.
        size: number of samples.
        mask: (samples, positions), True where there is no padding; None where nothing is padded.
    """

    value: Any
    size: int
    mask: Tensor | None

    @classmethod
    def of(cls, value: Any, device: torch.device | str | None = None) -> Self:
        """A batch of a loader, on the device. Raises `RecipeError` (F101, F104)."""
        value = _each(value, lambda tensor: tensor.to(device)) if device is not None else value
        value = _each(value, lambda tensor: tensor.clone(), lambda tensor: tensor.is_inference())
        first = _first(value)
        if first is None or first.dim() == 0 or not len(first):
            hint = "batches are tensors, mappings of keyword arguments, or sequences whose first item is one of these"
            raise RecipeError(Problem("F101", f"a batch holds no sample: {_shown(value)}", "loader", hint))
        inputs = _inputs(value)
        mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
        if mask is None or (mask.dim() == 2 and bool(mask.all())):
            return cls(value, len(first), None)
        if mask.dim() != 2:
            message = f"a mask of shape {tuple(mask.shape)} does not say which positions are padding"
            hint = "give one of shape (samples, positions)"
            raise RecipeError(Problem("F104", message, "attention_mask", hint))
        if "decoder_input_ids" in inputs:
            message = "of a padded batch of an encoder and a decoder it is not known which rows are padding"
            raise RecipeError(Problem("F104", message, "attention_mask", "give batches without padding"))
        return cls(value, len(first), mask.bool())

    def sample(self, number: int) -> Batch:
        """One sample by itself, its padding cut off. Raises `RecipeError` (F104) for padding within it."""
        value = sliced(self.value, number, self.size)
        if self.mask is None:
            return Batch(value, 1, None)
        width = self.mask.shape[1]
        kept = self.mask[number].nonzero()[:, 0]
        if not len(kept):
            raise RecipeError(Problem("F101", "all positions of a sample are masked", "attention_mask"))
        low, high = int(kept[0]), int(kept[-1]) + 1
        if high - low != len(kept):
            message = "the attention mask of a sample has holes, and the model has layers whose rows it does not fit"
            raise RecipeError(Problem("F104", message, "attention_mask", "pad at one end of a sample"))
        cut = _each(value, lambda t: t[:, low:high], lambda t: t.dim() > 1 and t.shape[1] == width)
        return Batch(cut, 1, None)

    def head(self, count: int) -> Batch:
        """The first samples, at most `count`."""
        if self.size <= count:
            return self
        mask = None if self.mask is None else self.mask[:count]
        return Batch(_each(self.value, lambda tensor: tensor[:count], self._has_all), count, mask)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        return Batch(_each(self.value, lambda tensor: tensor.to(device)), self.size, mask)

    def run(self, module: nn.Module, **more: Any) -> Any:
        """What the module makes of it. Raises `RecipeError` (F110) where it cannot take the inputs."""
        with batch_refused("F110", "the module cannot run a batch", _INPUTS):
            if isinstance(self.inputs, Mapping):
                return module(**{key: item for key, item in self.inputs.items() if key not in ANSWERS}, **more)
            return module(self.inputs, **more)

    @property
    def inputs(self) -> Any:
        """A tensor or a mapping."""
        return _inputs(self.value)

    def positions(self) -> int:
        """Positions that are not padding; 0 where samples have none, as far as the batch tells."""
        if self.mask is not None:
            return int(self.mask.sum())
        ids = self.inputs.get("input_ids") if isinstance(self.inputs, Mapping) else None
        return 0 if ids is None else int(ids.numel())

    def digest(self) -> str:
        """Of every tensor in it."""
        found: list[Any] = []

        def note(tensor: Tensor) -> Tensor:
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            found.append([str(tensor.dtype), list(tensor.shape), digest_of_bytes(raw.tobytes())])
            return tensor

        _each(self.value, note)
        return digest_of_json(found)

    def _has_all(self, tensor: Tensor) -> bool:
        return tensor.dim() > 0 and len(tensor) == self.size


class Parts:
    """Batches as they are looked into: whole, or sample by sample where the rows of a padded one could be padding.

    What the first padded batch shows is kept for all.
    """

    def __init__(self) -> None:
        self._divides: bool | None = None

    def of(self, batch: Batch, mixes: Callable[[Batch], bool]) -> list[Batch]:
        """The batch, or its samples with their padding cut off, as `mixes` says of its first samples."""
        if batch.mask is None:
            return [batch]
        if self._divides is None:
            self._divides = mixes(batch.head(2))
        return [batch.sample(number) for number in range(batch.size)] if self._divides else [batch]


def no_batches(value: Any) -> str:
    """Why what was given cannot be gone through again and again, a batch at a time; empty where it can.

    A tensor, or a mapping of them, is one batch; a text is the name of a file.
    """
    if isinstance(value, Iterable) and not isinstance(value, Iterator | torch.Tensor | Mapping | str):
        return ""
    return f"must be batches that can be gone through again, not a {type(value).__name__}"


def sliced(value: Any, number: int, size: int) -> Any:
    """One of `size` samples of whatever holds tensors; those of another length are for all samples."""
    return _each(value, lambda t: t[number : number + 1], lambda t: t.dim() > 0 and len(t) == size)


def _inputs(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and len(value) else value


def _each(value: Any, change: Callable[[Tensor], Tensor], chosen: Callable[[Tensor], bool] = lambda t: True) -> Any:
    """The batch with its chosen tensors changed."""
    if isinstance(value, torch.Tensor):
        return change(value) if chosen(value) else value
    if isinstance(value, Mapping):
        return {key: _each(item, change, chosen) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_each(item, change, chosen) for item in value]
    return value


def _first(value: Any) -> Tensor | None:
    if isinstance(value, torch.Tensor):
        return value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((found for item in items if (found := _first(item)) is not None), None)


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" if _first(value) is None else "its first tensor is empty"
