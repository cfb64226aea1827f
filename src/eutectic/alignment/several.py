"""Three models or more as users name them -> an alignment of each to the first, which do not contradict each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from eutectic.alignment.finding import symmetries_of
from eutectic.alignment.found import digests_of, filled, refuse_twins, same_request, there, unproved
from eutectic.alignment.many import align_many, check_request, pairs_of
from eutectic.checkpoint import REAL, Alignment, Named, Source
from eutectic.checkpoint.alignment import ABOUT
from eutectic.checkpoint.existing import REPLACE, refuse_parent, refuse_place
from eutectic.checkpoint.output import WORK
from eutectic.checkpoint.symmetry import Moves, Symmetries
from eutectic.errors import OutputError, Problem, RecipeError, listed
from eutectic.evaluate import LiveSource
from eutectic.evaluate.content import digest_of_json
from eutectic.evaluate.opening import opened, refuse_several
from eutectic.plan.labels import labels_of, unique_labels
from eutectic.run.refusals import refuse_overlap_of


def align_all(
    models: Sequence[Any],
    *,
    method: Literal["universe", "mean"] = "universe",
    inputs: Any = None,
    symmetries: Symmetries | None = None,
    seed: int = 0,
    memory: int = 1 << 30,
    tell: Callable[[str], None] | None = None,
    out: str | os.PathLike[str] | None = None,
    replace: bool = False,
) -> dict[str, Alignment]:
    """Finds the moves that take each of several models to the first, all together, by weights. No model changes.

    What is made large is the sum over all pairs, so that the others come to stand like each other too (`align_many`).

    Args:
        models: the one that stays and those that move, of one architecture, each as for `align`.
        method: `universe` or `mean`, see `align_many`.
        inputs: what the first is called with, to trace or prove its symmetries if it is a live module.
        symmetries: of all; by default what `symmetries_of` finds for the first.
        seed, memory: see `align_many`.
        tell: called with how far matching is, in words.
        out: a folder for the alignments, each in a folder of its model's name, with `--` for a `/`; if these very
            ones are there, they are given back.
        replace: whether alignments that are there may be replaced.

    Returns the name of each model but the first → its alignment, as `aligned` beside that model in a recipe takes it.

    Raises `RecipeError`: G181, G182, R133 for one model named twice, G160 to G163 (no symmetries), G170 and G171
    (models that differ), W401 and W406 for what is at `out`; `OutputError` (W405); and what `align_many` raises.
    """
    check_request(models, method)
    if out is not None:
        _refuse_place(os.fspath(out))
    with opened(models) as sources:
        if len(sources) != len(models):
            refuse_several(sources)
        refuse_twins(sources)
        labels = labels_of(sources)
        paths = {} if out is None else _paths(os.fspath(out), sources, labels[1:], replace)
        table = symmetries or _table(sources[0], inputs)
        pairs_of(sources, table, 0)
        empty = _empty(sources, labels, table, method, seed)
        standing = _standing(empty, paths, replace)
        if standing is not None:
            return standing
        told = tell or (lambda said: None)

        def progress(turn: int, done: int, of: int) -> None:
            told(f"round {turn}: {done} of {of}")

        found = align_many(sources, table, method=method, seed=seed, memory=memory, progress=progress)
        notes = [*unproved(table)]
        made = {name: filled(one, match, notes) for (name, one), match in zip(empty.items(), found[1:], strict=True)}
    if out is not None:
        _save(made, os.fspath(out), paths, replace)
    return made


def _paths(out: str, sources: Sequence[Source], labels: Sequence[str], replace: bool) -> dict[str, str]:
    """Name of a model → the folder of its alignment. Raises `RecipeError` (W401, W406)."""
    refuse_overlap_of(sources, out)
    # A label is org/name for a model of the hub, and part of a path where that tells models apart.
    folders = unique_labels(name.replace("/", "--") for name in labels)
    paths = {name: os.path.join(out, folder) for name, folder in zip(labels, folders, strict=True)}
    for path in paths.values():
        if os.path.exists(path):
            refuse_place(path, replace=replace, manifest=ABOUT)
    return paths


def _table(first: Source, inputs: Any) -> Symmetries:
    return symmetries_of(first, module=first.module if isinstance(first, LiveSource) else None, inputs=inputs)


def _empty(
    sources: Sequence[Source], labels: Sequence[str], table: Symmetries, method: str, seed: int
) -> dict[str, Alignment]:
    """The alignments without what is found: of which models, how and with which others."""
    named = [Named(label, digests_of(source)) for label, source in zip(labels, sources, strict=True)]
    settings = {"seed": seed, "together": {one.label: digest_of_json(dict(one.digests)) for one in named}}
    return {one.label: Alignment(table, Moves(), named[0], one, method, settings) for one in named[1:]}


def _standing(empty: Mapping[str, Alignment], paths: Mapping[str, str], replace: bool) -> dict[str, Alignment] | None:
    """What is there, if it is all that is asked for. Raises `RecipeError` (W401) for others that are not replaced."""
    found = {name: one for name, path in paths.items() if (one := there(path, replace)) is not None}
    others = [name for name, one in found.items() if not same_request(one, empty[name])]
    if others and not replace:
        raise RecipeError([Problem("W401", "exists", paths[name], REPLACE) for name in others])
    return found if paths and found.keys() == empty.keys() and not others else None


def _refuse_place(out: str) -> None:
    """Raises `RecipeError` (W401) for what is no folder of alignments, `OutputError` (W405) without a folder above."""
    refuse_parent(os.path.realpath(out), out, REAL)
    if not os.path.exists(out):
        return
    if not os.path.isdir(out):
        raise RecipeError(Problem("W401", "exists and is not a folder", out, "choose another name"))
    names = [name for name in sorted(os.listdir(out)) if not name.endswith(WORK)]
    others = [name for name in names if not os.path.exists(os.path.join(out, name, ABOUT))]
    if others:
        message = f"exists and holds what is no alignment ({listed(others)})"
        raise RecipeError(Problem("W401", message, out, "choose another name, or move these files away yourself"))


def _save(made: Mapping[str, Alignment], out: str, paths: Mapping[str, str], replace: bool) -> None:
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as error:
        raise OutputError(Problem("W405", f"cannot be made: {error.strerror or error}", out)) from error
    for name, alignment in made.items():
        alignment.save(paths[name], replace=replace)
