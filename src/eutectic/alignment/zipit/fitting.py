"""Whether models and tables fit each other, as far as they are to be zipped: every problem at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eutectic.alignment.common import no_modules
from eutectic.alignment.zipit.members import due, every, named
from eutectic.alignment.zipit.tensors import places_of
from eutectic.alignment.zipit.trunk import groups_of
from eutectic.checkpoint.symmetry import Symmetries
from eutectic.errors import Problem, RecipeError, listed, several
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")


def check_request(
    modules: Sequence[nn.Module], batches: Iterable[Any], until: str | Sequence[str] | None, heads: str
) -> None:
    """What can be wrong before a tensor is looked at. Raises `RecipeError` (G240, G245)."""
    problems = []
    if len(modules) < 2:
        problems.append(Problem("G240", f"{len(modules)} is too few to merge", "modules", "give two or more"))
    problems += no_modules("G240", {f"modules[{number}]": module for number, module in enumerate(modules)})
    if not isinstance(batches, Iterable) or isinstance(batches, torch.Tensor):
        message = f"must be a list of batches or a loader, not a {type(batches).__name__}"
        problems.append(Problem("G240", message, "batches", "one batch alone is [batch]"))
    if heads not in ("separate", "averaged"):
        problems.append(Problem("G240", f"must be 'separate' or 'averaged', not {heads!r}", "heads"))
    if heads == "averaged" and until is not None:
        hint = "leave out `until`, or keep heads='separate'"
        problems.append(Problem("G245", "what stays of each model cannot be averaged", "heads", hint))
    if problems:
        raise RecipeError(problems)


def check_models(modules: Sequence[nn.Module], tables: Sequence[Symmetries], zipped: set[str], averaged: bool) -> None:
    """Tables must fit their models, and what is to be merged must be alike. Raises `RecipeError` (G244, G245)."""
    states = [named(module, table) for module, table in zip(modules, tables, strict=True)]
    problems = []
    for number, (module, state, table) in enumerate(zip(modules, states, tables, strict=True)):
        found = [*_misfits(module, state, table, zipped), *_other_units(tables[0], table, zipped)]
        problems += [Problem("G244", message, f"modules[{number}]") for message in found]
    if not problems:
        merged = due(states[0], tables[0], zipped, False)
        heads = due(states[0], tables[0], zipped, averaged) - merged
        problems += _otherwise(tables, merged)
        problems += _unlike(states, merged, "G244", "zip up to a group before it")
        problems += _unlike(states, heads, "G245", "keep heads='separate'")
    if problems:
        raise RecipeError(problems)


def _misfits(module: nn.Module, state: Mapping[str, Tensor], table: Symmetries, zipped: set[str]) -> Iterator[str]:
    """How a table does not fit a model. Sizes along which no zipped group lies may be other ones."""
    known = {
        place: state[name] if place == name else state[name][0] for name in state for place in places_of(table, name)
    }
    names = {name for name, _ in every(module)}
    if lost := [name for name in table.axes if name not in known and name not in names]:
        yield f"its symmetries name tensors that it has not: {listed(lost)}"
    saved = module.state_dict()
    if unnamed := [name for name in state if name in saved and not places_of(table, name)]:
        yield f"its symmetries do not name {listed(unnamed)}"
    for place, tensor in known.items():
        wanted = [sum(part.size for part in parts) for parts in table.axes[place]]
        moving = [bool(groups_of(table, [parts]) & zipped) for parts in table.axes[place]]
        sizes = list(tensor.shape)
        if len(sizes) != len(wanted) or any(a != b for a, b, moves in zip(sizes, wanted, moving, strict=True) if moves):
            yield f"{place} is of shape {sizes}, and its symmetries are for {wanted}"


def _other_units(first: Symmetries, table: Symmetries, zipped: set[str]) -> Iterator[str]:
    for name in sorted(zipped):
        units = table.groups[name].size if name in table.groups else 0
        if units != first.groups[name].size:
            yield f"has {several(units, 'unit')} of {name!r}, and the first has {first.groups[name].size}"


def _otherwise(tables: Sequence[Symmetries], names: set[str]) -> Iterator[Problem]:
    for number, table in enumerate(tables[1:], 1):
        for name in sorted(names):
            places = places_of(tables[0], name)
            if table is not tables[0] and any(table.axes.get(one) != tables[0].axes[one] for one in places):
                message = f"its symmetries have other units in {name} than those of the first"
                yield Problem("G244", message, f"modules[{number}]", "give tables of one kind")


def _unlike(states: Sequence[Mapping[str, Tensor]], names: set[str], code: str, hint: str) -> Iterator[Problem]:
    for number, state in enumerate(states[1:], 1):
        for name in sorted(names):
            due, has = _kind(states[0][name]), _kind(state[name]) if name in state else "none"
            if due != has:
                yield Problem(code, f"{name} is {due} in the first, and {has} here", f"modules[{number}]", hint)


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
