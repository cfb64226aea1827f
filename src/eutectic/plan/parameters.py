"""The value of every parameter for every tensor, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eutectic.errors import listed
from eutectic.kernels.sums import cancelled
from eutectic.methods import Method
from eutectic.names import Depths
from eutectic.plan.findings import Findings
from eutectic.plan.model import Job
from eutectic.recipe import ModelEntry, Recipe, Setting


class Parameters:
    """Binds a method's parameters. A value is looked up with the model, then in the recipe, then in the method."""

    def __init__(
        self, recipe: Recipe, method: Method, entries: Sequence[ModelEntry], depths: Depths, findings: Findings
    ) -> None:
        """`entries` are those of the models, without the base of task vectors, in the method's order."""
        self._recipe, self._method, self._entries = recipe, method, entries
        self._depths, self._findings = depths, findings
        # Parameter → the tensors that it has no value for.
        self._without: dict[str, dict[str, None]] = {}

    def bind(self, name: str) -> dict[str, Any]:
        """Every parameter for one tensor: a value, or a list of one a model."""
        depth = self._depths(name)
        bound: dict[str, Any] = {}
        for param in self._method.params.values():
            if param.per_model:
                bound[param.name] = [self._value(param.name, name, depth, entry) for entry in self._entries]
            else:
                bound[param.name] = self._value(param.name, name, depth, None)
        return bound | ({"scope": self._recipe.scope} if self._method.scoped else {})

    def _value(self, param: str, name: str, depth: float, entry: ModelEntry | None) -> Any:
        for settings in ([entry.parameters] if entry else []) + [self._recipe.parameters]:
            if (setting := settings.get(param)) is not None and (value := setting.at(name, depth)) is not None:
                return value
        known = self._method.params[param]
        if not known.required:
            return known.default
        self._without.setdefault(param, {})[name] = None
        # Never used: the plan is refused.
        return 0.0

    def check_filters(self, floats: Sequence[str], ties: Mapping[str, str]) -> None:
        """Every filter matches a tensor that is merged (P303), or at least one that is tied to such a tensor."""
        for _, setting in self._settings():
            self._findings.check_filters(setting.filters, floats, ties)

    def check(self, jobs: Sequence[Job]) -> None:
        """What only shows when all tensors have been looked at: P304, P305, P306."""
        for param, names in self._without.items():
            hint = "end its list with an entry without a filter"
            self._findings.say("P304", f"{param} has no value for {listed([*names])}", hint, f"parameters.{param}")
        zero = [
            job.name
            for job in jobs
            if job.parameters.get("normalize") and cancelled(job.parameters.get("weight", [1.0]))
        ]
        if zero:
            message = f"the weights sum to zero under normalize, for {listed(zero)}"
            hint = "set `normalize: false`, or change the weights"
            self._findings.say("P305", message, hint, "parameters.weight")
        bound = {repr(job.parameters): job.parameters for job in jobs if job.action == "merge"}.values()
        faults = [self._method.fault(parameters, len(self._entries)) for parameters in bound]
        for why in dict.fromkeys(filter(None, faults)):
            self._findings.say("P313", why, f"`eutectic methods {self._method.name}` says what goes", "parameters")
        notes = [self._method.note(parameters, len(self._entries)) for parameters in bound]
        if told := list(dict.fromkeys(filter(None, notes))):
            others = f"; and so for {len(told) - 1} other values" if len(told) > 1 else ""
            self._findings.notes.append(told[0] + others)
        for param in ("density", "rescale") if self._recipe.scope == "model" else ():
            if len({repr(job.parameters[param]) for job in jobs if param in job.parameters}) > 1:
                message = f"{param} differs between tensors under `scope: model`"
                hint = f"give one {param} for all tensors, or use `scope: tensor`"
                self._findings.say("P306", message, hint, f"parameters.{param}")
        if self._recipe.scope == "model" and self._method.streamed is None:
            message = f"{self._method.name} has no streamed form, which `scope: model` needs"
            self._findings.say("P306", message, "use `scope: tensor`", "parameters.scope")

    def note_overruled(self) -> None:
        """Says which values for all models no model takes, as each has its own."""
        for param in self._recipe.parameters:
            own = [entry.parameters.get(param) for entry in self._entries]
            if self._entries and all(setting is not None and setting.covers_all for setting in own):
                self._findings.notes.append(f"parameters.{param} has no effect: every model has its own {param}")

    def note_shared_gradients(self, jobs: Sequence[Job]) -> None:
        """Says which list for all models was perhaps meant as one value a model, or changes nothing."""
        normalized = all(job.parameters.get("normalize") for job in jobs if job.action == "merge")
        for param, setting in self._recipe.parameters.items():
            known = self._method.params.get(param)
            lists = [entry.values for entry in setting.entries if len(entry.values) > 1]
            if known is None or not known.per_model or not lists or len(self._entries) < 2:
                continue
            if any(param in entry.parameters for entry in self._entries):
                continue
            idle = normalized and param == "weight"
            if not idle and all(len(values) != len(self._entries) for values in lists):
                continue
            text = f"parameters.{param} {list(lists[0])} is a gradient over the layers, the same for every model"
            text += ", which has no effect under normalize" if idle else ""
            written = f"`{{model: MODEL, parameters: {{{param}: {lists[0][0]}}}}}`"
            self._findings.notes.append(f"{text}; one {param} a model is written beside it: {written}")

    def note_defaults(self) -> None:
        """Says which defaults are the paper's where mergekit's differ."""
        given = {param for param, _ in self._settings()}
        for param, theirs in self._method.mergekit_defaults.items():
            if param not in given:
                ours = self._method.params[param].default
                text = f"{param} is not given: {ours}, the paper's, is used (mergekit would use {theirs})"
                self._findings.notes.append(text)

    def _settings(self) -> list[tuple[str, Setting]]:
        found = list(self._recipe.parameters.items())
        for entry in self._recipe.models:
            found += entry.parameters.items()
        return found
