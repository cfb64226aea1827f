"""Several models on the same data -> how much their units go together, of different models and of one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from eutectic.alignment.features import View, distinct, rows_of, views_of
from eutectic.checkpoint.symmetry import Symmetries
from eutectic.errors import NumericError, Problem, RecipeError
from eutectic.kernels.comoments import Comoments
from eutectic.lazy import LazyModule
from eutectic.statistics.batches import Batch
from eutectic.statistics.layers import still

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")


def similarities(
    modules: Sequence[nn.Module], tables: Sequence[Symmetries], batches: Iterable[Any], groups: Collection[str]
) -> dict[str, Tensor]:
    """Correlations of all units of all models, as the layers that read them are given them.

    A group that several layers see differently (a residual stream) has the mean of the correlations in each of them.
    In memory stands a float64 matrix (K·n)² for each input that is looked at.

    Args:
        modules: K models; all are run on every batch.
        tables: the symmetries of each.
        batches: of the data of all tasks, in forms that `Batch` knows.
        groups: those to look at.

    Returns group → (K·n, K·n) float64, model after model.

    Raises `RecipeError`: F101 without a batch, G243 for groups whose units no layer shows, G244 where one model shows
    other rows than the first.
    """
    seen: dict[tuple[str, int], Comoments] = {}
    named: dict[tuple[str, int], str] = {}
    views: list[list[View]] = []
    for value in batches:
        joint: dict[tuple[str, int], list[Tensor]] = {}
        for number, module in enumerate(modules):
            batch = Batch.of(value, next(module.parameters()).device)
            with still(module):
                if len(views) == number:
                    views.append(_views(module, tables[number], groups, batch, views[0] if views else None))
                    named |= {view.key: view.groups[0] for view in views[number]}
                rows = rows_of(module, views[number], batch)
            joint = rows if number == 0 else _beside(joint, rows, number)
        for key, calls in joint.items():
            for call in calls:
                seen.setdefault(key, Comoments(call.shape[1], call.shape[1], call.device)).add(call, call)
    if not views:
        raise RecipeError(Problem("F101", "there was no batch", "batches"))
    found: dict[str, list[Tensor]] = {}
    for key, moments in seen.items():
        if bad := int((~moments.left.variance.isfinite()).sum()):
            message = f"{bad} units of {named[key]!r} are NaN or infinite where {key[0]} reads them"
            raise NumericError(Problem("G241", message, "modules", "mend the models or the data"))
        found.setdefault(named[key], []).append(moments.correlation)
    _refuse_unseen(groups, found)
    return {name: torch.stack(each).mean(0) for name, each in found.items()}


def _views(
    module: nn.Module, table: Symmetries, groups: Collection[str], batch: Batch, first: Sequence[View] | None
) -> list[View]:
    """What is looked at in a module: each input once in the first, the same ones in the others."""
    found = [view for view in views_of(table, module) if len(view.groups) == 1 and view.groups[0] in groups]
    if first is None:
        return distinct(module, found, batch)
    wanted = {view.key for view in first}
    return [view for view in found if view.key in wanted]


def _beside(
    joint: dict[tuple[str, int], list[Tensor]], rows: dict[tuple[str, int], list[Tensor]], number: int
) -> dict[tuple[str, int], list[Tensor]]:
    """The units of one more model, beside those of the models before it."""
    for key in joint:
        if [len(call) for call in rows.get(key, [])] != [len(call) for call in joint[key]]:
            message = f"{key[0]} is called otherwise than in the first model"
            raise RecipeError(Problem("G244", message, f"modules[{number}]", "zip models of one architecture"))
    return {
        key: [torch.cat([a, b.to(a)], 1) for a, b in zip(calls, rows[key], strict=True)] for key, calls in joint.items()
    }


def _refuse_unseen(groups: Collection[str], found: Collection[str]) -> None:
    hint = (
        "zip up to a group before it" if found else "are samples the first axis of a batch? one alone is sample[None]"
    )
    message = "no linear layer or convolution is given its units, so it is not known which go together"
    if unseen := [Problem("G243", message, name, hint) for name in groups if name not in found]:
        raise RecipeError(unseen)
