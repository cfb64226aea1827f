"""The steps after a method, bound for each tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eutectic.methods import AUTO, POSTS, Method
from eutectic.names import Depths, layer_of
from eutectic.plan.findings import Findings
from eutectic.plan.model import BoundStep
from eutectic.recipe import PostStep, Recipe


class Posts:
    """Binds the parameters of every step of a recipe."""

    def __init__(self, recipe: Recipe, method: Method, depths: Depths, findings: Findings) -> None:
        self._recipe, self._depths, self._findings = recipe, depths, findings
        if recipe.post and method.space != "deltas" and method.base != "first":
            message = f"{method.name} merges models, and the steps under `post` rescale the change from a base"
            hint = "use a method on task vectors, such as `task_arithmetic` with `normalize: true`"
            findings.say("P312", message, hint, "post")
        whole = [step.name for step in recipe.post if POSTS[step.name].matrix]
        if whole and recipe.scope == "model":
            # The blocks of all tensors are ranked together, and none is in memory as a whole.
            message = f"{whole[0]} needs whole tensors, which a method that ranks the whole model does not have"
            findings.say("P312", message, "use `scope: tensor` for the method, or leave the step out", "post")

        measuring = [step.name for step in recipe.post if _measures(step)]
        if measuring:
            passes = "one more pass" if len(measuring) == 1 else f"{len(measuring)} more passes"
            findings.notes.append(f"{' and '.join(measuring)} over the whole model: {passes} over the inputs first")

    def bind(self, name: str) -> tuple[BoundStep, ...]:
        """Every step for one tensor."""
        depth, place = self._depths(name), layer_of(name)
        bound = []
        for step in self._recipe.post:
            values: dict[str, Any] = {}
            for param in POSTS[step.name].params.values():
                setting = step.parameters.get(param.name)
                value = setting.at(name, depth) if setting is not None else None
                values[param.name] = param.default if value is None else value
            if step.name == "lines":
                values["layer"] = place[1] if place else None
                values["layers"] = self._depths.layers[place[0]] if place else 0
            bound.append(BoundStep(step.name, step.scope, values))
        return tuple(bound)

    def check_filters(self, floats: Sequence[str], ties: Mapping[str, str]) -> None:
        """Every filter matches a tensor that is merged (P303); what is measured over the model is one value (P306)."""
        for number, step in enumerate(self._recipe.post):
            for param, setting in step.parameters.items():
                where = f"post[{number}].{step.name}.{param}"
                self._findings.check_filters(setting.filters, floats, ties)
                required = POSTS[step.name].params[param].required
                if required and not setting.covers_all:
                    hint = "end its list with an entry without a filter"
                    self._findings.say("P304", f"{param} has no value for some tensors", hint, where)
                whole = step.scope == "model" or (step.name == "lines" and param == "alpha")
                if whole and setting.constant is None:
                    self._findings.say("P306", f"{param} is one value for the whole model", "", where)


def _measures(step: PostStep) -> bool:
    alpha = step.parameters.get("alpha")
    return step.scope == "model" or (step.name == "lines" and (alpha is None or alpha.constant == AUTO))
