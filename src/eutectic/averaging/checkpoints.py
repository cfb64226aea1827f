"""Checkpoints of one training run and a window over them -> the recipe of their average. Reads names, no weights."""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from eutectic.errors import Problem, RecipeError, did_you_mean, listed, several

KINDS = ("uniform", "exponential", "ema")
_STEP = re.compile(r"step[-_=]?(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")
_SUFFIX = re.compile(r"\.(safetensors|bin|pt|pth|index\.json)$")


@dataclass(frozen=True, slots=True)
class Window:
    """Which checkpoints count, and how much.

    Attributes:
        kind: `uniform`: all the same. `exponential`: `decay` to the power of the number of later checkpoints. `ema`:
            what an exponential moving average would give them whose `decay` is that of one step, by the steps between
            them; the first stands for everything before it.
        decay: of `exponential` (a checkpoint) and `ema` (a step).
        last: only so many, the latest (LAWA, arXiv:2209.14981).
        until: only checkpoints up to this step.
    """

    kind: str = "uniform"
    decay: float | None = None
    last: int | None = None
    until: int | None = None

    def __post_init__(self) -> None:
        """Raises `RecipeError` (T713) with everything that cannot be."""
        problems = []
        if self.kind not in KINDS:
            hint = did_you_mean(self.kind, KINDS)
            problems.append(_wrong("window", f"must be one of {', '.join(KINDS)}, not {self.kind!r}", hint))
        elif self.kind == "uniform" and self.decay is not None:
            problems.append(_wrong("decay", "a uniform average has none", "ask for `exponential` or `ema`"))
        elif self.kind != "uniform" and self.decay is None:
            problems.append(_wrong("decay", f"{self.kind} needs one", "0.9 is common for checkpoints, 0.999 for steps"))
        if self.decay is not None and (isinstance(self.decay, bool) or not isinstance(self.decay, Real)):
            problems.append(_wrong("decay", f"must be a number, not {self.decay!r}"))
        elif self.decay is not None and not 0 < self.decay < 1:
            problems.append(_wrong("decay", f"must lie between 0 and 1, both excluded, not {self.decay!r}"))
        for name, value, least in (("last", self.last, 2), ("until", self.until, 0)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < least):
                problems.append(_wrong(name, f"must be a whole number from {least} on, not {value!r}"))
        if problems:
            raise RecipeError(problems)

    @property
    def needs_order(self) -> bool:
        """Whether it matters which checkpoint is later."""
        return self.kind != "uniform" or self.last is not None or self.until is not None

    def note(self, count: int) -> str | None:
        """What to tell of so many checkpoints that were taken: fewer than were asked for."""
        if self.last is None or count >= self.last:
            return None
        of = "" if self.until is None else f" up to step {self.until}"
        return f"there are {count} checkpoints{of}, not {self.last}: all are taken"

    def weights(self, steps: Sequence[int]) -> list[float]:
        """What each checkpoint counts, for their steps in ascending order; the sum need not be 1."""
        if self.kind == "uniform" or self.decay is None:
            return [1.0] * len(steps)
        if self.kind == "exponential":
            return [self.decay**age for age in reversed(range(len(steps)))]
        log = math.log(self.decay)
        ages = [(steps[-1] - step) * log for step in steps]
        # A checkpoint enters with 1 - decay^gap, and has faded by decay^age since; the first enters whole.
        gaps = [None, *(after - before for before, after in itertools.pairwise(steps))]
        return [
            math.exp(age) * (1.0 if gap is None else -math.expm1(gap * log))
            for age, gap in zip(ages, gaps, strict=True)
        ]


