"""Statistics of parts of the data → those of all of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eutectic.checkpoint import Source, open_source
from eutectic.checkpoint.statistics import ABOUT, read_about
from eutectic.errors import CheckpointError, Problem, RecipeError, listed
from eutectic.evaluate.content import digest_of_bytes
from eutectic.lazy import LazyModule
from eutectic.run.refusals import refuse_overlap_of
from eutectic.statistics.folder import SHARD_BYTES, Folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

# What parts of one collection have in common, and what a difference of it is called.
_EQUAL = {
    "kind": "the kind of statistics",
    "labels": "whose labels they were taken with",
    "digests": "the weights of the model",
    "bias": "which biases stand with their weights",
    "groups": "groups of convolutions",
    "transposed": "which weights are transposed",
}


@dataclass(frozen=True, slots=True)
class Merged:
    """What was merged.

    Attributes:
        path: the folder.
        parts: their number.
        samples: of all parts.
        tensors: their number.
        already_complete: whether it was there before.
    """

    path: str
    parts: int
    samples: int
    tensors: int
    already_complete: bool


def merge(
    parts: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    replace: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int], None] | None = None,
) -> Merged:
    """Merges statistics of parts of the data: means weighted by what they are means over, tensor by tensor, in float64.

    Args:
        parts: folders that `collect` or `Statistics.save` made, two or more, of one model and over different data.
        out: the folder to make.
        replace: whether it may be replaced.
        shard_bytes: largest file.
        progress: called with the number of bytes after each tensor.

    Raises `CheckpointError` (C260, C261) for what is no folder of statistics, and `RecipeError` (F106) with all that
    differs between parts, or for the same part twice.
    """
    with ExitStack() as opened:
        sources = [opened.enter_context(part) for part in _opened(parts)]
        refuse_overlap_of(sources, os.fspath(out))
        texts = [source.beside(ABOUT) or b"" for source in sources]
        tables: list[dict[str, Any]] = [json.loads(text) for text in texts]
        _check(sources, tables, [digest_of_bytes(text) for text in texts])
        shared = _shared(tables)
        shapes = {name: shape for name, shape in _shapes(sources[0], tables[0]).items() if name not in shared}
        folder = Folder(
            os.fspath(out),
            shapes,
            identity=["merge", [table.get("fingerprint") for table in tables]],
            stamps=[source.stamp() for source in sources],
            replace=replace,
            shard_bytes=shard_bytes,
        )
        samples = sum(table["samples"] for table in tables)
        with folder:
            if not folder.complete:
                _merge_into(folder, shapes, sources, tables, progress or (lambda nbytes: None))
                folder.finish({**_about(sources, tables, samples), "shared": shared})
            return Merged(folder.path, len(sources), samples, len(shapes), folder.complete)


def weighted_mean(tensors: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Σ nᵢ tᵢ / Σ nᵢ in float64, rounded once to float32; zeros where nothing was counted."""
    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for tensor, count in zip(tensors, counts, strict=True):
        total += tensor.double() * count
    return (total / max(1, sum(counts))).float()


def _merge_into(
    folder: Folder,
    shapes: Mapping[str, Sequence[int]],
    sources: Sequence[Source],
    tables: Sequence[Mapping[str, Any]],
    progress: Callable[[int], None],
) -> None:
    for name, shape in shapes.items():
        if not folder.has({name: None}):
            stored = [table["shared"].get(name, name) for table in tables]
            counts = [int(table["counts"][own]) for table, own in zip(tables, stored, strict=True)]
            mean = weighted_mean([source[own] for source, own in zip(sources, stored, strict=True)], counts)
            folder.write({name: mean}, count={name: sum(counts)})
        progress(4 * math.prod(shape))


def _shared(tables: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Weights that share in every part. An expert that the first samples of a part did not reach shares in none."""
    first, *others = (table["shared"] for table in tables)
    return {name: owner for name, owner in first.items() if all(table.get(name) == owner for table in others)}


def _shapes(source: Source, table: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of everything that was measured, under names of their own or of others."""
    own = {name: tuple(spec.shape) for name, spec in source.specs.items()}
    return own | {name: own[owner] for name, owner in table["shared"].items() if owner in own}


def _about(sources: Sequence[Source], tables: Sequence[Mapping[str, Any]], samples: int) -> dict[str, Any]:
    own = {"format", "eutectic", "fingerprint", "norm", "counts", "weights", "files", "settings", "seed"}
    parts = [
        {"label": source.label, **{key: table.get(key) for key in ("samples", "tokens", "seed", "settings", "parts")}}
        for source, table in zip(sources, tables, strict=True)
    ]
    common = {key: value for key, value in tables[0].items() if key not in own}
    return {**common, "samples": samples, "tokens": sum(table.get("tokens", 0) for table in tables), "parts": parts}


def _opened(parts: Sequence[str | os.PathLike[str]]) -> list[Source]:
    """Every part; all that cannot be opened is told at once."""
    if len(parts) < 2:
        raise RecipeError(Problem("F106", f"two parts or more are needed, not {len(parts)}", "parts"))
    found, wrong = [], []
    for part in parts:
        try:
            source = open_source(part)
            read_about(source)
            found.append(source)
        except CheckpointError as error:
            wrong.append(error)
    if wrong:
        for source in found:
            source.close()
        raise CheckpointError([problem for error in wrong for problem in error.problems])
    return found


def _check(sources: Sequence[Source], tables: Sequence[Mapping[str, Any]], digests: Sequence[str]) -> None:
    problems = []
    first, others = sources[0].label, list(zip(sources, tables, strict=True))[1:]
    for source, table in others:
        differs = [words for key, words in _EQUAL.items() if table.get(key) != tables[0].get(key)]
        found, wanted = _shapes(source, table), _shapes(sources[0], tables[0])
        if found != wanted:
            names = {name for name in found | wanted if found.get(name) != wanted.get(name)}
            differs.append(f"tensors ({listed(sorted(names))})")
        problems += [Problem("F106", f"{source.label!r} and {first!r} differ in {what}", "parts") for what in differs]
    for number, digest in enumerate(digests):
        if digest in digests[:number]:
            message = f"{sources[number].label!r} is {sources[digests.index(digest)].label!r} once more"
            problems.append(Problem("F106", message, "parts", "its samples would count twice"))
    for source, table in zip(sources, tables, strict=True):
        if table.get("counts", {}).keys() != source.specs.keys():
            problems.append(Problem("F106", f"{source.label!r} does not say what each tensor is a mean over", "parts"))
    if problems:
        raise RecipeError(problems)
