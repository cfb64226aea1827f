"""What was meant where `aligned` names no alignment: one of the folder's, or a folder whose name is nearly the same."""

from __future__ import annotations

import os

from eutectic.checkpoint.alignment import ABOUT
from eutectic.errors import Problem, listed
from eutectic.paths import near_path

_MADE = "name a folder that `eutectic align` made"
# What the hub says of a name that it does not have, or that it cannot be asked for.
_HUB = ("C250", "C251", "C252", "C253", "C254")


def meant(problem: Problem, written: object, model: str, folder: str | None) -> Problem:
    """A problem of opening an alignment, in the words of alignments where it is a matter of its name.

    Args:
        problem: what was found.
        written: what stands under `aligned`.
        model: the label of the model beside it.
        folder: the recipe's.
    """
    if not isinstance(written, str):
        return problem
    if problem.code == "C201" and (inside := _alignments_in(problem.file)):
        paths = [os.path.join(written, name) for name in inside]
        own = [path for path, name in zip(paths, inside, strict=True) if name == model]
        hint = f"did you mean {own[0]!r}?" if own else f"name one of them: {listed(paths)}"
        return Problem("G110", f"{written!r} is a folder of alignments and not one itself", hint=hint)
    if problem.code in _HUB:
        message = f"{written!r} does not exist; an alignment is a folder"
        return Problem("C200", message, hint=near_path(written, ("", folder or ""), _alignments_in) or _MADE)
    return problem


def _alignments_in(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        return []
    return sorted(name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name, ABOUT)))
