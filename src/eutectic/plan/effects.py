"""The merges of a sweep that are one and the same: values that change nothing, told before a weight is read."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eutectic.errors import RecipeError, listed
from eutectic.plan.findings import Findings
from eutectic.plan.model import Plan
from eutectic.recipe import Variant

# Parameters that divide by the sum of the weights, so that only the proportions of these count.
_NORMALIZING = ("normalize", "normalize_weights")


def refuse_idle_sweeps(variants: Sequence[Variant], plans: Iterable[Plan]) -> None:
    """Raises `RecipeError` (P317) for every swept parameter none of whose values changes anything.

    `plans` are those of the variants, of the same models; they are closed where it refuses.
    """
    planned = list(plans)
    made = [_effect(one) for one in planned]
    problems = []
    for path in variants[0].choices if variants else ():
        beside: dict[str, set[str]] = {}
        for variant, effect in zip(variants, made, strict=True):
            others = repr([value for other, value in variant.choices.items() if other != path])
            beside.setdefault(others, set()).add(effect)
        if len(beside) < len(variants) and all(len(effects) == 1 for effects in beside.values()):
            findings = Findings(planned[0].recipe)
            why, hint = _reason(planned[0], path)
            findings.say("P317", f"is swept and changes nothing: {why}", hint, path)
            problems += findings.problems
    if problems:
        for one in planned:
            one.close()
        raise RecipeError(problems)


def same_merges(plans: Mapping[str, Plan]) -> list[str]:
    """A note for all merges, by label, of a sweep that are one and the same though not all are."""
    alike: dict[str, list[str]] = {}
    for label, planned in plans.items():
        alike.setdefault(_effect(planned), []).append(label)
    return [f"one and the same merge: {listed(labels)}" for labels in alike.values() if len(labels) > 1]


def _effect(planned: Plan) -> str:
    """A digest of all that tells a merge of a sweep from the others."""
    decides = [(job.name, job.action, _decisive(job.parameters), job.post) for job in planned.jobs]
    return hashlib.sha256(repr(decides).encode()).hexdigest()


def _decisive(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tensor's parameters; weights that are divided by their sum as shares, to the digits that tell them apart."""
    weights = parameters.get("weight")
    if not isinstance(weights, list) or not any(parameters.get(name) is True for name in _NORMALIZING):
        return parameters
    total = abs(math.fsum(weights))
    return {**parameters, "weight": [f"{weight / total:.12g}" for weight in weights]} if total else parameters


def _reason(planned: Plan, path: str) -> tuple[str, str]:
    """Why a parameter changes nothing, and what to do."""
    found = re.match(r"(.*?)\bparameters\.([^.\[]+)", path)
    scope, param = found.groups() if found else (path, "")
    owners = [at for at, entry in enumerate(planned.recipe.models) if param in entry.parameters]
    if not scope and len(owners) >= len(planned.models) - (planned.method.space == "deltas"):
        return f"every model has its own {param}", f"sweep one of those, as models[{owners[0]}].parameters.{param}"
    if reason := planned.method.accepted.get(param):
        return reason, "leave it out"
    if param == "weight":
        hint = "sweep the weight of one model, or set `normalize: false`"
        return "under normalize only the proportions of the weights count", hint
    return "the merges are the same for all of its values", "leave it out"
