"""Copies of the models on their way to one trunk: which tensors they get in common, and what goes into each tensor."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from eutectic.alignment.zipit.tensors import Partitions, merged, places_of, reading
from eutectic.alignment.zipit.trunk import groups_of, shared
from eutectic.checkpoint.symmetry import Symmetries
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")


def write(
    members: Sequence[nn.Module], tables: Sequence[Symmetries], partitions: Partitions, averaged: bool
) -> set[str]:
    """Gives the members the tensors of the zipped model; those in common are written into the first one.

    Args:
        members: copies of the models, to be changed.
        tables: of each.
        partitions: of the groups of the trunk.
        averaged: whether what stays behind the trunk is averaged too.

    Returns the names of the tensors in common; a tied one has all its names.
    """
    states = [named(member, table) for member, table in zip(members, tables, strict=True)]
    common = _common(states, tables[0], set(partitions), averaged)
    with torch.no_grad():
        for name in common:
            _merge([state[name] for state in states], name, tables[0], partitions)
        for number, (state, table) in enumerate(zip(states, tables, strict=True)):
            for name in state.keys() - common:
                for place in places_of(table, name):
                    own = state[name] if place == name else state[name][_slice(name, place)]
                    own.copy_(reading(own, table.axes[place], partitions, number))
    written = {id(states[0][name]) for name in common}
    return {name for name, tensor in every(members[0]) if id(tensor) in written}


def named(module: nn.Module, table: Symmetries) -> dict[str, Tensor]:
    """Every parameter and buffer once, a tied one under the name that the table has, those never saved too."""
    names: dict[int, list[str]] = {}
    tensors = {}
    for name, tensor in every(module):
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    return {next((one for one in each if places_of(table, one)), each[0]): tensors[key] for key, each in names.items()}


def every(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each parameter and buffer under each of its names, with those that are not saved."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _common(states: Sequence[Mapping[str, Tensor]], table: Symmetries, zipped: set[str], averaged: bool) -> set[str]:
    """The tensors that all models are to have in common."""
    found = due(states[0], table, zipped, averaged)
    for name in states[0].keys() - found:
        # Constants; what was learned where nothing moves is of the tasks.
        still = not any(groups_of(table, table.axes[place]) for place in places_of(table, name))
        if still and all(name in state and _equal(states[0][name], state[name]) for state in states[1:]):
            found.add(name)
    return found


def due(names: Collection[str], table: Symmetries, zipped: set[str], averaged: bool) -> set[str]:
    """The tensors that are merged: those that make units of zipped groups, or all that the table names."""
    making = set(table.axes) if averaged else shared(table, zipped)
    return {name for name in names if any(place in making for place in places_of(table, name))}


def _equal(first: Tensor, other: Tensor) -> bool:
    return first.shape == other.shape and torch.equal(first, other.to(first.device))


def _merge(tensors: Sequence[Tensor], name: str, table: Symmetries, partitions: Partitions) -> None:
    """Writes the merged tensor into the first."""
    for place in places_of(table, name):
        parts = tensors if place == name else [tensor[_slice(name, place)] for tensor in tensors]
        parts[0].copy_(merged(parts, table.axes[place], partitions))


def _slice(name: str, place: str) -> int:
    return int(place[len(name) + 1 : -1])
