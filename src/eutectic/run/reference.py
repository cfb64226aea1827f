"""The plain torch form of a method as a stream: for methods without a fused form, for a GPU, and as a cross-check."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.streams import Block, Stream, StreamJob
from eutectic.lazy import LazyModule
from eutectic.methods import Method

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")


class TorchForm:
    """What a method's own function makes of stacked tensors, on any torch device."""

    def __init__(self, method: Method, jobs: Sequence[StreamJob]) -> None:
        self._method = method
        self._jobs = jobs

    @property
    def affinity(self) -> str:
        """Streams of one affinity make the same factors."""
        names = _keywords(self._method.factors) if self._method.factors else []
        return repr([[job.parameters[name] for name in names] for job in self._jobs])

    def made_of_block(self, block: Block, upload: Callable[[NDArray[Any]], torch.Tensor]) -> torch.Tensor:
        """The result `(n,)` for a block, in the working floats; `upload` makes floats of stored bits."""
        if "tensors" not in block.cache:
            job = self._jobs[block.job]
            shape = job.shape if block.bits.shape[1] == job.numel else None
            pairs = zip(block.beside, job.beside, strict=True)
            beside = [upload(bits).reshape(own) for bits, own in pairs]
            block.cache["tensors"] = self.tensors(upload(block.bits), shape, beside, block.job)
        return self.made(block.job, block.cache)

    def tensors(
        self, stacked: torch.Tensor, shape: Sequence[int] | None, beside: list[torch.Tensor], number: int
    ) -> tuple[torch.Tensor | None, tuple[Any, ...]]:
        """The base, if there is one, and what the method takes, of floats `(M, n)` that are `(M, *shape)`."""
        if shape is not None:
            stacked = stacked.reshape(-1, *shape)
        if self._method.statistics:
            return None, self._with_statistics(stacked, beside, self._jobs[number])
        if self._method.space == "weights":
            return None, (stacked,)
        return stacked[0], (stacked[1:] - stacked[0],)

    def made(self, number: int, cache: dict[Any, Any]) -> torch.Tensor:
        """The result `(n,)` of the `tensors` in `cache`, where merges of a sweep leave what they have in common."""
        job = self._jobs[number]
        base, tensors = cache["tensors"]
        change = self._changed(cache, tensors, arguments(self._method, job))
        if job.layer is not None and job.shape is not None:
            change = job.layer.stored(change, job.shape)
        return (change if base is None else torch.where(change == 0, base, base + change)).reshape(-1)

    def _with_statistics(
        self, stacked: torch.Tensor, beside: list[torch.Tensor], job: StreamJob
    ) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        """Weights and statistics; for Gram matrices the weights (and biases) as matrices."""
        if not beside:
            return stacked, None
        statistics, others = beside[: job.models], beside[job.models :]
        if job.layer is None:
            return stacked, statistics
        if not others:
            return job.layer.matrices(stacked), statistics
        other = torch.stack(others)
        both = (stacked, other) if job.layer.part == "weight" else (other, stacked)
        return job.layer.matrices(*both), statistics

    def _changed(self, cache: dict[Any, Any], tensors: tuple[Any, ...], given: dict[str, Any]) -> torch.Tensor:
        """What the method makes; in two steps where it has them, the first of which other merges of a sweep share."""
        first, second = self._method.factors, self._method.finish
        if first is None or second is None:
            return self._method.applied(*tensors, **given)
        deciding = {name: given[name] for name in _keywords(first)}
        if cache.get("of") != repr(deciding):
            # One set at a time: those of a whole sweep could take any amount of memory.
            cache.pop("factors", None)
            cache |= {"factors": first(*tensors, **deciding), "of": repr(deciding)}
        made = second(cache["factors"], **{name: given[name] for name in _keywords(second)})
        return made.to(tensors[0].dtype)


class Reference(TorchForm, Stream):
    """The plain torch form on the CPU: for methods without a fused form, and as a cross-check."""

    def combine(self, block: Block, out: NDArray[Any]) -> None:
        with one_torch_thread(), torch.no_grad():
            result = self.made_of_block(block, lambda bits: floats_of(as_torch(bits), block.floats))
            as_torch(out).copy_(result)


def arguments(method: Method, job: StreamJob) -> dict[str, Any]:
    """What the method's function is called with, beside the tensors."""
    return {keyword: job.parameters[keyword] for keyword in method.keywords.values()}


def _keywords(function: Any) -> list[str]:
    """The parameters of one step of a method, without the tensors or factors that come first."""
    return list(inspect.signature(function).parameters)[1:]


class _Users:
    """How many threads are in torch, and what its number of threads was before the first came."""

    lock = threading.Lock()
    inside = 0
    before = 1


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Sums and factorisations differ in the last bit with the number of threads, and the workers fill the cores."""
    with _Users.lock:
        if _Users.inside == 0:
            _Users.before = torch.get_num_threads()
        _Users.inside += 1
    # In every thread: OpenMP keeps the number for each.
    torch.set_num_threads(1)
    try:
        yield
    finally:
        with _Users.lock:
            _Users.inside -= 1
            if _Users.inside == 0:
                torch.set_num_threads(_Users.before)


def as_torch(bits: NDArray[Any]) -> torch.Tensor:
    """Stored bits as a tensor in the same memory, 16-bit floats as what they are."""
    if bits.dtype == np.uint16:
        return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(bits).view(torch.float16) if bits.dtype == np.int16 else torch.from_numpy(bits)


def floats_of(stored: torch.Tensor, floats: type[Any]) -> torch.Tensor:
    """The working floats."""
    return stored.to(torch.float64 if floats is np.float64 else torch.float32)
