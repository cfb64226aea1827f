"""A table of symmetries -> which groups come before which, and so which are zipped up to a place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from eutectic.checkpoint.symmetry import Axis, Symmetries
from eutectic.errors import Problem, RecipeError, did_you_mean, listed


def groups_of(symmetries: Symmetries, axes: Sequence[Axis], *roles: str) -> set[str]:
    """The groups of a tensor's axes, in parts of these roles (of all, if none is named); those of its gauges too."""
    found = set()
    for part in (part for parts in axes for part in parts if part.role in (roles or ("out", "in", "order"))):
        for factor in part.factors:
            gauge = symmetries.gauges.get(factor.gauge or "")
            found |= {name for name in (factor.group, gauge.of if gauge else None) if name}
    return found


def whole(symmetries: Symmetries) -> set[str]:
    """Groups whose units are no numbers that could be merged: heads, which hold vectors or other heads, and experts."""
    found = set(symmetries.stacks) | {gauge.of for gauge in symmetries.gauges.values() if gauge.of}
    for name, group in symmetries.groups.items():
        if group.within is not None:
            found |= {name, group.within}
    return found


def trunk(symmetries: Symmetries, until: str | Sequence[str] | None = None) -> set[str]:
    """The groups that are zipped: all, or those named and whatever they are computed from.

    Args:
        symmetries: of the model.
        until: a group, a tensor (for what it makes), or several of them; None for all groups.

    Raises `RecipeError` (G242) for a name that is neither.
    """
    if until is None:
        return set(symmetries.groups)
    found: set[str] = set()
    problems = []
    for name in [until] if isinstance(until, str) else until:
        made = (
            {name}
            if name in symmetries.groups
            else groups_of(symmetries, symmetries.axes.get(name, ()), "out", "order")
        )
        found |= made
        if not made:
            hint = did_you_mean(name, [*symmetries.groups, *symmetries.axes])
            hint = hint or f"there are the groups {listed(list(symmetries.groups))}"
            problems.append(Problem("G242", f"{name!r} is no group, and no tensor that makes one", "until", hint))
    if problems:
        raise RecipeError(problems)
    edges = list(_edges(symmetries))
    while more := {before for before, after in edges if after in found} - found:
        found |= more
    return found


def _edges(symmetries: Symmetries) -> Iterator[tuple[str, str]]:
    """(a, b) where b cannot be merged without a: computed from it, made by the same tensor, or a part of it."""
    for axes in symmetries.axes.values():
        read, made = groups_of(symmetries, axes, "in"), groups_of(symmetries, axes, "out", "order")
        yield from ((before, after) for before in read | made for after in made if before != after)
    for name, group in symmetries.groups.items():
        if group.within is not None:
            yield group.within, name
            yield name, group.within
    for name, patterns in symmetries.stacks.items():
        for pattern in patterns:
            for number in range(symmetries.groups[name].size):
                for other in groups_of(symmetries, symmetries.axes[pattern.replace("{}", str(number))]):
                    yield name, other


def shared(symmetries: Symmetries, zipped: set[str]) -> set[str]:
    """The tensors that make units of zipped groups: all models will have them in common.

    Queries are among them: they are in the role of what reads, since they move against the keys.
    """
    return {name for name, axes in symmetries.axes.items() if _makes(symmetries, axes, zipped)}


def _makes(symmetries: Symmetries, axes: Sequence[Axis], zipped: set[str]) -> bool:
    if groups_of(symmetries, axes, "out", "order") & zipped:
        return True
    dual = any(factor.gauge for parts in axes for part in parts for factor in part.factors)
    return dual and all(groups_of(symmetries, [parts]) & zipped for parts in axes)
