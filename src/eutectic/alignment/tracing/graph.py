"""A module → its graph of core operations → what is known of every tensor in it."""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import eutectic.alignment.tracing.shapes  # noqa: F401 (its rules register themselves)
from eutectic.alignment.plain import plain
from eutectic.alignment.tracing.arithmetic import pointwise
from eutectic.alignment.tracing.atoms import fix, leaves
from eutectic.alignment.tracing.rules import RULES, Made, Step, name_of
from eutectic.alignment.tracing.values import (
    Origin,
    Trace,
    Unknown,
    Value,
    all_fixed,
    all_free,
    fix_value,
    still,
    values_in,
)
from eutectic.errors import Problem, RecipeError
from eutectic.lazy import LazyModule
from eutectic.statistics.layers import still as evaluating

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram
else:
    torch = LazyModule("torch")


def exported(module: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> ExportedProgram:
    """The graph of a module in evaluation mode, in core operations; attention stays whole.

    Raises `RecipeError` (G140) where torch cannot export it, or the module cannot be called so at all.
    """
    with evaluating(module), plain(module), torch.no_grad(), _quiet():
        try:
            program = torch.export.export(module, arguments, dict(options), strict=False)
            table = torch.export.default_decompositions()
            del table[torch.ops.aten.scaled_dot_product_attention.default]
            core: ExportedProgram = program.run_decompositions(table)
            return core
        except Exception as error:  # whatever the module's own code raises
            raise RecipeError(_refusal(module, arguments, options, error)) from error


def _refusal(module: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any], error: Exception) -> Problem:
    """Why there is no graph: what torch says, or, first of all, that the module cannot be called so."""
    name = type(module).__name__
    try:
        module(*arguments, **options)
    except Exception as own:
        hint = "in Python, give as `inputs` what it is called with: a tensor, a sequence, or a mapping by name"
        return Problem("G140", f"{name} cannot be called with them: {_said(own)}", "inputs", hint)
    hint = "what depends on data (loops, branches, nonzero) has no graph; declare its symmetries instead"
    return Problem("G140", f"torch.export makes no graph of {name}: {_said(error)}", hint=hint)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {shorten(str(error).strip().partition(chr(10))[0], 200)}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch prints beside its exceptions, whole graphs among it, and its warnings about itself."""
    logs = [logging.getLogger(name) for name in ("torch", "torch.fx.experimental.symbolic_shapes")]
    levels = [log.level for log in logs]
    for log in logs:
        # What is an error in them is raised as well.
        log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def followed(program: ExportedProgram, called: Mapping[str, str]) -> tuple[Trace, dict[str, Value]]:
    """Goes through a graph: what was noted, and tensor of the module → its value.

    Args:
        program: of `exported`.
        called: name of a tensor in the program → its name in the table.

    Raises `RecipeError` (G141), all at once, for operations without a rule through which units pass.
    """
    trace, tensors = Trace(), dict[str, Value]()
    known: dict[Any, Any] = {}
    signature = program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names = {
        given: called.get(name, name) for given, name in stored.items() if name not in signature.non_persistent_buffers
    }
    for node in program.graph.nodes:
        if node.op == "placeholder":
            name = names.get(node.name)
            known[node] = tensors.get(name or "") or _given(node, name)
            if name is not None and node.users:
                tensors[name] = known[node]
        elif node.op == "call_function":
            known[node] = _made(trace, node, known)
        elif node.op == "output":
            for value in values_in(_known(node.args, known)):
                fix_value(value)
        trace.values += [one for value in values_in(known.get(node)) for one in value.items()]
    _refuse(_passed(trace, tensors))
    return trace, tensors


def _given(node: Any, name: str | None) -> Any:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return value
    shape = tuple(int(size) for size in value.shape)
    if name is None:
        return all_fixed(shape)
    return Value(all_free(shape).axes, Origin(name, tuple(frozenset({dim}) for dim in range(len(shape)))))


def _known(arguments: Any, known: Mapping[Any, Any]) -> Any:
    return torch.fx.node.map_arg(arguments, lambda node: known[node])


def _made(trace: Trace, node: Any, known: Mapping[Any, Any]) -> Made | None:
    arguments, options = _known(node.args, known), _known(node.kwargs, known)
    if node.target is operator.getitem:
        made: Made | None = arguments[0][arguments[1]]
        return made
    name = name_of(node.target)
    _refuse_unsized(node, name)
    if name in RULES and (ruled := RULES[name](Step(trace, node), *arguments, **options)) is not NotImplemented:
        return ruled
    inputs = values_in([arguments, options])
    if inputs and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return pointwise(Step(trace, node), *arguments, **options)
    return _unknown(trace, node, name, inputs)


def _refuse_unsized(node: Any, name: str) -> None:
    """G140 for what makes a number or a size that depends on data."""
    made = node.meta.get("val")
    numbers = [
        size for one in (made if isinstance(made, list | tuple) else [made]) for size in getattr(one, "shape", [one])
    ]
    if any(isinstance(number, torch.SymInt | torch.SymFloat | torch.SymBool) for number in numbers):
        message = f"{name!r} makes a size that depends on data"
        hint = "trace it without what is chosen by data (masks, nonzero, a loop), or declare its symmetries"
        raise RecipeError(Problem("G140", message, _module(node), hint))


def _module(node: Any) -> str:
    """The module that a node stands in."""
    modules = list(node.meta.get("nn_module_stack", {}).values())
    return str(modules[-1][0]) if modules else ""


def _unknown(trace: Trace, node: Any, name: str, inputs: list[Value]) -> Made | None:
    """Where nothing that goes in moves, nothing that comes out does; else it is seen at the end."""
    made = node.meta.get("val")
    if made is None:
        return None
    several = made if isinstance(made, list | tuple) else [made]
    shapes = [tuple(map(int, one.shape)) if isinstance(one, torch.Tensor) else () for one in several]
    moving = not all(still(value) for value in inputs)
    outputs = tuple((all_free if moving else all_fixed)(shape) for shape in shapes)
    if moving:
        axes = tuple(axis for value in inputs for axis in value.axes)
        outwards = tuple(axis for value in outputs for axis in value.axes)
        trace.unknown.append(Unknown(name, _module(node), axes, outwards))
    return outputs if isinstance(made, list | tuple) else outputs[0]


def _passed(trace: Trace, tensors: Mapping[str, Value]) -> list[Unknown]:
    """The operations without a rule through which units of tensors pass, once it is known which those are."""
    left = trace.unknown
    while True:
        units = {atom for value in tensors.values() for axis in value.axes for atom in leaves(axis) if not atom.fixed}
        harmless = [one for one in left if not any(atom in units for axis in one.inputs for atom in leaves(axis))]
        if not harmless:
            return left
        for one in harmless:
            for axis in (*one.inputs, *one.outputs):
                fix(axis)
        left = [one for one in left if one not in harmless]


def _refuse(unknown: list[Unknown]) -> None:
    seen = dict.fromkeys((one.operation, one.module) for one in unknown)
    hint = "declare the symmetries of this model, or compute the same with operations that are understood"
    problems = [
        Problem("G141", f"units pass through {name!r}, of which it is not known what it does to them", module, hint)
        for name, module in seen
    ]
    if problems:
        raise RecipeError(problems)
