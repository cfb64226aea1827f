"""An alignment that stands where one is to be written, and what is said of one that was found."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from eutectic.alignment.finding import BY_NAMES
from eutectic.alignment.model import Match
from eutectic.checkpoint import Alignment, FileSource, Source, open_source, read_alignment
from eutectic.checkpoint.symmetry import Symmetries
from eutectic.errors import CheckpointError, Problem, RecipeError
from eutectic.plan.inputs import twins
from eutectic.plan.labels import labels_of

# Below this share of the squared distance, an alignment is told to be worth little.
LITTLE = 0.01


def digests_of(source: Source) -> dict[str, str]:
    """Tensor → digest of its stored bytes. Reads every weight."""
    return {name: source.digest(name) for name in source.specs}


def there(out: str | os.PathLike[str], replace: bool) -> Alignment | None:
    """The alignment that stands where one is to be written; None for nothing. Raises `RecipeError` (W401)."""
    path = os.fspath(out)
    if not os.path.exists(path) or (os.path.isdir(path) and not os.listdir(path)):
        return None
    try:
        with open_source(path) as source:
            return read_alignment(source)
    except CheckpointError as error:
        if replace and os.path.isdir(path):
            return None
        message = "exists, and holds no alignment that can be read"
        raise RecipeError(Problem("W401", message, path, "choose another name")) from error


def refuse_twins(sources: Sequence[Source]) -> None:
    """Raises `RecipeError` (R133) for checkpoints that are the same files, by one path or by two."""
    # What is made of files, as a merge or a view that is aligned, may have them in common.
    stored = [source if isinstance(source, FileSource) else None for source in sources]
    labels = labels_of(sources)
    problems = []
    for number, first in twins(stored):
        name, other = labels[number], labels[first]
        same = sources[number].path == sources[first].path
        message = f"{other!r} is named twice" if same else f"{name!r} is the model {other!r} by another name"
        problems.append(Problem("R133", message, "models", "name each model once"))
    if problems:
        raise RecipeError(problems)


def same_request(one: Alignment, other: Alignment) -> bool:
    """Whether both are what one method finds of the same models. Of rotations the table is known only after."""
    own = () if one.method == "orthogonal" else ("symmetries",)
    return all(getattr(one, key) == getattr(other, key) for key in ("method", "settings", "reference", "model", *own))


def filled(empty: Alignment, match: Match, notes: Iterable[str]) -> Alignment:
    """An alignment with what matching found, its notes behind those that were known before."""
    return dataclasses.replace(
        empty,
        moves=match.moves,
        objective=(match.start, *match.objective),
        distance=(match.before, match.after),
        changes={name: asdict(change) for name, change in match.changes.items()},
        notes=(*notes, *match.notes, *worth(match, empty.symmetries)),
    )


def unproved(table: Symmetries) -> Iterator[str]:
    """A note of a table that nothing has proved."""
    if table.origin.endswith(BY_NAMES):
        yield (
            "which units are alike is told by names and shapes alone, which show no skip connection: in Python, live "
            "modules with `inputs` are proved or traced"
        )


def worth(match: Match, table: Symmetries) -> Iterator[str]:
    """What a merge has to expect of the moves."""
    moves = match.moves
    if not (table.groups or table.gauges):
        yield "nothing can move: no units of the model may change places"
    elif not (moves.orders or moves.scales or moves.matrices):
        yield "nothing moves: the models stand alike already, as fine-tunes of one base do"
    elif match.gain < LITTLE:
        share = f"{100 * match.gain:.1f} %"
        yield f"the moves take away {share} of the squared distance: a merge has little to gain from them"
