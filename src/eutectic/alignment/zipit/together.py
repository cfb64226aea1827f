"""Modules that have tensors in common, run as one: what they would compute alike is computed once."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eutectic.errors import Problem, RecipeError
from eutectic.lazy import LazyModule
from eutectic.statistics.layers import still

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils import _pytree as pytree
else:
    torch = LazyModule("torch")
    pytree = LazyModule("torch.utils._pytree")


@dataclass(frozen=True, slots=True)
class _Value:
    """A value of the program, by its number."""

    number: int

    def __repr__(self) -> str:
        return f"%{self.number}"


@dataclass(slots=True)
class _Step:
    value: int
    target: Any
    args: Any
    kwargs: Any
    last: tuple[int, ...] = ()


@dataclass(slots=True)
class Program:
    """The graphs of several modules as one, in which equal operations on equal values stand once.

    Attributes:
        form: of the inputs it is for: their structure, dtypes, devices and dimensions, and what is no tensor.
        shapes: of each module and each input: its sizes, numbers where they are fixed and symbols where they are free.
        ranges: symbol → what it may be.
    """

    form: Any
    shapes: list[list[tuple[Any, ...]]] = field(default_factory=list)
    ranges: dict[Any, Any] = field(default_factory=dict)
    _numbers: dict[Any, int] = field(default_factory=dict)
    _steps: list[_Step] = field(default_factory=list)
    _inputs: dict[int, int] = field(default_factory=dict)
    _stored: dict[int, tuple[int, str]] = field(default_factory=dict)
    _constants: dict[int, Any] = field(default_factory=dict)
    _outputs: list[tuple[Any, Any]] = field(default_factory=list)

    def fits(self, form: Any, leaves: Sequence[Any]) -> bool:
        """Whether inputs of this form and these sizes may be given."""
        if form != self.form:
            return False
        return all(self._fits(shapes, leaves) for shapes in self.shapes)

    def _fits(self, shapes: Sequence[tuple[Any, ...]], leaves: Sequence[Any]) -> bool:
        known: dict[Any, int] = {}
        sizes = [
            (due, size)
            for shape, leaf in zip(shapes, leaves, strict=True)
            if isinstance(leaf, torch.Tensor)
            for due, size in zip(shape, leaf.shape, strict=True)
        ]
        for due, size in sizes:
            free = getattr(due, "is_Symbol", False)
            if free and (known.setdefault(due, size) != size or not _within(size, self.ranges.get(due))):
                return False
        return all(int(due.xreplace(known)) == size if hasattr(due, "xreplace") else due == size for due, size in sizes)

    def run(self, members: Sequence[nn.Module], leaves: Sequence[Any]) -> tuple[Any, ...]:
        """What each module makes of the inputs."""
        values: dict[int, Any] = dict(self._constants)
        values |= {number: leaves[at] for number, at in self._inputs.items()}
        values |= {number: _tensor(members[of], name) for number, (of, name) in self._stored.items()}
        for step in self._steps:
            args, kwargs = _filled((step.args, step.kwargs), values)
            values[step.value] = step.target(*args, **kwargs)
            for number in step.last:
                del values[number]
        return tuple(pytree.tree_unflatten(_filled(found, values), spec) for found, spec in self._outputs)

    def add(self, number: int, exported: Any, module: nn.Module) -> None:
        """Adds the graph of a module, which is the members' `number`."""
        inputs = iter(exported.graph_signature.input_specs)
        known: dict[Any, Any] = {}
        shapes: list[tuple[Any, ...]] = []
        self.ranges |= exported.range_constraints
        for node in exported.graph.nodes:
            if node.op == "placeholder":
                known[node] = self._placed(number, node, next(inputs), exported, module, shapes)
            elif node.op == "get_attr":
                known[node] = self._attribute(getattr(exported.graph_module, node.target))
            elif node.op == "call_function":
                known[node] = self._called(node, known)
            else:
                found = [known.get(one, one) for one in node.args[0]]
                self._outputs.append((found, exported.call_spec.out_spec))
        self.shapes.append(shapes)

    def close(self) -> None:
        """Nothing is added any more: notes after which step each value is of no more use."""
        kept = {one.number for found, _ in self._outputs for one in found if isinstance(one, _Value)}
        for step in reversed(self._steps):
            used = {one.number for one in pytree.tree_leaves((step.args, step.kwargs)) if isinstance(one, _Value)}
            step.last = tuple((used | {step.value}) - kept)
            kept |= used | {step.value}

    def _placed(self, of: int, node: Any, spec: Any, exported: Any, module: nn.Module, shapes: list[Any]) -> _Value:
        """A parameter, buffer, constant or input."""
        kind = spec.kind.name
        if kind == "USER_INPUT":
            value = self._number(("input", len(shapes)))
            self._inputs[value.number] = len(shapes)
            meta = node.meta.get("val")
            shapes.append(tuple(_size(one) for one in meta.shape) if isinstance(meta, torch.Tensor) else ())
            return value
        if kind in ("PARAMETER", "BUFFER"):
            value = self._number(("tensor", id(_tensor(module, spec.target))))
            self._stored.setdefault(value.number, (of, spec.target))
            return value
        constant = exported.constants[spec.target]
        bits = constant.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        value = self._number(("constant", str(constant.dtype), tuple(constant.shape), bytes(bits.tolist())))
        self._constants[value.number] = constant
        return value

    def _attribute(self, part: Any) -> _Value:
        """A part of the graph that stands by itself; equal ones are told by their code."""
        bare = isinstance(part, torch.fx.GraphModule) and not [*part.parameters(), *part.buffers()]
        value = self._number(("graph", part.code) if bare else ("graph", id(part)))
        self._constants[value.number] = part
        return value

    def _called(self, node: Any, known: Mapping[Any, Any]) -> _Value:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        key: Any = (node.target, repr(args), repr(kwargs))
        if _is_random(node):
            key = (*key, id(node))
        before = len(self._numbers)
        value = self._number(key)
        if value.number == before:
            self._steps.append(_Step(value.number, node.target, args, kwargs))
        return value

    def _number(self, key: Any) -> _Value:
        return _Value(self._numbers.setdefault(key, len(self._numbers)))


