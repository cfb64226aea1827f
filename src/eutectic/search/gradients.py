"""A live merge's loss and its gradient through the module, summed by what shares a weight; the memory it takes."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eutectic.checkpoint import Source
from eutectic.errors import CheckpointError, NumericError, Problem, ResourceError
from eutectic.evaluate import Settings
from eutectic.evaluate.loading import Kind
from eutectic.lazy import LazyModule
from eutectic.plan import Plan
from eutectic.run.budget import MIB, in_mib, make_budget
from eutectic.search.objectives import Loss
from eutectic.search.pullback import pullback_bytes

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

# Name of a stored tensor → ∂L/∂θ.
Gradient = Mapping[str, Any]
HALF = ("bfloat16", "float16")
# What an interpreter takes with torch and its optimisers, beside what a merge needs.
_TORCH_BYTES = 200 * MIB


def loss_gradient(
    mixture: Source, losses: Sequence[Loss], kind: Kind, run: Settings, what: str
) -> tuple[float, Gradient]:
    """The mean of some losses of a model, and its gradient by every tensor.

    Args:
        mixture: the model.
        losses: what is averaged.
        kind: of the module that they want.
        run: how to load and run it.
        what: the data's name and the batch, for messages.

    Raises `NumericError` (E908) for a loss or a gradient that is not finite, `CheckpointError` (E905) where the
    module has no parameter that the model stores.
    """
    total = 0.0
    with run.loader.module(mixture, kind, device=run.device, dtype=arithmetic(mixture)) as module:
        with torch.inference_mode(False), torch.enable_grad():
            module.zero_grad(set_to_none=True)
            for loss in losses:
                value = loss(module) / len(losses)
                total += _finite(value, mixture, what)
                value.backward()  # type: ignore[no-untyped-call]
        found = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            stored = mixture.ties.get(name, name)
            if parameter.grad is not None and stored in mixture.specs:
                found[stored] = parameter.grad.detach()
        module.zero_grad(set_to_none=True)
    if not found:
        message = "no parameter of the module has the name of a stored tensor"
        raise CheckpointError(Problem("E905", message, what))
    return total, found


def mean_loss(mixture: Source, losses: Sequence[Any], kind: Kind, run: Settings, what: str) -> float:
    """The mean loss of a model over all items of some batches (`loss.count` each), without gradient.

    Raises `NumericError` (E908).
    """
    with run.loader.module(mixture, kind, device=run.device, dtype=arithmetic(mixture)) as module:
        found = [_finite(loss(module), mixture, what) for loss in losses]
    counts: list[int] = [loss.count for loss in losses]
    return math.fsum(value * count for value, count in zip(found, counts, strict=True)) / sum(counts)


def arithmetic(mixture: Source) -> str | None:
    """The dtype to run a model in: a loss in half precision would hide small differences. None: as stored."""
    return "float32" if any(spec.dtype in HALF for spec in mixture.specs.values()) else None


def _finite(value: torch.Tensor, mixture: Source, what: str) -> float:
    number: float = value.detach().item()
    if not math.isfinite(number):
        message = f"the loss of {what} is {number} with {mixture.label}"
        raise NumericError(Problem("E908", message, what, "a smaller rate, or look at the models"))
    return number


def by_part(plan: Plan, parts: Mapping[str, Sequence[str]], gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Gradients of tensors summed over the parts of a model that share their weights: (parts, models of the recipe).

    Args:
        plan: of the merge.
        parts: the names of the tensors of each part; a tensor without gradient adds nothing.
        gradients: what `Pullback` gives.
    """
    places = places_of(plan)
    found = torch.zeros((len(parts), len(places)), dtype=torch.float64)
    for row, names in enumerate(parts.values()):
        for name in names:
            if name in gradients:
                found[row, places] += gradients[name]
    return found


def places_of(plan: Plan) -> list[int]:
    """For each model in the method's order its place among the recipe's models."""
    inputs = plan.inputs[1:] if plan.method.space == "deltas" else plan.inputs
    return [item.place for item in inputs if item.place is not None]


def refuse_memory(plan: Plan, memory: int | None, device: str = "cpu") -> None:
    """Raises `ResourceError` (M601) where learning a plan's weights cannot fit; None is the machine's memory."""
    bound = memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = needed_bytes(plan, device)
    if needed > bound:
        message = f"learning needs {-(-needed // MIB)} MiB at least, the bound is {in_mib(bound)}"
        hint = f"give {-(-needed // MIB)}MiB or more; what the forward pass keeps comes on top of it"
        raise ResourceError(Problem("M601", message, "memory", hint))


def needed_bytes(plan: Plan, device: str = "cpu") -> int:
    """Resident memory that learning takes at least: all but what the forward pass keeps for the backward one.

    The merge as it is loaded, the module and its gradient where these are not on a GPU, and the way back to weights.
    """
    width = 8 if "float64" in plan.working else 4
    least = make_budget(plan, memory=sys.maxsize, threads=1).least_bytes + _TORCH_BYTES
    entries = sum(job.spec.numel for job in plan.jobs)
    return least + plan.bytes_out + pullback_bytes(plan) + (2 * width * entries if device == "cpu" else 0)
