"""Tensors that are already in memory as a Source: a live module, a state dict, numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from eutectic import dtypes
from eutectic.checkpoint.source import Source, Spec
from eutectic.errors import CheckpointError, Problem
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import numpy as np
    import torch
else:
    np = LazyModule("numpy")
    torch = LazyModule("torch")

# Returns the stored elements `start:stop` as a contiguous one-dimensional array.
_Reader = Callable[[int, int], "np.ndarray[Any, Any]"]


class MemorySource(Source):
    """Live tensors, on any device, with any strides. Nothing is copied until it is read.

    Names whose tensors are the same memory, seen the same way, are ties of the first of them.
    """

    def __init__(self, label: str, tensors: Mapping[str, Any] | torch.nn.Module) -> None:
        """Looks at every tensor and copies none.

        Args:
            label: the model's short name.
            tensors: a module (its `state_dict()` is taken), or name → torch tensor or numpy array.

        Raises `CheckpointError` (C240) for a value that is no dense tensor of a known dtype, C216 for a name that is
        no string, or empty.
        """
        state: Mapping[Any, Any] = tensors if isinstance(tensors, Mapping) else tensors.state_dict()
        self.label = label
        self.metadata = {}
        self.specs: dict[str, Spec] = {}
        self.ties: dict[str, str] = {}
        self._readers: dict[str, _Reader] = {}
        seen: dict[Any, str] = {}
        for name, value in state.items():
            if not isinstance(name, str) or not name:
                raise CheckpointError(Problem("C216", f"{name!r} in model {label!r} is not a tensor name"))
            spec, reader, memory = _describe(name, value, label)
            if spec.numel and memory in seen:
                self.ties[name] = seen[memory]
                continue
            seen[memory] = name
            self.specs[name] = spec
            self._readers[name] = reader

    def read_into(self, name: str, start: int, stop: int, out: memoryview) -> None:
        """See `Source.read_into`. The values are those of the moment of reading."""
        out[:] = self._readers[name](start, stop).view(np.uint8).data


def _describe(name: str, value: Any, label: str) -> tuple[Spec, _Reader, Any]:
    """The spec of a value, how to read it, and what memory it is."""
    if isinstance(value, np.ndarray) and value.dtype.name in dtypes.BY_NAME:
        spec = Spec(value.dtype.name, tuple(value.shape))
        interface = value.__array_interface__
        return spec, _array_reader(value), (interface["data"][0], value.dtype.str, value.shape, value.strides)
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta:
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype in dtypes.BY_NAME:
            spec = Spec(dtype, tuple(value.shape))
            memory = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
            # A view that stands for negated numbers has other bits than its values.
            return spec, _tensor_reader(value.detach().resolve_neg()), memory
    kind = f"{type(value).__name__} of dtype {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
    if isinstance(value, torch.Tensor) and (value.is_meta or value.layout != torch.strided):
        kind = f"tensor {'on the meta device' if value.is_meta else f'of layout {value.layout}'}"
    message = f"model {label!r} holds a {kind} where a dense tensor was due"
    hint = f"leave it out, or convert it to one of {', '.join(dtypes.FLOATS)}"
    raise CheckpointError(Problem("C240", message, name, hint))


def _array_reader(array: np.ndarray[Any, Any]) -> _Reader:
    # `flat` copies the range alone, whatever the strides; `newbyteorder` is for arrays of foreign byte order.
    native = array.dtype.newbyteorder("=")
    if array.flags.c_contiguous and array.dtype == native:
        flat = array.reshape(-1)
        return lambda start, stop: flat[start:stop]
    return lambda start, stop: np.ascontiguousarray(array.flat[start:stop], dtype=native)


def _tensor_reader(tensor: torch.Tensor) -> _Reader:
    bits = tensor.view(getattr(torch, f"int{8 * tensor.element_size()}"))
    if bits.device.type == "cpu":
        return _array_reader(bits.numpy())
    return lambda start, stop: bits.reshape(-1)[start:stop].cpu().numpy()
