"""The door that repairs a merge: activations of it and of its parents over data, and a folder with other weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eutectic import alignment, checkpoint, methods, recipe
from eutectic.alignment.renormalisation import How, problems_of
from eutectic.checkpoint import Source
from eutectic.checkpoint.existing import REPLACE, refuse_place
from eutectic.checkpoint.overlay import Overlaid
from eutectic.checkpoint.vocabulary import json_of
from eutectic.errors import CheckpointError, Problem, RecipeError, listed
from eutectic.evaluate import Settings
from eutectic.evaluate.loading import Loader
from eutectic.evaluate.opening import opened
from eutectic.merging import Merge, Options, checked, make
from eutectic.plan import Plan, make_plan
from eutectic.plan.labels import labels_of
from eutectic.run.refusals import check_device, refuse_overlap_of
from eutectic.statistics.layers import Names
from eutectic.statistics.models import Given, given_data
from eutectic.statistics.models import Options as Reading

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class RepairedMerge:
    """A merge that was repaired and written.

    Attributes:
        merge: what was written.
        changed: tensor → what was done to it.
        left: layer → why it stays as it was.
        notes: what one should know.
    """

    merge: Merge
    changed: Mapping[str, str]
    left: Mapping[str, str]
    notes: tuple[str, ...]


def repair(
    merged: Any,
    parents: Sequence[Any],
    data: Any,
    out: str | os.PathLike[str],
    *,
    alignments: Sequence[Any] = (),
    weights: Sequence[float] | None = None,
    how: How = "sequential",
    affine: bool = False,
    reading: Reading | None = None,
    module: Callable[[], nn.Module] | None = None,
    tokenizer: Any = None,
    options: Options | None = None,
    tell: Callable[[str], None] | None = None,
) -> RepairedMerge:
    """Repairs a merge on the disk (REPAIR, see `eutectic.alignment.repair`) and writes it to the folder `out`.

    The manifest has, for each tensor that is another, what was done to it. `eutectic verify --stored-only` checks the
    folder; the merge that went in can be verified whole. Models are held in memory, all at once.

    Args:
        merged: the merge: a model as for `eutectic.open`, or its recipe.
        parents: what it was merged from; a recipe may be one too.
        data: a file of text for a causal language model, or batches that `module` can run on, as for `collect`.
        out: the folder to make; it appears whole or not at all.
        alignments: those that the merge was made with, as folders or `Alignment`s: each moves the parent it is of.
        weights: of the parents in the merge; None: all alike.
        how: `sequential` or `closed_form`.
        affine: whether gains and biases of batch normalisation are repaired too.
        reading: samples, batch, length and so on of the data, device and dtype of the arithmetic (float32 where
            nothing is said).
        module: makes the module that the weights are loaded into, where they are no model of `transformers`.
        tokenizer: as for `eutectic.evaluate`.
        options: of what is written.
        tell: called with what is being measured or written, before it is.

    Raises `RecipeError` (G210 to G212, W401, W406 and what `collect` raises) before long work, F102 and F104 later.
    """
    options, read = checked(options, out, tell=tell), reading or Reading(dtype="float32")
    check_device(read.device)
    _refuse_existing(os.fspath(out), options)
    asked: dict[str, Any] = {"weights": weights, "how": how, "affine": affine}
    with opened([merged, *parents], live=module is None) as sources, ExitStack() as stack:
        if len(sources) != 1 + len(parents):
            raise RecipeError(Problem("R128", "a recipe sweeps a parameter: not one model but several", "parents"))
        refuse_overlap_of(sources, os.fspath(out))
        _refuse_others(sources[0], sources[1:], list(problems_of(len(parents), weights, how)))
        models = [sources[0], *_aligned(sources[1:], alignments, stack)]
        loaders = [Loader(module, tokenizer) for _ in models]
        given = given_data(
            data, read, models[0], Settings(read.device, read.batch, read.samples, read.seed, loaders[0])
        )
        found = _repaired(models, loaders, given, read, {**asked, "tell": tell})
        if tell is not None:
            tell("writing")
        about = {"method": "REPAIR, arXiv:2211.08403", **asked, "data": given.identity}
        about["parents"] = [source.identity() for source in models[1:]]
        notes = (*given.notes, *(() if alignments else _unaligned(sources[0], sources[1:])))
        return _written(models[0], found, about, notes, os.fspath(out), options)


def _repaired(
    models: Sequence[Source], loaders: Sequence[Loader], given: Given, read: Reading, asked: Mapping[str, Any]
) -> alignment.Repaired:
    """Loads each model into a module of its own, and repairs the first."""
    with ExitStack() as held:
        modules = [
            held.enter_context(loader.module(source, given.kind, device=read.device, dtype=read.dtype))
            for source, loader in zip(models, loaders, strict=True)
        ]
        return alignment.repair(modules[0], modules[1:], given, **asked)


def _written(
    source: Source,
    found: alignment.Repaired,
    about: Mapping[str, Any],
    notes: Sequence[str],
    out: str,
    options: Options,
) -> RepairedMerge:
    """Writes the merge with the tensors that were changed, in its own dtypes."""
    names, state = _names(found, source), found.module.state_dict()
    values = {name: state[own].detach().cpu() for name, own in names.items()}
    # Not the name of the merge, by which it would be taken for what this was made of.
    view = Overlaid(source, values, {"repaired": about}, f"{source.label} repaired")
    changed = {name: found.changed[own] for name, own in names.items()}
    notes = (*notes, *found.notes)
    merge = make(_plan(view, changed, notes), out, options, None, None, checkpoint.REAL)
    return RepairedMerge(merge, changed, found.left, notes)


def _names(found: alignment.Repaired, source: Source) -> dict[str, str]:
    """Stored name → the module's, of each tensor that was changed."""
    names, parameters = Names(found.module, source), dict(found.module.named_parameters())
    return {names(parameters.get(own)) or source.ties.get(own, own): own for own in found.changed}


