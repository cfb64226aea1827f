"""∂L/∂θ → ∂L/∂w: backwards through a merge method, block by block; what it keeps of each delta is found once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eutectic import methods
from eutectic.checkpoint import Source
from eutectic.lazy import LazyModule
from eutectic.plan import Plan
from eutectic.run.groups import stream_job
from eutectic.run.merged import MergedSource
from eutectic.run.reference import arguments

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

# What a method is once its trims or masks are fixed: elementwise, and differentiable in `weight` almost everywhere.
SETTLED = {
    "linear": "linear",
    "task_arithmetic": "task_arithmetic",
    "ties": "ties",
    "dare_linear": "task_arithmetic",
    "dare_ties": "ties",
}
METHODS = tuple(SETTLED)
# Entries that are worked on at a time.
_BLOCK = 1 << 18
# What finding the kept entries of one model takes an entry, by trims and by masks (measured).
_TRIM_BYTES, _MASK_BYTES = 60, 84
# What a block takes an entry and model: as read, as a float, the delta, and what autograd keeps.
_BLOCK_BYTES = 48


class _Kept(NamedTuple):
    """Which entries of a delta a method keeps, eight a byte, and by what it multiplies them."""

    bits: NDArray[np.uint8]
    factor: float


class Pullback:
    """The gradient by weights of merges that differ in their weights alone.

    Trims and masks do not depend on the weights, and are found at the first call: one bit an entry and model is held.
    Sign votes are taken anew; they are steps in the weights, flat almost everywhere, as is the rounding of the output,
    which is passed over.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], _Kept] = {}

    def __call__(self, merge: MergedSource, gradient: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """∂L/∂w of every merged tensor that has a gradient: `(K,)` in float64, its models in the order of the plan.

        Args:
            merge: the live merge.
            gradient: ∂L/∂θ by the name of the merge's tensor.
        """
        return {
            job.name: self._tensor(merge, number, gradient[job.name])
            for number, job in enumerate(merge.plan.jobs)
            if job.action == "merge" and job.name in gradient
        }

    def _tensor(self, merge: MergedSource, number: int, gradient: torch.Tensor) -> torch.Tensor:
        plan, job = merge.plan, merge.plan.jobs[number]
        settled = methods.get(SETTLED[plan.method.name])
        assert settled is not None
        given = arguments(plan.method, stream_job(plan, number))
        given = {name: given[name] for name in ("normalize", "lambda_") if name in given}
        # What is dropped is dropped already.
        given |= {"density": 1.0} if "density" in settled.params else {}
        flat = gradient.reshape(-1)
        with torch.enable_grad():
            weight = torch.tensor(job.parameters["weight"], dtype=torch.float64, requires_grad=True)
            for start in range(0, len(flat), _BLOCK):
                stop = min(start + _BLOCK, len(flat))
                tensors = self._block(merge, number, start, stop, flat.device)
                shares = list(weight.to(flat.device).unbind())
                change = settled.function(tensors, weight=shares, **given)
                change.backward(flat[start:stop].to(change.dtype))  # type: ignore[no-untyped-call]
        return torch.zeros_like(weight) if weight.grad is None else weight.grad

    def _block(self, merge: MergedSource, number: int, start: int, stop: int, device: Any) -> torch.Tensor:
        """Entries of what the settled method takes, `(K, stop - start)`."""
        plan = merge.plan
        rows = _rows(merge, number, start, stop, range(len(plan.jobs[number].inputs))).to(device)
        if plan.method.space == "weights":
            return rows
        deltas = rows[1:] - rows[0]
        if "density" not in plan.method.params:
            return deltas
        for k, delta in enumerate(deltas):
            kept = self._kept.get((number, k)) or self._find(merge, number, k)
            mask = np.unpackbits(kept.bits[start // 8 : -(-stop // 8)], count=stop - start)
            delta *= torch.from_numpy(mask).to(device, delta.dtype) * kept.factor
        return deltas

    def _find(self, merge: MergedSource, number: int, k: int) -> _Kept:
        """What the method keeps of one delta: the merge of that model alone, with a weight of one."""
        plan, job = merge.plan, merge.plan.jobs[number]
        rows = _rows(merge, number, 0, job.spec.numel, (0, k + 1))
        delta = (rows[1] - rows[0]).reshape(job.spec.shape)
        del rows
        given = arguments(plan.method, stream_job(plan, number))
        for param in plan.method.params.values():
            keyword = plan.method.keywords[param.name]
            if param.per_model and not isinstance(given[keyword], int | float | str):
                given[keyword] = given[keyword][k : k + 1]
        if "rng" in given:
            given["rng"] = replace(given["rng"], models=given["rng"].models[k : k + 1])
        sparse = plan.method.function(delta[None], **given | {"weight": 1.0, "normalize": False, "lambda_": 1.0})
        flat, entries = sparse.reshape(-1), delta.reshape(-1)
        largest = int(flat.abs().argmax())
        factor = float(flat[largest].double() / entries[largest].double()) if flat[largest] != 0 else 1.0
        kept = _Kept(np.packbits((flat != 0).numpy()), factor)
        self._kept[number, k] = kept
        return kept


def _rows(merge: MergedSource, number: int, start: int, stop: int, which: Sequence[int]) -> torch.Tensor:
    """Entries of some inputs of a job, as floats."""
    plan, job = merge.plan, merge.plan.jobs[number]
    wide = getattr(torch, plan.working[number])
    rows = torch.empty((len(which), stop - start), dtype=wide)
    for row, place in enumerate(which):
        i, name = job.inputs[place]
        rows[row] = _read(merge.sources[i], name, start, stop)
    return rows


def _read(source: Source, name: str, start: int, stop: int) -> torch.Tensor:
    tensor = torch.empty(stop - start, dtype=getattr(torch, source.specs[name].dtype))
    source.read_into(name, start, stop, tensor.view(torch.uint8).numpy().data)
    return tensor


def pullback_bytes(plan: Plan) -> int:
    """Memory that a `Pullback` takes at most beside the gradient that it is given."""
    merged = [job.spec.numel for job in plan.jobs if job.action == "merge"]
    block = min(_BLOCK, max(merged, default=0)) * len(plan.inputs) * _BLOCK_BYTES
    if "density" not in plan.method.params:
        return block
    finding = _MASK_BYTES if plan.method.random else _TRIM_BYTES
    return block + max(merged, default=0) * finding + sum(merged) * len(plan.inputs) // 8
