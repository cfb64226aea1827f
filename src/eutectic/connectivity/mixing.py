"""Sources and how much of each -> their weighted mean, computed on read and never written: the points of a path."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eutectic import dtypes, methods
from eutectic.averaging import statistics_note
from eutectic.checkpoint import Source, open_source
from eutectic.names import layer_of
from eutectic.plan import Plan, make_plan
from eutectic.recipe import load
from eutectic.run.merged import MergedSource


@dataclass(frozen=True, slots=True)
class Path:
    """A way from one model to another.

    Attributes:
        models: the sources that are mixed; the first gives config, tokenizer and integer tensors.
        label: for messages, such as `a → b`.
        shares: how much of each model a point has.
        only: the layer that moves, as `layers_of` calls it; all others stay those of the first model. None for all.
    """

    models: tuple[Source, ...]
    label: str
    shares: Callable[[float], tuple[float, ...]]
    only: str | None = None

    def plan(self, t: float) -> Plan:
        """What the merge at a point does. Raises `RecipeError` with every problem of the models' names and shapes."""
        return mixture(self.models, self.shares(t), self.only)

    def at(self, t: float) -> MergedSource:
        """The model at a point."""
        return MergedSource(self.plan(t), f"{self.label} at t = {t:.6g}")


def straight(a: Source, b: Source, label: str, only: str | None = None) -> Path:
    """The straight line from `a` to `b`, or from `a` to itself with one layer of `b`."""
    return Path((a, b), label, lambda t: (1 - t, t), only)


def bezier(a: Source, bend: Source, b: Source, label: str) -> Path:
    """The quadratic Bézier curve from `a` to `b` that leaves towards `bend` and arrives from there."""
    return Path((a, bend, b), label, bezier_shares)


def bezier_shares(t: float) -> tuple[float, float, float]:
    """How much a point of a quadratic Bézier curve has of its first end, its bend and its last end."""
    return (1 - t) ** 2, 2 * t * (1 - t), t**2


def mixture(models: Sequence[Source], shares: Sequence[float], only: str | None = None) -> Plan:
    """The plan of Σ shareᵢ modelᵢ. Integer tensors, config and tokenizer are the first model's.

    Raises `RecipeError` or `CheckpointError` with every problem.
    """
    entries = []
    for number, (model, share) in enumerate(zip(models, shares, strict=True)):
        weight: object = float(share)
        if only is not None:
            # A dot at the end: layer 1 is no part of layer 10. The name itself may be a tensor's.
            inside = rf"/^{re.escape(only)}(\.|$)/"
            weight = [{"filter": inside, "value": float(share)}, {"value": 0.0 if number else 1.0}]
        entries.append({"model": model, "parameters": {"weight": weight}})
    recipe = {
        "merge_method": "linear",
        "models": entries,
        "parameters": {"normalize": False},
        "base_model": models[0],
        "buffers_from": "base",
    }
    return make_plan(load(recipe, methods=methods), lambda model, folder: open_source(model, folder=folder))


def layers_of(source: Source) -> list[str]:
    """The layers of a model in the order of its tensors; what is in no layer goes by the module that it is in.

    Without those that have integers alone, or that come second among tied names.
    """
    floats = [name for name, spec in source.specs.items() if dtypes.is_float(spec.dtype)]
    return list(dict.fromkeys(_layer(name) for name in floats))


def _layer(name: str) -> str:
    if (place := layer_of(name)) is not None:
        stack, number = place
        return f"{stack}.{number}" if stack else str(number)
    return name.rpartition(".")[0] or name


def averaged_statistics(plan: Plan) -> bool:
    """Whether the merge mixes statistics of batch normalisation, which a mixed network would not measure."""
    return statistics_note(job.name for job in plan.jobs if job.action == "merge") is not None
