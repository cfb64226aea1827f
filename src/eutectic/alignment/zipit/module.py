"""The result of ZipIt!: one trunk, and for each model what stays its own, as a module that runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, Self

from torch import nn

from eutectic.alignment.zipit.together import Together
from eutectic.averaging.statistics import statistics_layers, update_layers
from eutectic.errors import Problem, RecipeError, listed, several
from eutectic.lazy import LazyModule
from eutectic.statistics.batches import Batch
from eutectic.statistics.layers import still

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


@dataclass(frozen=True, slots=True)
class ZippedGroup:
    """What became of a group.

    Attributes:
        units: of one model, and of the merged one.
        folded: how many dimensions each model lost to merges of its own units.
        similarity: mean correlation of units that were merged into one; None if the group was not zipped (heads,
            experts) and unit u is that of every model.
    """

    units: int
    folded: tuple[int, ...]
    similarity: float | None


@dataclass(frozen=True, slots=True)
class Cost:
    """Of the zipped models and of all models apart: parameters, and floating-point operations of a forward pass."""

    parameters: int
    parameters_apart: int
    flops: int
    flops_apart: int


class Zipped(nn.Module):
    """K models that have a trunk in common.

    A call gives the outputs of each model, a tuple. In evaluation mode what they have in common is computed once; in
    training mode each model runs by itself, as its layers then may do otherwise each time.

    Attributes:
        members: the models, `nn.ModuleList`: each runs by itself, and gives what the zipped module gives for it.
            Tensors of the trunk are the same objects in each of them.
        shared: names of the tensors that all have in common, as each model has them.
        groups: group of the trunk → what became of it.
    """

    def __init__(
        self, members: Sequence[nn.Module], shared: Iterable[str], groups: Mapping[str, ZippedGroup] | None = None
    ) -> None:
        """Makes the tensors called `shared` those of the first member, in all members."""
        super().__init__()
        self.members = nn.ModuleList(members)
        self.shared = frozenset(shared)
        self.groups = dict(groups or {})
        self._join()

    def _join(self) -> None:
        first, *others = self.members
        for other in others:
            _tie(first, other, self.shared)
        self._together = Together([first, *others])

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        # Another dtype or device: torch makes a new buffer for each member, and the graphs are of the old ones.
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._join()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """What each model makes of the inputs. Raises `RecipeError` (G246) where torch.export finds no graph."""
        if self.training:
            return tuple(member(*args, **kwargs) for member in self.members)
        return self._together(*args, **kwargs)

    def joint(self, *args: Any, **kwargs: Any) -> Tensor:
        """The models' outputs one behind the other along the last axis: logits of the labels of all tasks.

        Of an output that is no tensor, its `logits`. Nothing calibrates the models against each other.
        """
        outputs = self(*args, **kwargs)
        return torch.cat([one if isinstance(one, torch.Tensor) else one.logits for one in outputs], -1)

    def __repr__(self) -> str:
        common = f"{several(len(self.shared), 'tensor')} of {several(len(self.groups), 'group')} in common"
        return f"<Zipped: {len(self.members)} models with {common}; see .groups and .members>"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The state dict of one model of the architecture. Raises `RecipeError` (G245) where models have tensors of
        their own."""
        state: dict[str, Tensor] = dict(self.members[0].state_dict())
        if own := [name for name in state if name not in self.shared]:
            hint = "zip all groups, and average the heads with heads='averaged'"
            raise RecipeError(Problem("G245", f"each model has tensors of its own: {listed(own)}", hint=hint))
        return state

    def cost(self, *args: Any, **kwargs: Any) -> Cost:
        """What it has and does, beside what the models apart have and do on the same inputs, in evaluation mode."""
        from torch.utils.flop_counter import FlopCounterMode

        counts = []
        with still(self), torch.no_grad():
            self(*args, **kwargs)  # makes the graphs, which would be counted too
            for run in (lambda: self(*args, **kwargs), lambda: [one(*args, **kwargs) for one in self.members]):
                with FlopCounterMode(display=False) as counter:
                    run()
                counts.append(counter.get_total_flops())
        apart = sum(one.numel() for member in self.members for one in member.parameters())
        return Cost(sum(one.numel() for one in self.parameters()), apart, *counts)


def reset_statistics(zipped: Zipped, loaders: Sequence[Iterable[Any]]) -> None:
    """Computes the running statistics of batch normalisation anew: of the trunk on all data, of a head on its own.

    A merged layer's outputs have another mean and a smaller variance than those it was merged from; without this,
    models with batch normalisation are of little use. Batches of the tasks are joined, so that the statistics of the
    trunk are over all tasks; heads are then given what it makes with these. A model without such layers is left alone.

    Args:
        zipped: what to change.
        loaders: of each model's data, as `eutectic.averaging.update_bn` takes them, to be gone through twice where
            heads have such layers too. Inputs alone are used. One loader may serve all.

    Raises `RecipeError`: G248 for another number of loaders, T704 without a batch.
    """
    if len(loaders) != len(zipped.members):
        message = f"{several(len(loaders), 'loader')} for {several(len(zipped.members), 'model')}"
        raise RecipeError(Problem("G248", message, "loaders", "give one for each model"))
    first = zipped.members[0]
    update_layers(_layers(first, zipped.shared)[0], chain.from_iterable(map(_joined, zip_longest(*loaders))), first)
    for member, loader in zip(zipped.members, loaders, strict=True):
        update_layers(_layers(member, zipped.shared)[1], loader, member)


def _layers(member: nn.Module, shared: frozenset[str]) -> tuple[list[Any], list[Any]]:
    """The normalisation layers of the trunk, and those behind it."""
    names = {id(part): f"{path}.running_mean".lstrip(".") for path, part in member.named_modules()}
    found = statistics_layers(member)
    inside = [layer for layer in found if names[id(layer)] in shared]
    return inside, [layer for layer in found if names[id(layer)] not in shared]


def _joined(batches: Sequence[Any]) -> list[Any]:
    """The inputs of several batches as one batch, where they can be joined; else one after the other."""
    inputs = [Batch.of(batch).inputs for batch in batches if batch is not None]
    shapes = {tuple(one.shape[1:]) if isinstance(one, torch.Tensor) else None for one in inputs}
    if len(shapes) == 1 and None not in shapes:
        return [torch.cat(inputs)]
    return inputs


def _tie(first: nn.Module, other: nn.Module, names: Iterable[str]) -> None:
    """Makes tensors of one module those of another, under every name that they have."""
    for name in names:
        path, _, own = name.rpartition(".")
        mine, there = first.get_submodule(path), other.get_submodule(path)
        table = "_parameters" if own in there._parameters else "_buffers"
        getattr(there, table)[own] = getattr(mine, table)[own]
