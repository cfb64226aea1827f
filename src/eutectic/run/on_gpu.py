"""A method on a GPU, as a stream: blocks go up as they are read; a tensor that must be whole is so on the GPU alone."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from eutectic.kernels.streams import Block, Stream, StreamJob
from eutectic.lazy import LazyModule
from eutectic.methods import Method
from eutectic.run import gpu
from eutectic.run.reference import TorchForm, as_torch, floats_of

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")


class _Uploaded:
    """The stored bits of one job's models on the device, and what the merges of a sweep make of them in common."""

    def __init__(self, bits: torch.Tensor) -> None:
        self.bits = bits
        self.cache: dict[str, Any] = {}


class OnGpu(TorchForm, Stream):
    """The plain torch form on a CUDA device.

    An elementwise method takes blocks. For another one the blocks of a tensor are gathered on the device in a first
    reduction, and the result comes down in blocks, so that main memory never holds the tensor. Masks and kept sets are
    those of the CPU: both are functions of the index and of exact comparisons.
    """

    def __init__(self, method: Method, jobs: Sequence[StreamJob], device: str) -> None:
        super().__init__(method, jobs)
        self._device = device
        self._computing = gpu.Computing.on(device)
        if any(not method.streams(job.parameters) for job in jobs):
            gpu.load_linear_algebra(device)
        # Where statistics of another form are read, every block is a whole tensor.
        self._gathers = self._due = not method.elementwise and not method.statistics
        self._guard = threading.Lock()
        self._gathered: dict[int, _Uploaded] = {}
        self._results: dict[int, torch.Tensor] = {}

    @property
    def pending(self) -> bool:
        return self._due

    def reduce(self, block: Block) -> None:
        bits = as_torch(block.bits)
        with gpu.worker_stream(self._device):
            with self._guard:
                if block.job not in self._gathered:
                    shape = (len(bits), self._jobs[block.job].numel)
                    self._gathered[block.job] = _Uploaded(gpu.shared(shape, bits.dtype, self._device))
            for row, own in zip(self._gathered[block.job].bits, bits, strict=True):
                row[block.first : block.first + len(own)].copy_(own, non_blocking=True)

    def fold(self) -> None:
        self._due = False

    def shares(self, other: Stream) -> bool:
        return isinstance(other, OnGpu) and self._due and other._due and self._device == other._device

    def take(self, other: Stream) -> None:
        assert isinstance(other, OnGpu)
        # The tensors and not the table, from which each takes away what it no longer needs.
        self._gathered, self._due = dict(other._gathered), False

    def combine(self, block: Block, out: NDArray[Any]) -> None:
        if not self._gathers:
            with gpu.worker_stream(self._device):
                self._download(self._of_block(block), out)
            return
        if block.job not in self._results:
            with self._computing.alone():
                self._compute(block.job, block.floats)
        with gpu.worker_stream(self._device):
            self._download(self._results[block.job][block.first : block.first + len(out)], out)

    def _compute(self, job: int, floats: type[Any]) -> None:
        """Makes the result of a job, if no other thread has; on return its memory is free for the next one."""
        if job in self._results:
            return
        held = self._gathered[job]
        if "tensors" not in held.cache:
            held.cache["tensors"] = self.tensors(floats_of(held.bits, floats), self._jobs[job].shape, [], job)
        result = self.made(job, held.cache)
        # Only now may others read the result, and may what was gathered go, whose memory is another stream's.
        gpu.wait(self._device)
        self._results[job] = result
        del self._gathered[job]

    def _of_block(self, block: Block) -> torch.Tensor:
        def upload(bits: NDArray[Any]) -> torch.Tensor:
            return floats_of(as_torch(bits).to(self._device, non_blocking=True), block.floats)

        return self.made_of_block(block, upload)

    def _download(self, result: torch.Tensor, out: NDArray[Any]) -> None:
        as_torch(out).copy_(result, non_blocking=True)
