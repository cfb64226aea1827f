"""RegMean++: live modules are merged layer by layer, each layer on the inputs that the layers merged before it make."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eutectic import methods
from eutectic.errors import EutecticError, NumericError, Problem, RecipeError, listed, several
from eutectic.kernels.layers import Layer as Stored
from eutectic.lazy import LazyModule
from eutectic.statistics.batches import AGAIN, Batch, no_batches
from eutectic.statistics.doors import place_of
from eutectic.statistics.inputs import GramCollector
from eutectic.statistics.layers import Layer, Names, hooked, layers_of, still
from eutectic.statistics.model import Layout

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")


@dataclass(frozen=True, slots=True, eq=False)
class LayerwiseMerge:
    """Modules that were merged layer by layer.

    Attributes:
        module: the merged module, in the mode of the first one.
        solved: tensor → how it was solved, in the order of the forward pass.
        averaged: tensor → why it was averaged, or taken from the first module.
    """

    module: nn.Module
    solved: Mapping[str, str]
    averaged: Mapping[str, str]

    def __repr__(self) -> str:
        counts = f"{several(len(self.solved), 'tensor')} solved, {len(self.averaged)} averaged or taken"
        return f"<LayerwiseMerge {type(self.module).__name__}: {counts}; see .solved and .averaged>"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The state dict of the merged module."""
        return dict(self.module.state_dict())


def regmean_plusplus(
    modules: Sequence[nn.Module],
    loaders: Sequence[Iterable[Any]],
    *,
    weight: float | Sequence[float] = 1.0,
    alpha: float = 0.9,
    ridge: float = 1e-6,
) -> LayerwiseMerge:
    """Merges each linear layer and convolution as `regmean` does, on the inputs that the merged layers before it make.

    Gram matrices of `eutectic collect gram` are of what each model's own layers hand on, which is not what a layer of
    the merged model is given. Here the Gram matrix of model i is of its data as they arrive through the layers that
    are merged already; then the layer is solved, and the next one sees its outputs. What is no such layer is averaged
    beforehand, by the same weights. The modules stay as they were.

    Source: Nguyen et al. 2025, "RegMean++", arXiv:2508.03121. Differs from the paper: there inputs come through merged
    blocks of a transformer, and within a block through the model's own layers; here through merged layers throughout,
    so that it works for any module. Ridge, biases and padding are those of `regmean`.

    Cost: a forward pass over all data for each layer (layers of one input share it), and one more for their order. In
    memory stand one module more, and the Gram matrices of one layer.

    Args:
        modules: of one architecture, with their weights; the first one's device and mode are the result's.
        loaders: of each module's data, which can be gone through again; batches as for `gram`.
        weight: of a module, from 0 on: one number, or one a module.
        alpha: what off-diagonals are scaled by, 0 to 1.
        ridge: ρ of `regmean`, 0 to 1.

    Raises `RecipeError` (F101, F104, F107, F108, F109; R142 for parameters), and `NumericError` (F102) for NaN or
    infinity in weights or inputs.
    """
    _check(modules, loaders)
    first = _first(loaders)
    merging = _Merging(modules, {"weight": weight, "alpha": alpha, "ridge": ridge})
    with still(merging.merged), torch.no_grad():
        merging.average()
        merging.solve(Batch.of(first, place_of(merging.merged)), loaders)
    return LayerwiseMerge(
        merging.merged,
        merging.solved,
        {name: reason for name, reason in merging.averaged.items() if name not in merging.solved},
    )


class _Merging:
    """The merged module on its way, and what became of its tensors so far.

    Args:
        modules: of one architecture; the merged one begins as a copy of the first.
        parameters: of `regmean`.
    """

    def __init__(self, modules: Sequence[nn.Module], parameters: Mapping[str, Any]) -> None:
        self.merged = copy.deepcopy(modules[0])
        self.solved: dict[str, str] = {}
        self.averaged: dict[str, str] = {}
        self._own = self.merged.state_dict()
        self._states = [module.state_dict() for module in modules]
        self._parameters = parameters

    def average(self) -> None:
        """Makes every tensor the average, or leaves it that of the first module where there is none."""
        for name, own in self._own.items():
            if not isinstance(own, torch.Tensor):
                self.averaged[name] = "no tensor; taken from the first"
            elif own.is_floating_point():
                own.copy_(methods.regmean(self._stacked(name), None, **self._parameters))
                self.averaged[name] = "of no layer that is solved"
            else:
                equal = all(torch.equal(state[name].to(own.device), own) for state in self._states)
                differ = "" if equal else "; the modules differ in it"
                self.averaged[name] = f"{str(own.dtype).removeprefix('torch.')}; taken from the first{differ}"

    def solve(self, first: Batch, loaders: Sequence[Iterable[Any]]) -> None:
        """Solves the layers in the order of the forward pass, those of one input together."""
        collector = GramCollector(self.merged, Names(self.merged), first)
        layout, place = collector.layout, place_of(self.merged)
        weights = [*layout.units, *layout.shared]
        layers = [layer for layer in layers_of(self.merged, Names(self.merged)) if layer.weight in weights]
        order = _order(self.merged, layers, loaders, place)
        idle = [name for name in weights if name not in order]
        idle += [bias for name in idle if (bias := layout.bias.get(name))]
        self.averaged.update(layout.left_out)
        self.averaged.update(dict.fromkeys(idle, "no batch reached it"))
        together: dict[str, list[str]] = {}
        for name in order:
            together.setdefault(layout.shared.get(name, name), []).append(name)
        for unit, names in together.items():
            found = [_gram(collector, unit, loader, number, place) for number, loader in enumerate(loaders)]
            unseen = [str(number) for number, (_, count) in enumerate(found) if not count]
            more = f"; the data of modules {', '.join(unseen)} did not reach it" if unseen else ""
            for name in names:
                self._solve(name, [one for one, _ in found], layout, more)

    def _solve(self, name: str, grams: Sequence[Tensor], layout: Layout, more: str) -> None:
        """Puts the solution of a layer, weight and bias, into the merged module."""
        bias, own = layout.bias.get(name), self._own[name]
        form = Stored(name in layout.transposed, layout.groups.get(name, 1), bias is not None)
        matrices = form.matrices(self._stacked(name), self._stacked(bias) if bias else None)
        matrix = methods.regmean(matrices, grams, **self._parameters)
        own.copy_(form.stored(matrix, own.shape))
        self.solved[name] = f"solved with {bias}{more}" if bias else f"solved{more}"
        if bias:
            self._own[bias].copy_(replace(form, part="bias").stored(matrix, self._own[bias].shape))
            self.solved[bias] = f"solved with {name}{more}"

    def _stacked(self, name: str) -> Tensor:
        return torch.stack([state[name].to(self._own[name].device) for state in self._states])


