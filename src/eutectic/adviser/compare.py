"""sources -> a comparison: structure, then the base, then statistics, then the verdict."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from eutectic.adviser.base import find_base
from eutectic.adviser.model import Base, Comparison, Matched, Place
from eutectic.adviser.one_run import NO_BASE, of_one_run
from eutectic.adviser.opening import Opened, opened
from eutectic.adviser.statistics import Measured, bytes_of, measure
from eutectic.adviser.structure import structure_of
from eutectic.adviser.sums import Sums
from eutectic.adviser.verdict import judge
from eutectic.errors import Problem, RecipeError
from eutectic.names import kind_of, layer_of


def compare(
    models: Sequence[Any],
    base: Any = None,
    *,
    threads: int | None = None,
    on_start: Callable[[int], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Says whether models can be merged, and how, from weights alone: read in blocks, the same numbers on every run.

    Args:
        models: two or more, each as for `eutectic.open`; one is enough if there is a base.
        base: the model they were trained from; without it, the one of `models` that the weights point to, if any.
        threads: workers, None for all cores.
        on_start: called with the bytes that will be read; not called where the headers are answer enough.
        progress: called with the number of bytes after each block, from any thread.

    Raises `RecipeError` (A801) for too few models, `CheckpointError` for those that cannot be read.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise RecipeError(Problem("M603", f"must be a whole number from 1 on, not {threads!r}", "threads"))
    with opened(models, base) as sources:
        return _compare(sources, threads or os.cpu_count() or 1, on_start, progress)


def _compare(
    models: Opened, threads: int, on_start: Callable[[int], None] | None, progress: Callable[[int], None] | None
) -> Comparison:
    structure = structure_of(models.sources, models.labels)
    labels = tuple(label for row, label in enumerate(models.labels) if row != models.base)
    given = None if models.base is None else models.labels[models.base]
    base = Base(given, given is not None, "named" if given is not None else "not looked for")
    paths = [source.path for row, source in enumerate(models.sources) if row != models.base]
    result = Comparison(labels, base, structure, of_one_run(paths))
    if not structure.faults:
        if on_start:
            on_start(bytes_of(structure.matched))
        _measure(result, models, threads, progress)
    result.verdict = judge(result)
    return result


def _measure(result: Comparison, models: Opened, threads: int, progress: Callable[[int], None] | None) -> None:
    tensors = result.structure.matched
    origin = models.base
    if origin is None and result.one_run:
        result.base = Base(None, False, NO_BASE)
    elif origin is None:
        sample = _total(measure(models.sources, tensors, threads=threads, sample=True), tensors, matrices=True)
        origin, reason = find_base(sample, models.labels)
        result.base = Base(None if origin is None else models.labels[origin], False, reason)
        result.models = tuple(label for row, label in enumerate(models.labels) if row != origin)
    order = [origin or 0, *(row for row in range(len(models.sources)) if row != (origin or 0))]
    rows = [models.labels[row] for row in order]
    turned = [_turned(tensor, order) for tensor in tensors]
    found = measure([models.sources[row] for row in order], turned, threads=threads, progress=progress)
    result.whole = _total(found, tensors, matrices=False)
    result.matrices = _total(found, tensors, matrices=True)
    result.cells = _cells(found, tensors)
    _name_tensors(result, rows, found, tensors)


def _turned(tensor: Matched, order: Sequence[int]) -> Matched:
    """The tensor with its models in another order."""
    stored, kinds = (tuple(values[row] for row in order) for values in (tensor.stored, tensor.dtypes))
    return Matched(tensor.name, stored, tensor.shape, kinds, tensor.numel)


def _total(found: Sequence[Measured], tensors: Sequence[Matched], *, matrices: bool) -> Sums:
    """The sum over all tensors, or those of two dimensions and more (over all, if there is none)."""
    deep = any(len(tensor.shape) > 1 and one.sums for one, tensor in zip(found, tensors, strict=True))
    total = Sums.zeros(len(tensors[0].stored) - 1)
    for one, tensor in zip(found, tensors, strict=True):
        if one.sums is not None and not (matrices and deep and len(tensor.shape) < 2):
            total.add(one.sums)
    return total


def _cells(found: Sequence[Measured], tensors: Sequence[Matched]) -> dict[Place, Sums]:
    cells: dict[Place, Sums] = {}
    for one, tensor in zip(found, tensors, strict=True):
        if one.sums is not None:
            stack, layer = layer_of(tensor.name) or ("", -1)
            place = Place(stack, layer, kind_of(tensor.name))
            cells.setdefault(place, Sums.zeros(one.sums.models)).add(one.sums)
    return dict(sorted(cells.items()))


def _name_tensors(
    result: Comparison, rows: Sequence[str], found: Sequence[Measured], tensors: Sequence[Matched]
) -> None:
    """Which tensors are broken, and which equal the base's."""
    broken: dict[str, list[str]] = {}
    untouched: dict[str, list[str]] = {}
    for one, tensor in zip(found, tensors, strict=True):
        for row in one.broken:
            broken.setdefault(rows[row], []).append(tensor.name)
        if one.sums is not None and result.base.label is not None:
            for model in map(int, one.sums.untouched.nonzero()[0]):
                untouched.setdefault(rows[model + 1], []).append(tensor.name)
    result.broken, result.untouched = broken, untouched
