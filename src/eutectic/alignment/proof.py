"""A table of symmetries is believed when random elements of its group leave what a module computes as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eutectic.alignment.common import refuse_no_modules
from eutectic.alignment.moves import random_moves
from eutectic.alignment.plain import plain
from eutectic.checkpoint.source import Spec
from eutectic.checkpoint.symmetry import Moves, Symmetries
from eutectic.errors import Problem, RecipeError, listed, several
from eutectic.lazy import LazyModule
from eutectic.statistics.layers import still

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.utils import _pytree as pytree
else:
    torch = LazyModule("torch")
    pytree = LazyModule("torch.utils._pytree")

# Largest difference of outputs, as `Check.error` has it, that rounding in float64 explains with much to spare.
TOLERANCE = 1e-8


@dataclass(frozen=True)
class Check:
    """Whether a table holds.

    Attributes:
        holds: whether all elements left the outputs as they were, but for rounding.
        error: the largest difference of an output over all elements, relative to the largest of its entries that depend
            on the weights: a mask of -1e9 beside logits hides nothing.
        tolerance: what `error` is compared with.
        elements: number of random elements.
        groups: how many groups the table has, and
        gauges: how many gauges.
        broken: group or gauge → the error of an element of it alone; of those that break the outputs. Empty with
            `holds` False: none does alone.
        unreached: groups and gauges of whose tensors none has a gradient: the outputs of these inputs do not depend on
            them, and nothing is proved of them (experts that no token is sent to). Empty where gradients do not flow.
    """

    holds: bool
    error: float
    tolerance: float
    elements: int
    groups: int
    gauges: int
    broken: Mapping[str, float]
    unreached: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Check: {self}>"

    def __str__(self) -> str:
        what = f"{several(self.groups, 'group')} and {several(self.gauges, 'gauge')}"
        if self.holds:
            beside = f"; nothing is proved of {listed(self.unreached)}: no input reaches them" if self.unreached else ""
            return f"{what} hold: {self.elements} random elements change outputs by {self.error:.1e} at most{beside}"
        worst = sorted(self.broken, key=lambda name: -self.broken[name])
        which = f"those that break alone are {listed(worst)}" if worst else "none breaks alone"
        return f"{what} do not hold: outputs change by {self.error:.1e}; {which}"

    def as_json(self) -> dict[str, Any]:
        """The check as plain data; an error that is infinite is null."""
        finite = {name: error if math.isfinite(error) else None for name, error in self.broken.items()}
        error = self.error if math.isfinite(self.error) else None
        return {**vars(self), "error": error, "broken": finite, "unreached": list(self.unreached)}


def check(module: nn.Module, symmetries: Symmetries, inputs: Any, *, elements: int = 3, seed: int = 0) -> Check:
    """Applies random elements to a float64 copy of a module and compares outputs, in evaluation mode.

    Weights are those of the module times random factors near 1, and small random numbers where a tensor is all zeros:
    gains of ones, biases of zeros and fresh running statistics would hide that a table leaves them out. What the
    module does in float32 within is done in float64. When outputs change, every group and gauge is tried by itself.

    Args:
        module: stays as it is.
        symmetries: its table. A name that it leaves out has the axes of the tensor that it is tied to.
        inputs: a tensor, a sequence of arguments, or a mapping of keyword arguments.
        elements: how many random elements, 1 or more.
        seed: of the elements and of the factors.

    Raises `RecipeError`: G116 for no elements, G173 for what is no module, G101–G103 for a table of another model or of
    none, G150 for tied tensors that move apart, G151 for outputs that prove nothing: none, not finite, whole numbers
    alone, others in each run, or the same whatever the weights.
    """
    refuse_no_modules(module=module)
    if elements < 1:
        raise RecipeError(Problem("G116", f"must be a whole number from 1 on, not {elements!r}", "elements"))
    names = [*symmetries.groups, *symmetries.gauges]
    twin = copy.deepcopy(module).double()
    symmetries = _completed(twin, symmetries)
    if problems := symmetries.problems(_specs(twin)):
        raise RecipeError(problems)
    _shake(twin, seed)
    state = {name: tensor.clone() for name, tensor in _tensors(twin).items()}
    given = pytree.tree_map_only(torch.Tensor, _double, inputs)
    due, again = _outputs(twin, given), _outputs(twin, given)
    _shake(twin, seed + 1)
    others = _outputs(twin, given)
    scales = [_scale(one, other) for one, other in zip(due, others, strict=True)]
    _refuse_blind(due, _distance(again, due, scales), others if names else None, state)
    unreached = _unreached(twin, given, symmetries)

    def error(moves: Moves) -> float:
        for name, tensor in _tensors(twin).items():
            tensor.copy_(symmetries.made(name, state.__getitem__, moves))
        return _distance(_outputs(twin, given), due, scales)

    drawn = [random_moves(symmetries, seed + number) for number in range(elements)]
    worst = max((error(moves) for moves in drawn), default=0.0)
    broken: dict[str, float] = {}
    if worst > TOLERANCE:
        alone = {name: error(_alone(name, drawn[0], symmetries)) for name in names}
        broken = {name: one for name, one in alone.items() if one > TOLERANCE}
    counts = len(symmetries.groups), len(symmetries.gauges)
    return Check(worst <= TOLERANCE, worst, TOLERANCE, elements, *counts, broken, unreached)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: one for name, one in module.state_dict().items() if isinstance(one, torch.Tensor)}


def _specs(module: nn.Module) -> dict[str, Spec]:
    return {name: Spec(str(one.dtype), tuple(one.shape)) for name, one in _tensors(module).items()}


def _names(module: nn.Module) -> Iterator[list[str]]:
    """All names of each tensor that has several."""
    found: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for name, tensor in _tensors(module).items():
        if tensor.numel():
            found.setdefault((tensor.data_ptr(), tuple(tensor.shape)), []).append(name)
    return (names for names in found.values() if len(names) > 1)


def _completed(module: nn.Module, symmetries: Symmetries) -> Symmetries:
    """A table with all names of tensors that it has one name of. Raises `RecipeError` (G150)."""
    problems: list[Problem] = []
    axes = dict(symmetries.axes)
    for names in _names(module):
        first, *others = [name for name in names if name in axes] or [""]
        for name in others:
            if _placed(axes[name]) != _placed(axes[first]):
                message = f"is one tensor with {first}, and the table moves them apart"
                problems.append(Problem("G150", message, name, "give both the same axes"))
        axes |= {name: axes[first] for name in names if first and name not in axes}
    if problems:
        raise RecipeError(problems)
    return replace(symmetries, axes=axes)


def _placed(axes: Any) -> Any:
    """Axes without their roles, which orders do not ask for."""
    return [[part.factors for part in parts] for parts in axes]


def _shake(module: nn.Module, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    stored = module.state_dict().keys()
    tensors = [*module.named_parameters(), *((n, b) for n, b in module.named_buffers() if n in stored)]
    for _, tensor in tensors:
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=draw, dtype=torch.float64).to(tensor.device)
        with torch.no_grad():
            tensor.copy_(noise * 0.1 if not tensor.any() else tensor * torch.exp(0.2 * noise))


@contextmanager
def _wide() -> Iterator[None]:
    """Whatever is made float32 or narrower is made float64."""
    from torch.utils._python_dispatch import TorchDispatchMode

    narrow = {torch.float32, torch.float16, torch.bfloat16}

    class Wide(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if kwargs.get("dtype") in narrow:
                kwargs["dtype"] = torch.float64
            return func(*args, **kwargs)

    with Wide():  # type: ignore[no-untyped-call]
        yield


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _unreached(module: nn.Module, inputs: Any, symmetries: Symmetries) -> tuple[str, ...]:
    """See `Check.unreached`."""
    stored = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    try:
        live = _live(module, inputs, symmetries)
    except RuntimeError:
        # What a module does in place, or an operation that nobody differentiated, is no reason to refuse a proof.
        live = set()
    found = []
    for name in (*symmetries.groups, *symmetries.gauges) if live else ():
        tensors = {tensor for tensor, *_ in symmetries.places(name) if tensor.partition("[")[0] in stored}
        if tensors and not tensors & live:
            found.append(name)
    return tuple(found)


def _live(module: nn.Module, inputs: Any, symmetries: Symmetries) -> set[str]:
    """Tensors, and slices that the table names, of which some entry has a gradient of the outputs."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    live: set[str] = set()

    def note(parameter: Tensor) -> None:
        assert parameter.grad is not None
        rows = parameter.grad.reshape(len(parameter) if parameter.dim() else 1, -1).any(1).nonzero().flatten().tolist()
        # Dropped one by one, gradients take no memory together.
        parameter.grad = None
        for name in names[id(parameter)] if rows else ():
            live.add(name)
            live.update(f"{name}[{row}]" for row in rows if f"{name}[0]" in symmetries.axes)

    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_().register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]
    draw = torch.Generator().manual_seed(0)
    outputs = [one for one in _outputs(module, inputs, gradients=True) if one.requires_grad]
    if outputs:
        # Weights of the sum are drawn: that of a softmax is 1 whatever the weights.
        drawn = [torch.rand(one.shape, generator=draw, dtype=torch.float64).to(one.device) for one in outputs]
        torch.autograd.backward(outputs, drawn)
    return live


