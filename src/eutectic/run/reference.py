"""The plain torch form of a method as a stream: for methods without a fused form, for a GPU, and as a cross-check."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
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


class Reference(Stream):
    """Calls the method's own function on stacked tensors, on any torch device.

    On CUDA the block goes up through pinned memory on a stream of the calling thread, so that the copies of one
    worker overlap the arithmetic of another. Masks and kept sets are those of the CPU: both are functions of the
    index and of exact comparisons.
    """

    def __init__(self, method: Method, jobs: Sequence[StreamJob], device: str) -> None:
        self._method = method
        self._jobs = jobs
        self._device = device
        self._local = threading.local()

    @property
    def affinity(self) -> str:
        names = _keywords(self._method.factors) if self._method.factors else []
        return repr([[job.parameters[name] for name in names] for job in self._jobs])

    def combine(self, block: Block, out: NDArray[Any]) -> None:
        with one_torch_thread(), self._cuda_stream():
            job = self._jobs[block.job]
            if "tensors" not in block.cache:
                block.cache["tensors"] = self._tensors(block, job)
            result = self._apply(block, job).reshape(-1)
            out[:] = _stored(result, out.dtype).cpu().numpy().view(out.dtype)

    def _tensors(self, block: Block, job: StreamJob) -> tuple[torch.Tensor | None, tuple[Any, ...]]:
        """The base, if there is one, and what the method takes."""
        stacked = self._upload(block.bits, block.floats)
        if job.shape is not None and block.bits.shape[1] == job.numel:
            stacked = stacked.reshape(-1, *job.shape)
        if self._method.statistics:
            return None, self._with_statistics(stacked, block, job)
        if self._method.space == "weights":
            return None, (stacked,)
        return stacked[0], (stacked[1:] - stacked[0],)

    def _with_statistics(
        self, stacked: torch.Tensor, block: Block, job: StreamJob
    ) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        """Weights and statistics; for Gram matrices the weights (and biases) as matrices."""
        if not job.beside:
            return stacked, None
        pairs = zip(block.beside, job.beside, strict=True)
        beside = [self._upload(bits, block.floats).reshape(shape) for bits, shape in pairs]
        statistics, others = beside[: job.models], beside[job.models :]
        if job.layer is None:
            return stacked, statistics
        if not others:
            return job.layer.matrices(stacked), statistics
        other = torch.stack(others)
        both = (stacked, other) if job.layer.part == "weight" else (other, stacked)
        return job.layer.matrices(*both), statistics

    def _apply(self, block: Block, job: StreamJob) -> torch.Tensor:
        given = arguments(self._method, job)
        base, tensors = block.cache["tensors"]
        change = self._changed(block, tensors, given)
        if job.layer is not None and job.shape is not None:
            change = job.layer.stored(change, job.shape)
        return change if base is None else torch.where(change == 0, base, base + change)

    def _changed(self, block: Block, tensors: tuple[Any, ...], given: dict[str, Any]) -> torch.Tensor:
        """What the method makes; in two steps where it has them, the first of which other merges of a sweep share."""
        first, second = self._method.factors, self._method.finish
        if first is None or second is None:
            return self._method(*tensors, **given)
        deciding = {name: given[name] for name in _keywords(first)}
        if block.cache.get("of") != repr(deciding):
            # One set at a time: those of a whole sweep could take any amount of memory.
            block.cache.pop("factors", None)
            block.cache |= {"factors": first(*tensors, **deciding), "of": repr(deciding)}
        made = second(block.cache["factors"], **{name: given[name] for name in _keywords(second)})
        return made.to(tensors[0].dtype)

    def _upload(self, bits: NDArray[Any], floats: type[Any]) -> torch.Tensor:
        host = torch.from_numpy(bits)
        if self._device != "cpu":
            host = host.pin_memory().to(self._device, non_blocking=True)
        if bits.dtype == np.uint16:
            host = host.view(torch.bfloat16)
        elif bits.dtype == np.int16:
            host = host.view(torch.float16)
        return host.to(torch.float64 if floats is np.float64 else torch.float32)

    def _cuda_stream(self) -> Any:
        if self._device == "cpu":
            return torch.no_grad()
        if not hasattr(self._local, "stream"):
            self._local.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._local.stream)


def arguments(method: Method, job: StreamJob) -> dict[str, Any]:
    """What the method's function is called with, beside the tensors."""
    keywords = ["lambda_" if name == "lambda" else name for name in method.params]
    given = {keyword: job.parameters[keyword] for keyword in keywords}
    return given | {name: job.parameters[name] for name in ("rng", "scope") if name in job.parameters}


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


def _stored(result: torch.Tensor, dtype: np.dtype[Any]) -> torch.Tensor:
    """The result rounded to its stored dtype, as something numpy can hold."""
    if dtype == np.uint16:
        return result.to(torch.bfloat16).view(torch.int16)
    if dtype == np.int16:
        return result.to(torch.float16).view(torch.int16)
    return result.to(torch.float64 if dtype == np.float64 else torch.float32)