def _plan(view: Overlaid, changed: Mapping[str, str], notes: Sequence[str]) -> Plan:
    """A plan that writes the view, with what was done to each tensor as its reason."""
    loaded = recipe.load({"merge_method": "passthrough", "models": [{"model": view}]}, methods=methods)
    planned = make_plan(loaded, lambda model, folder: checkpoint.open_source(model, folder=folder))
    said = {name: f"REPAIR: {text}" for name, text in changed.items()}
    jobs = tuple(replace(job, reason=said.get(job.name, job.reason)) for job in planned.jobs)
    return replace(planned, jobs=jobs, notes=(*planned.notes, *notes))


def _aligned(parents: Sequence[Source], alignments: Sequence[Any], stack: ExitStack) -> list[Source]:
    """The parents, those that an alignment is of moved by it. Raises `RecipeError` (G212) with every one of none."""
    found, problems = list(parents), []
    for number, given in enumerate(alignments):
        one = given
        if not isinstance(given, alignment.Alignment):
            one = checkpoint.read_alignment(stack.enter_context(checkpoint.open_source(given)))
        place = _moved(one, parents)
        if place is None:
            labels = ", ".join(parent.label for parent in parents)
            message = f"moves {one.model.label!r}, which is none of the parents ({labels})"
            hint = "give the models that were aligned, with the weights that they had"
            problems.append(Problem("G212", message, f"alignments[{number}]", hint))
        else:
            found[place] = one.source(found[place])
    if problems:
        raise RecipeError(problems)
    return found


def _unaligned(merged: Source, parents: Sequence[Source]) -> Iterator[str]:
    """Of parents that are stored in another order than that in which the manifest of the merge says they went in."""
    manifest = json_of(merged.beside("eutectic.json"))
    inputs = manifest.get("inputs", []) if isinstance(manifest, dict) else []
    aligned = {one.get("label") for one in inputs if "aligned" in one}
    # The manifest's labels tell all models of the merge apart, of which the parents here may be some.
    told = "was aligned for the merge, and its channels stand here as they are stored: give the alignment"
    for own, parent in zip(labels_of(parents), parents, strict=True):
        if any(f"/{parent.path or parent.label}".endswith(f"/{label}") for label in aligned):
            yield f"{own!r} {told}"


def _moved(one: alignment.Alignment, parents: Sequence[Source]) -> int | None:
    """Which of the parents an alignment moves.

    Looked at are tensors in which its model differs from the reference, the smallest first, until one parent is left.
    """
    digests = one.model.digests
    left = [number for number, parent in enumerate(parents) if digests.keys() <= parent.specs.keys()]
    telling = [name for name, digest in digests.items() if one.reference.digests.get(name) != digest]
    for name in sorted(telling, key=lambda name: parents[left[0]].specs[name].nbytes) if left else ():
        left = [number for number in left if _has(parents[number], name, digests[name])]
        if len(left) < 2:
            break
    return left[0] if left else None


def _has(source: Source, name: str, digest: str) -> bool:
    try:
        return source.digest(name) == digest
    except CheckpointError:
        return False


def _refuse_others(merged: Source, parents: Sequence[Source], problems: list[Problem]) -> None:
    """Raises `RecipeError` with these problems and every parent that has other tensors (G210)."""
    for number, parent in enumerate(parents):
        differ = sorted(
            name
            for name in {*merged.specs, *parent.specs}
            if name not in merged or name not in parent or _shape(merged, name) != _shape(parent, name)
        )
        if differ:
            message = f"{parent.label!r} differs from the merge in {listed(differ)}"
            problems.append(Problem("G210", message, f"parents[{number}]", "give what it was merged from"))
    if problems:
        raise RecipeError(problems)


def _shape(source: Source, name: str) -> tuple[int, ...]:
    return source.specs[source.ties.get(name, name)].shape


def _refuse_existing(out: str, options: Options) -> None:
    """Raises before long work what would be raised after it: what is written is never the same twice."""
    refuse_place(out, replace=options.replace)
    if os.path.isdir(out) and os.listdir(out) and not options.replace:
        raise RecipeError(Problem("W401", "exists", out, REPLACE))