def _check(modules: Sequence[nn.Module], loaders: Sequence[Iterable[Any]]) -> None:
    """Everything that is wrong before any data are gone through."""
    problems = []
    if not modules or len(modules) != len(loaders):
        problems.append(
            Problem(
                "F109",
                f"{several(len(modules), 'module')} and {several(len(loaders), 'loader')}",
                "loaders",
                "give one each",
            )
        )
    for number, loader in enumerate(loaders):
        if why := no_batches(loader):
            problems.append(Problem("F108", why, f"loaders[{number}]", AGAIN))
    for number, module in enumerate(modules[1:], 1):
        if differs := difference(modules[0], module):
            hint = "merge fine-tunes of one architecture"
            problems.append(Problem("F109", f"differs from the first in {differs}", f"modules[{number}]", hint))
    if problems:
        raise RecipeError(problems)
    broken = []
    for number, module in enumerate(modules):
        for name, tensor in module.state_dict().items():
            if isinstance(tensor, torch.Tensor) and (bad := int((~tensor.isfinite()).sum())):
                message = f"{several(bad, 'value')} of {name} {'is' if bad == 1 else 'are'} NaN or infinite"
                broken.append(Problem("F102", message, f"modules[{number}]", "mend the model"))
    if broken:
        raise NumericError(broken)


def difference(one: nn.Module, other: nn.Module) -> str:
    """What two architectures differ in, or nothing."""

    def tensors(module: nn.Module) -> dict[str, Any]:
        return {name: (tuple(t.shape), t.dtype) for name, t in [*module.named_parameters(), *module.named_buffers()]}

    def kinds(module: nn.Module) -> dict[str, Any]:
        return {path or type(module).__name__: type(part) for path, part in module.named_modules()}

    for what, look in (("tensors", tensors), ("layers", kinds)):
        a, b = look(one), look(other)
        if names := sorted(name for name in {*a, *b} if a.get(name) != b.get(name)):
            return f"its {what} {listed(names)}"
    return ""


def _first(loaders: Sequence[Iterable[Any]]) -> Any:
    """A batch of the first loader. Raises `RecipeError` (F101) for every loader without one."""
    nothing = object()
    first = [next(iter(loader), nothing) for loader in loaders]
    empty = [number for number, batch in enumerate(first) if batch is nothing]
    if empty:
        raise RecipeError([Problem("F101", "the loader gave no batch", f"loaders[{number}]") for number in empty])
    return first[0]


def _order(merged: nn.Module, layers: Sequence[Layer], loaders: Sequence[Iterable[Any]], place: Any) -> list[str]:
    """Weights in the order in which their layers are called, over all batches, as some may not reach each layer.

    Raises `RecipeError` (F109) for weights that are used twice in a pass: their inputs would depend on themselves.
    """
    order: list[str] = []
    twice: set[str] = set()
    for loader in loaders:
        for value in loader:
            calls: list[str] = []

            def note(layer: Layer, _: Tensor, calls: list[str] = calls) -> None:
                calls.append(layer.weight)

            with hooked(layers, note):
                Batch.of(value, place).run(merged)
            twice |= {name for name, count in Counter(calls).items() if count > 1}
            after = 0
            for name in calls:
                if name not in order:
                    order.insert(after, name)
                after = order.index(name) + 1
    if twice:
        message = f"used twice in a forward pass: {listed(sorted(twice))}"
        hint = "merge with `regmean`, which takes the inputs of all uses together"
        raise RecipeError(Problem("F109", message, "modules", hint))
    return order


def _gram(collector: GramCollector, unit: str, loader: Iterable[Any], number: int, place: Any) -> tuple[Tensor, int]:
    """The Gram matrix of one unit over a loader, and what it is a mean over."""
    collector.start([unit], place)
    try:
        for value in loader:
            collector.add(Batch.of(value, place))
    except EutecticError as error:
        told = [replace(problem, message=f"{problem.message} of loaders[{number}]") for problem in error.problems]
        raise type(error)(told) from None
    return collector.means()[unit], collector.counts[unit]