def _outputs(module: nn.Module, inputs: Any, *, gradients: bool = False) -> list[Tensor]:
    """The tensors that a module makes, of integers too."""
    with still(module), plain(module), torch.set_grad_enabled(gradients), _wide():
        if isinstance(inputs, Mapping):
            made = module(**inputs)
        elif isinstance(inputs, torch.Tensor):
            made = module(inputs)
        else:
            made = module(*inputs)
    return [one.double() for one in pytree.tree_leaves(made) if isinstance(one, torch.Tensor)]


def _refuse_blind(due: list[Tensor], apart: float, others: list[Tensor] | None, state: Mapping[str, Tensor]) -> None:
    """Raises `RecipeError` (G151) for outputs that prove nothing.

    Args:
        due: the outputs.
        apart: how far those of another run are from them.
        others: those of other weights.
        state: the weights.
    """
    message = hint = ""
    if not any(one.numel() for one in due):
        message = "hold no number"
    elif not all(torch.isfinite(one).all() for one in due):
        broken = [name for name, one in state.items() if not one.isfinite().all()]
        hint = f"NaN or infinity is in {listed(broken)}" if broken else "give inputs as the module meets them"
        message = "are not finite"
    elif apart > TOLERANCE:
        message, hint = "are others in each run", "leave out what is drawn at random"
    elif others is not None and not any(_depends(*pair).any() for pair in zip(due, others, strict=True)):
        message, hint = "do not depend on its weights", "give inputs that the weights do something to"
    elif all(torch.equal(one, one.round()) for one in due):
        message, hint = "are whole numbers, which hide differences", "give a module that returns what they are made of"
    if message:
        raise RecipeError(Problem("G151", f"the module's outputs {message}", "inputs", hint))


