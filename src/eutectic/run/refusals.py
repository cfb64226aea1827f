"""What is refused after the plan is made and before anything is read or written."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from eutectic.checkpoint import Source
from eutectic.checkpoint.output import WORK
from eutectic.errors import Problem, RecipeError, ResourceError
from eutectic.plan import Plan
from eutectic.run.budget import plans_in


def sources_in(planned: Plan) -> list[Source]:
    """Every model that is merged and every artefact of statistics, also those of recipes within the recipe."""
    return [item.source for level in plans_in(planned) for item in level.inputs if item.source]


def refuse_overlap(planned: Plan, out: str) -> None:
    """As `refuse_overlap_of`, for everything that is merged, and for a base that only gives config and tokenizer."""
    found = sources_in(planned)
    for level in plans_in(planned):
        donor = level.donor
        found += sources_in(donor.plan) if donor.plan else filter(None, [donor.source])
    refuse_overlap_of(list({id(source): source for source in found}.values()), out)


def refuse_overlap_of(sources: Sequence[Source], out: str) -> None:
    """Raises `RecipeError` (W406) if the output is, contains or lies within an input's folder, or is its file.

    The same holds for the folder beside the output in which the work is done.
    """
    target = os.path.realpath(out)
    problems = []
    for source in sources:
        folder = source.folder()
        paths = [*(source.files() or ()), *([folder] if folder else [])]
        taken = any(_within(path, place) for path in paths for place in (target, target + WORK))
        if taken or (folder and _within(target, folder)):
            hint = "choose another output folder"
            problems.append(Problem("W406", f"{out!r} overlaps the input {source.label}", out, hint))
    if problems:
        raise RecipeError(problems)


def refuse_reference(planned: Plan, reference: bool) -> None:
    """Raises `RecipeError` (M603) where the plain torch form would rank tensor by tensor and not the whole model."""
    if reference and any(level.recipe.scope == "model" for level in plans_in(planned)):
        raise RecipeError(Problem("M603", "the reference form knows no `scope: model`", "reference"))


def check_device(device: str) -> None:
    """Raises `RecipeError` for a device that is no device, `ResourceError` (M602) for one that is not there."""
    if not isinstance(device, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", device, re.ASCII):
        raise RecipeError(Problem("M602", f"{device!r} is no device", "device", "use cpu, cuda or cuda:N"))
    if device != "cpu":
        import torch

        number = device.partition(":")[2]
        if not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count():
            raise ResourceError(
                Problem("M602", f"torch {torch.__version__} sees no {device}", "device", "use `device='cpu'`")
            )


def _within(path: str, folder: str) -> bool:
    """True if `path` is `folder` or in it; links are followed."""
    real = os.path.realpath(folder)
    return os.path.commonpath([real, os.path.realpath(path)]) == real
