"""What fits in memory at a time: statistics of a large model are collected in several passes over the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eutectic.errors import Problem, ResourceError
from eutectic.run.budget import enough
from eutectic.statistics.model import Layout

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Passes:
    """Which units are collected together.

    Attributes:
        units: of each pass over the data.
        model_bytes: what the module takes.
        sums_bytes: what the largest pass takes.
        total_bytes: of all statistics.
    """

    units: tuple[tuple[str, ...], ...]
    model_bytes: int
    sums_bytes: int
    total_bytes: int


def plan_passes(layout: Layout, module: nn.Module, memory: int | None) -> Passes:
    """Fills each pass with units in the order of the module.

    Args:
        layout: what there is to collect, float32.
        module: what is held beside it.
        memory: bytes for both; None: all in one pass.

    Raises `ResourceError` (F105) where the module and one unit do not fit, with the figure.
    """
    tensors = [*module.parameters(), *module.buffers()]
    model = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    sizes = {unit: sum(4 * math.prod(shape) for shape in of.values()) for unit, of in layout.units.items()}
    largest = max(sizes, key=sizes.__getitem__)
    if memory is not None and model + sizes[largest] > memory:
        need = model + sizes[largest]
        message = f"{memory:,} bytes hold no pass: {model:,} for the model and {sizes[largest]:,} for {largest} alone"
        raise ResourceError(Problem("F105", message, "memory", f"give at least {enough(need)}"))
    passes: list[list[str]] = [[]]
    held = 0
    for unit, size in sizes.items():
        if passes[-1] and memory is not None and model + held + size > memory:
            passes.append([])
            held = 0
        passes[-1].append(unit)
        held += size
    peak = max(sum(sizes[unit] for unit in part) for part in passes)
    return Passes(tuple(map(tuple, passes)), model, peak, sum(sizes.values()))