def _depends(one: Tensor, other: Tensor) -> Tensor:
    """Which entries of an output depend on the weights, by what other weights make of it."""
    return (one - other).abs() > TOLERANCE * one.abs()


def _scale(one: Tensor, other: Tensor) -> Tensor:
    """What differences of entries are relative to, see `Check.error`; their own size where weights do nothing."""
    depends = _depends(one, other)
    largest = one[depends].abs().amax() if depends.any() else one.new_zeros(())
    return torch.where(depends, largest, one.abs().maximum(largest)).clamp(min=1e-300)


def _distance(outputs: list[Tensor], due: list[Tensor], scales: list[Tensor]) -> float:
    """The largest relative difference; infinite for NaN."""
    if [one.shape for one in outputs] != [one.shape for one in due]:
        return math.inf
    worst = 0.0
    for one, other, scale in zip(outputs, due, scales, strict=True):
        if other.numel():
            error = float(((one - other).abs() / scale).max())
            worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def _alone(name: str, moves: Moves, symmetries: Symmetries) -> Moves:
    """Of an element what it does to one group or gauge, with the units that are within that one."""
    if name in symmetries.gauges:
        gauge = symmetries.gauges[name]
        matrices = moves.matrices[name]
        return Moves({}, {}, {name: _unmoved(matrices, moves.orders[gauge.of]) if gauge.of else matrices})
    order, parent = moves.orders[name], symmetries.groups[name].within
    if parent is not None:
        inner = len(order) // len(moves.orders[parent])
        order = _unmoved(order.reshape(-1, inner), moves.orders[parent]).reshape(-1)
    orders = {name: order}
    left = dict(symmetries.groups)
    while ready := [one for one, group in left.items() if group.within in orders and one not in orders]:
        for one in ready:
            outer = orders[left[one].within or ""]
            inner = left[one].size // len(outer)
            orders[one] = (outer[:, None] * inner + torch.arange(inner)).reshape(-1)
    scales = {name: moves.scales[name]} if name in moves.scales else {}
    return Moves(orders, scales)


def _unmoved(rows: Tensor, order: Tensor) -> Tensor:
    """Rows that stand where units are, put where these came from."""
    made = torch.empty_like(rows)
    made[order] = rows
    return made