def average_recipe(
    checkpoints: Iterable[Any] | str | os.PathLike[str],
    window: Window | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """The recipe of an average of checkpoints: `linear`, the latest first, which gives config, tokenizer and integers.

    Args:
        checkpoints: a list of paths, hub ids and patterns (`run/checkpoint-*`), or one pattern; models in memory count
            as listed in order. A path that is named twice counts once.
        window: which of them count, and how much; by default all the same.
        out: the output folder, which patterns pass over where it stands among the checkpoints.

    Raises `RecipeError`: T711 for fewer than two checkpoints, T712 when an order is needed and not known.
    """
    window = window or Window()
    found = expanded(checkpoints, out)
    ordered = _ordered(found)
    if ordered is None and window.needs_order:
        raise RecipeError(_unordered(found, window))
    steps, models = (list(ordered), list(ordered.values())) if ordered is not None else (list(range(len(found))), found)
    if window.until is not None:
        steps = [step for step in steps if step <= window.until]
        models = models[: len(steps)]
    steps, models = steps[-(window.last or 0) :], models[-(window.last or 0) :]
    if len(models) < 2:
        raise RecipeError(_too_few(found, models, window))
    return _recipe(models, window.weights(steps), in_order=ordered is not None)


def statistics_note(names: Iterable[str]) -> str | None:
    """What to tell of averaged batch normalisation statistics, given the names of the averaged tensors."""
    known = set(names)
    ends = (".running_mean", ".running_var")
    layers = sorted({name.removesuffix(ends[0]) for name in known if name.endswith(ends[0])})
    layers = [layer for layer in layers if layer + ends[1] in known]
    if not layers:
        return None
    return (
        f"the batch normalisation statistics of {listed(layers)} were averaged like weights, which is not what the "
        "averaged network would measure; recompute them from training data with eutectic.averaging.update_bn(loader, "
        "model)"
    )


def _recipe(models: Sequence[Any], weights: Sequence[float], *, in_order: bool) -> dict[str, Any]:
    """Latest first: the first model of a recipe gives config and tokenizer."""
    entries = [
        {"model": model, "parameters": {"weight": weight}} for model, weight in zip(models, weights, strict=True)
    ]
    recipe: dict[str, Any] = {"merge_method": "linear", "models": entries[::-1] if in_order else entries}
    if not in_order:
        return recipe
    if isinstance(models[-1], str):
        return recipe | {"buffers_from": models[-1]}
    # What is in memory has no name to be called by.
    return recipe | {"base_model": models[-1], "buffers_from": "base"}


def expanded(checkpoints: Any, out: str | os.PathLike[str] | None) -> list[Any]:
    """Every checkpoint once, patterns expanded. Raises `RecipeError` (T711) for patterns that match nothing."""
    if isinstance(checkpoints, str | os.PathLike):
        checkpoints = [checkpoints]
    one = isinstance(checkpoints, Mapping) or hasattr(checkpoints, "state_dict")
    if one or not isinstance(checkpoints, Iterable):
        message = f"must be a list of checkpoints or a pattern, not a {type(checkpoints).__name__}"
        raise RecipeError(Problem("T711", message, "checkpoints", "put it in brackets"))
    place = None if out is None else os.path.realpath(out)
    found: dict[Any, Any] = {}
    problems = []
    for item in checkpoints:
        if not isinstance(item, str | os.PathLike):
            found[id(item)] = item
            continue
        path = os.path.expanduser(os.fspath(item))
        matches = [path]
        if glob.has_magic(path) and not os.path.exists(path):
            matches = [match for match in sorted(glob.glob(path)) if not _is_output(match, place)]
            if not matches:
                problems.append(Problem("T711", f"{path!r} matches nothing", "checkpoints", _beside(path)))
        for match in matches:
            found.setdefault(os.path.realpath(match) if os.path.exists(match) else match, match)
    if problems:
        raise RecipeError(problems)
    return list(found.values())


def _is_output(path: str, out: str | None) -> bool:
    """Whether a path is the output of an earlier or interrupted run of the same command."""
    return out is not None and os.path.realpath(path) in (out, f"{out}.partial")


def _ordered(found: Sequence[Any]) -> dict[int, Any] | None:
    """The checkpoints by step, in ascending order; models in memory by their place. None if the order is not known."""
    if not all(isinstance(item, str) for item in found):
        return dict(enumerate(found))
    steps = [step_of(item) for item in found]
    known = [step for step in steps if step is not None]
    if len(set(known)) < len(found):
        return None
    return dict(sorted(zip(known, found, strict=True)))


def step_of(path: str) -> int | None:
    """The step that a checkpoint's name tells: of its file, or else of its folder; None if there is no number."""
    head, name = os.path.split(os.path.normpath(path))
    for part in (_SUFFIX.sub("", name), os.path.basename(head)):
        if numbers := _STEP.findall(part) or _NUMBER.findall(part):
            return int(numbers[-1])
    return None


def _unordered(found: Sequence[str], window: Window) -> Problem:
    steps = {path: step_of(path) for path in found}
    if without := [path for path, step in steps.items() if step is None]:
        reason = f"there is no step in the name of {listed(without)}"
    else:
        repeated = next(step for step in steps.values() if list(steps.values()).count(step) > 1)
        reason = f"{listed([path for path, step in steps.items() if step == repeated])} are both of step {repeated}"
    wants = window.kind if window.kind != "uniform" else "last" if window.last is not None else "until"
    hint = "name checkpoints of one run, such as 'run/checkpoint-*', or take a uniform average of all"
    return Problem("T712", f"{wants} needs an order, and {reason}", "checkpoints", hint)


def _too_few(found: Sequence[Any], models: Sequence[Any], window: Window) -> Problem:
    if len(found) > 1:
        message = f"{len(models)} of {len(found)} checkpoints are of step {window.until} or before it"
        return Problem("T711", message, "until", "choose a later step")
    hint = "name another, or a pattern such as 'run/checkpoint-*'"
    if found and isinstance(found[0], str) and (inside := sorted(glob.glob(os.path.join(found[0], "checkpoint-*")))):
        hint = f"it holds {several(len(inside), 'checkpoint')}: name them as {os.path.join(found[0], 'checkpoint-*')!r}"
    shown = f" ({found[0]})" if found and isinstance(found[0], str) else ""
    return Problem(
        "T711",
        f"there is only one checkpoint to average{shown}" if found else "no checkpoint was named",
        "checkpoints",
        hint,
    )


def _beside(pattern: str) -> str:
    """What there is where nothing matched."""
    folder = os.path.dirname(pattern) or os.curdir
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return f"there is no folder {folder!r}" if not glob.has_magic(folder) else "check the folder's name"
    shown = [name if name.isprintable() else ascii(name) for name in names]
    return f"{folder!r} holds {listed(shown)}" if shown else f"{folder!r} is empty"


def _wrong(where: str, message: str, hint: str = "") -> Problem:
    return Problem("T713", message, where, hint)
