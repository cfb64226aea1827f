"""Models of different tasks and some data -> one module (ZipIt!, arXiv:2305.03053)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from eutectic.alignment.finding import symmetries_of
from eutectic.alignment.zipit.fitting import check_models, check_request
from eutectic.alignment.zipit.greedy import check_shares, greedy
from eutectic.alignment.zipit.members import write
from eutectic.alignment.zipit.module import Zipped, ZippedGroup
from eutectic.alignment.zipit.partition import Partition
from eutectic.alignment.zipit.similar import similarities
from eutectic.alignment.zipit.trunk import trunk, whole
from eutectic.checkpoint import MemorySource
from eutectic.checkpoint.symmetry import Symmetries
from eutectic.errors import Problem, RecipeError
from eutectic.statistics.batches import Batch

if TYPE_CHECKING:
    from torch import Tensor, nn


def zipit(
    modules: Sequence[nn.Module],
    batches: Iterable[Any],
    symmetries: Symmetries | Sequence[Symmetries] | None = None,
    *,
    until: str | Sequence[str] | None = None,
    heads: Literal["separate", "averaged"] = "separate",
    alpha: float = 0.3,
    beta: float = 0.5,
) -> Zipped:
    """Merges models of different tasks, and of different beginnings, by merging the units that do the same.

    In each group of the trunk, the units of all models are merged pair by pair, the most correlated first, within
    models too (see `greedy`), until as many are left as one model has. A layer is then Σₖ Mₖ Wₖ Uₖ: M averages what
    makes merged units, U hands each model's weights a copy of what its own units became. Layers behind the trunk stay
    of each model and read merged units through U, which is multiplied into them; their labels may be different ones.

    The modules stay as they were. Batch normalisation: gains, shifts and running statistics are averaged like a bias,
    and `reset_statistics` is to follow.

    Source: Stoica et al. 2024, "ZipIt! Merging Models from Different Tasks without Training", arXiv:2305.03053.
    Differs from the paper: a trunk ends where groups end (the paper's code can stop within a stage of residual
    blocks); units are seen where layers read them, behind norms and activation functions; M is exact. Attention heads
    and experts, of which a unit is no number, are averaged as they stand: align such models first. Scales and gauges do
    not move. A tensor in which nothing moves (a slope, a temperature) is common to the models only if it is equal, and
    what is computed behind another one is not.

    Cost: one pass of every model over the data, and (K·n)² numbers for each input that is looked at; see `greedy`.

    Args:
        modules: K ≥ 2 models. In the trunk they have the same tensors, of one dtype and device.
        batches: of the data of all tasks, as loaders of `eutectic.statistics.gram`; a few hundred samples of each do.
        symmetries: of the models; one table for all, or one for each where those behind the trunk differ. None: as
            declared for their families, else traced.
        until: a group, or a tensor that makes one: the last ones that are zipped, with all that they are computed from.
            None: all groups.
        heads: what becomes of tensors that only read the trunk when all groups are zipped: they stay of each model, or
            are averaged, which makes one model of the architecture (`Zipped.tensors`).
        alpha: 0 to 1: what the similarity of a merged unit is multiplied by. Of three models or more, a small one keeps
            the third from joining the first two.
        beta: 0 to 1: how much of its share of the merges a model may do within itself.

    Raises `RecipeError`: F101, F110 (batches), G140 to G169 (no symmetries found), G240, G242, G243, G244 (models
    that do not fit each other or their tables), G245; `NumericError` (G241).
    """
    check_shares(alpha, beta)
    check_request(modules, batches, until, heads)
    batches, tables = _tables(modules, batches, symmetries)
    zipped = trunk(tables[0], until)
    check_models(modules, tables, zipped, heads == "averaged")
    found = similarities(modules, tables, batches, zipped - whole(tables[0]))
    partitions, groups = {}, {}
    for name in sorted(zipped):
        partitions[name], groups[name] = _merged(
            tables[0].groups[name].size, found.get(name), len(modules), alpha, beta
        )
    members = [copy.deepcopy(module) for module in modules]
    return Zipped(members, write(members, tables, partitions, heads == "averaged"), groups)


def _merged(
    units: int, similarity: Tensor | None, models: int, alpha: float, beta: float
) -> tuple[Partition, ZippedGroup]:
    """A group merged by the similarity of its units; as it stands where there is none."""
    if similarity is None:
        partition = Partition.standing(models, units)
        return partition, ZippedGroup(units, partition.folded, None)
    partition = greedy(similarity, models, alpha=alpha, beta=beta)
    return partition, ZippedGroup(units, partition.folded, partition.closeness(similarity))


def _tables(
    modules: Sequence[nn.Module], batches: Iterable[Any], symmetries: Symmetries | Sequence[Symmetries] | None
) -> tuple[Iterable[Any], list[Symmetries]]:
    """The batches, none of them used up, and a table for each model."""
    if isinstance(symmetries, Symmetries):
        return batches, [symmetries] * len(modules)
    if symmetries is not None:
        if len(symmetries) != len(modules):
            message = f"there are {len(symmetries)} for {len(modules)} models"
            raise RecipeError(Problem("G240", message, "symmetries", "give one for all, or one for each"))
        return batches, list(symmetries)
    rest = iter(batches)
    for first in rest:
        tables = []
        for number, module in enumerate(modules):
            inputs = Batch.of(first, next(module.parameters()).device).inputs
            source = MemorySource(f"modules[{number}]", module)
            tables.append(symmetries_of(source, module=module, inputs=inputs))
        return chain([first], rest), tables
    raise RecipeError(Problem("F101", "there was no batch", "batches"))
