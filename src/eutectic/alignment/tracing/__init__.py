"""Symmetries of any module, from its graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eutectic.alignment.common import refuse_no_modules
from eutectic.alignment.tracing.graph import exported, followed
from eutectic.alignment.tracing.table import table_of
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
    not known, G173 for what is no module.
    """
    refuse_no_modules(module=module)
    program = exported(module, inputs, options)
    names = _names(module)
    trace, tensors = followed(program, names)
    stored = module.state_dict()
    shapes = {name: tuple(one.shape) for name, one in stored.items() if hasattr(one, "shape")}
    return table_of(trace, tensors, {name: (names.get(name, name), shape) for name, shape in shapes.items()})


def _names(module: nn.Module) -> dict[str, str]:
    """Every tensor of a module → the first of its names, which tied ones share."""
    first: dict[int, str] = {}
    parameters = module.named_parameters(remove_duplicate=False)
    buffers = module.named_buffers(remove_duplicate=False)
    return {name: first.setdefault(id(tensor), name) for name, tensor in (*parameters, *buffers)}
