"""Symmetries of any module, from its graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eutectic.alignment.tracing.graph import exported, followed
from eutectic.alignment.tracing.table import table
from eutectic.checkpoint.symmetry import Symmetries

if TYPE_CHECKING:
    from torch import nn


def traced(module: nn.Module, *inputs: Any, **options: Any) -> Symmetries:
    """The permutations of units that leave what a module computes as it is, found in its graph.

    The module is run once on tensors without data (`torch.export`), in evaluation mode, and the axes of every tensor
    are followed through its operations. Inputs and outputs keep their places, and so does whatever an operation takes
    by its place: slices with a stride, sorting, positions. Groups are called after the module that makes their units.
    Scales and gauges are not traced: declare them.

    Args:
        module: any that torch can export.
        inputs: what it is called with; sizes count, values do not.
        options: keyword arguments of the call.

    Returns the table of all tensors in the module's `state_dict`.

    Raises `RecipeError`: G140 where there is no graph, G141 for every operation that units pass through and that is
    not known.
    """
    program = exported(module, inputs, options)
    trace, tensors = followed(program)
    return table(trace, tensors, _names(module, tensors))


def _names(module: nn.Module, tensors: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every tensor of a module → the name by which its graph has it, which tied ones share, and its shape."""
    held = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    first = {id(held[name]): name for name in tensors}
    stored = module.state_dict()
    return {
        name: (first.get(id(held[name]), name) if name in held else name, tuple(stored[name].shape))
        for name in stored
        if hasattr(stored[name], "shape")
    }