class Together:
    """Runs modules on the same inputs, as in evaluation mode.

    Their graphs are exported at the first inputs of a form (structure, dtypes, dimensions; sizes as far as a graph
    depends on them) and kept for the next ones. Two operations are one where they are the same on the same values, and
    tensors are the same where they are one object: modules have in common what lies before their first tensors of
    their own. Random operations are each by itself.

    Args:
        members: modules whose common tensors are one object in each of them.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        self._members = members
        self._programs: list[Program] = []

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy makes graphs of its own; these hold what cannot be written.
        return Together, (list(self._members),)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """What each module makes of the inputs. Raises `RecipeError` (G246) for a module without a graph."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        form = (str(spec), *map(_form, leaves))
        program = next((one for one in self._programs if one.fits(form, leaves)), None)
        if program is None:
            program = Program(form)
            for number, member in enumerate(self._members):
                program.add(number, _exported(member, args, kwargs), member)
            program.close()
            self._programs.append(program)
        return program.run(self._members, leaves)


def _exported(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The graph of a module in evaluation mode, without operations that change a tensor in place."""
    free: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, torch.Tensor):
            # A size of one is a graph of its own: what broadcasts does not grow.
            free[leaf] = {dim: torch.export.Dim.AUTO for dim, size in enumerate(leaf.shape) if size > 1}
    try:
        with still(module), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch's own making
            shapes = free.dynamic_shapes(module, args, kwargs)
            found = torch.export.export(module, args, kwargs, dynamic_shapes=shapes).run_decompositions({})
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        hint = "run `members` one by one, which computes the common part for each"
        message = f"torch.export finds no graph of {type(module).__name__}: {type(error).__name__}: {said}"
        raise RecipeError(Problem("G246", message, hint=hint)) from error
    written = [spec.target for spec in found.graph_signature.output_specs if spec.kind.name != "USER_OUTPUT"]
    if written:
        message = f"{type(module).__name__} changes {written[0]!r} while it runs"
        raise RecipeError(Problem("G246", message, hint="zip modules whose outputs depend on their inputs alone"))
    return found


def _is_random(node: Any) -> bool:
    """Whether an operation gives something else each time. Attention does with dropout alone."""
    if node.target is torch.ops.aten.scaled_dot_product_attention.default:
        return bool(node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p"))
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _form(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return str(leaf.dtype), str(leaf.device), leaf.dim()
    return repr(leaf)


def _size(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else int(size)


def _within(size: int, bounds: Any) -> bool:
    return bounds is None or bool(operator.and_(bounds.lower <= size, size <= bounds.upper))


def _tensor(module: nn.Module, name: str) -> Any:
    path, _, own = name.rpartition(".")
    return getattr(module.get_submodule(path), own)


def _filled(tree: Any, values: Mapping[int, Any]) -> Any:
    return pytree.tree_map(lambda one: values[one.number] if isinstance(one, _Value) else one, tree)
