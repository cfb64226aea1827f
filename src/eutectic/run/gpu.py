"""What stands between a merge and a GPU: its free memory, a stream for each worker, one computation at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from eutectic.errors import Problem, ResourceError
from eutectic.lazy import LazyModule
from eutectic.methods import POSTS
from eutectic.plan import Plan

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

# Before it computes, a library for matrices takes some for itself.
RESERVED = 512 << 20
# What a library for matrices takes for each stream that it works on.
WORKSPACE = 32 << 20
# Workers that keep a GPU busy; more of them wait for each other.
WORKERS = 6
# Main memory that CUDA's libraries take once they compute, beyond what making the device ready takes.
LIBRARIES = 640 << 20


def numbered(device: str) -> str:
    """The device with its number: the workers' threads know nothing of the one that the caller has made the current."""
    kind, _, number = device.partition(":")
    return f"cuda:{int(number or torch.cuda.current_device())}" if kind == "cuda" else device


def free_bytes(device: str) -> int:
    """What a merge may take of the device's memory now. Makes the device ready, which takes main memory too."""
    free, _ = torch.cuda.mem_get_info(device)
    # What torch holds of it and does not use is free for us.
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, int(free + idle) - RESERVED)


def name_of(device: str) -> str:
    """What the device calls itself."""
    return str(torch.cuda.get_device_name(device))


def pinned(nbytes: int) -> NDArray[np.uint8]:
    """Page-locked memory, which a GPU copies from and to by itself; all that torch takes for it."""
    memory: NDArray[np.uint8] = torch.empty(pinned_size(nbytes), dtype=torch.uint8, pin_memory=True).numpy()
    return memory


def pinned_size(nbytes: int) -> int:
    """What torch takes for so much page-locked memory: the next power of two."""
    return 1 << max(nbytes - 1, 0).bit_length()


def left_to_the_cpu(plan: Plan, device: str) -> list[str]:
    """What of a plan the CPU does though a GPU was asked for, in words."""
    if device == "cpu":
        return []
    notes = []
    if plan.recipe.scope == "model":
        notes.append(f"`scope: model` is computed on the CPU, {device} is not used")
    if any(item.plan is not None for item in plan.inputs):
        notes.append(f"recipes within the recipe are computed on the CPU, not on {device}")
    if any(POSTS[step.name].matrix for job in plan.jobs for step in job.post):
        notes.append(f"`svc` is computed on the CPU, not on {device}")
    return notes


_local = threading.local()
_loading = threading.Lock()


@cache
def load_linear_algebra(device: str) -> None:
    """Loads torch's library of decompositions, which several threads at once may not do; once for a device."""
    with _loading, _room(device):
        torch.linalg.cholesky_ex(torch.eye(1, device=device))


@contextmanager
def worker_stream(device: str) -> Iterator[None]:
    """A stream of the calling thread, so that its copies overlap what others compute; waits for it at the end.

    So the host may reuse its memory, and any stream may read what was written.
    """
    streams: dict[str, Any] = _local.__dict__
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(streams[device]), _room(device):
        yield
        streams[device].synchronize()


def shared(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Memory that any thread may write to, each from its own stream, which knows nothing of what others have to do."""
    held = torch.empty(shape, dtype=dtype, device=device)
    wait(device)
    return held


def wait(device: str) -> None:
    """Waits for the calling thread's stream."""
    torch.cuda.current_stream(device).synchronize()


class Computing:
    """One computation on whole tensors at a time, and all that it makes from one stream, where memory is used again."""

    _known: ClassVar[dict[str, Computing]] = {}
    _guard = threading.Lock()

    def __init__(self, device: str) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @classmethod
    def on(cls, device: str) -> Computing:
        """That of this device."""
        with cls._guard:
            if device not in cls._known:
                cls._known[device] = cls(device)
            return cls._known[device]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the device's computing stream, and does not wait for what is computed there."""
        with self._lock, torch.cuda.stream(self._stream), _room(self._device):
            yield


@contextmanager
def _room(device: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # Torch's own error is one of these; cuBLAS and cuSOLVER have no class of theirs.
        if not any(sign in str(error) for sign in ("out of memory", "ALLOC_FAILED")):
            raise
        raise ResourceError(
            Problem(
                "M604",
                f"{device} has no room left: {str(error).splitlines()[0]}",
                "device",
                "free memory of the GPU or use `device='cpu'`; the same command goes on where this one stopped",
            )
        ) from error
