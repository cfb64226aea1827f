"""recipe × specs -> a flat list of jobs, or every problem at once. Opens headers, reads no weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eutectic import dtypes, methods
from eutectic.checkpoint import Source, Spec
from eutectic.errors import CheckpointError, Problem, RecipeError, did_you_mean, listed
from eutectic.kernels.sums import negligible
from eutectic.methods import Method
from eutectic.names import Depths, layer_of, matcher
from eutectic.recipe import ModelEntry, Place, Recipe, Setting

# Part of every fingerprint: raised when the numbers that a method gives change.
NUMERICS = 1

CODES: dict[str, tuple[str, str]] = {
    "P301": (
        "tensors of different shapes",
        "A tensor must have the same shape in every model that is merged. A first dimension that differs by a few "
        "rows is usually a vocabulary with added tokens: resize the embeddings of one model to the other's first.",
    ),
    "P302": (
        "a tensor is missing from a model",
        "Every model must have every floating-point tensor. Tensors that are tied in config.json count as present. "
        "With `missing: copy` in the recipe, a tensor that some models lack is copied from the base (or the first "
        "model that has it) and the manifest says so.",
    ),
    "P303": (
        "a filter matches no tensor",
        "A `{filter, value}` entry whose pattern matches none of the tensors is nearly always a spelling mistake. "
        "Patterns are plain parts of names, or regular expressions between slashes: /self_attn\\.(q|k)/.",
    ),
    "P304": (
        "a parameter has no value for some tensors",
        "Every entry of a filtered parameter has a filter, none matches these tensors, and the method has no default. "
        "End the list with an entry without a filter.",
    ),
    "P305": (
        "weights that sum to zero",
        "Normalising divides by the sum of the weights. Set `normalize: false`, or change the weights.",
    ),
    "P306": (
        "one density for a whole-model ranking",
        "`scope: model` ranks all tensors of a model together, so each model has one density; gradients and filters "
        "on `density` need `scope: tensor`.",
    ),
    "P307": (
        "a dtype that cannot be merged",
        "fp8 tensors mean nothing without their scales, which stand in other tensors. Convert the checkpoint to "
        "bfloat16 with the tool that made it, then merge.",
    ),
    "P308": (
        "the models have no tensor in common",
        "The names of the tensors are different in every model, so there is nothing to merge. Is one of them another "
        "architecture, or are its names prefixed?",
    ),
    "P309": (
        "layer_range does not cover the model",
        "A recipe in mergekit's slice form is supported when its one slice covers every layer of the models. "
        "Stacking and cutting layers is not supported yet.",
    ),
    "P310": (
        "a float tensor in one model is an integer tensor in another",
        "The models store this tensor with dtypes of different kinds, which usually means that one is quantised.",
    ),
    "P311": (
        "a model named in the recipe is not one of its inputs",
        "`buffers_from` and `tokenizer_source` name one of the recipe's own models, as it is written there, or `base`.",
    ),
}


@dataclass(frozen=True, slots=True)
class Job:
    """One output tensor: print it and you understand it.

    Attributes:
        name: the tensor's name, in the output and in every input.
        spec: dtype and shape of the output.
        action: `merge`, or `copy` (the first input's bytes; the others must be equal).
        inputs: (input number, name there) in the method's order; the base first for deltas.
        parameters: bound values by recipe name; one a model where the parameter is per model.
        reason: why it is copied.
    """

    name: str
    spec: Spec
    action: str
    inputs: tuple[tuple[int, str], ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PlanInput:
    """One model: its stable label, its role, and either an open source or the plan of a nested recipe."""

    label: str
    role: str
    source: Source | None = None
    plan: Plan | None = None

    @property
    def specs(self) -> Mapping[str, Spec]:
        """Dtype and shape of each of its tensors."""
        return self.plan.specs if self.plan else self._open.specs

    @property
    def ties(self) -> Mapping[str, str]:
        """Other names of its tensors."""
        return self.plan.ties if self.plan else self._open.ties

    @property
    def _open(self) -> Source:
        assert self.source is not None
        return self.source

    def identity(self) -> dict[str, Any]:
        """What names these weights: plain JSON data."""
        if self.plan:
            return {"label": self.label, "recipe": self.plan.recipe.to_dict(), "fingerprint": self.plan.fingerprint}
        return {**self._open.identity(), "label": self.label}

    def close(self) -> None:
        """Closes its files."""
        if self.plan:
            self.plan.close()
        else:
            self._open.close()

    def folder(self) -> str | None:
        """Where its config and tokenizer are."""
        return self.plan.donor.folder() if self.plan else self._open.folder()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a merge will do, known before a weight is read.

    Attributes:
        recipe: what was asked for.
        method: the merge method.
        inputs: every model, the base first where there is one.
        donor: the input whose config, tokenizer and integer buffers are taken.
        tokenizer: the input whose tokenizer files are taken instead, if the recipe names one.
        jobs: one for each output tensor, in the order of the donor's files.
        ties: other name → output tensor.
        dropped: input tensors that the output does not have: (input label, name, why).
        seed: what random masks are keyed by.
        notes: what the user should know: defaults that were taken, values without effect.
    """

    recipe: Recipe
    method: Method
    inputs: tuple[PlanInput, ...]
    donor: PlanInput
    tokenizer: PlanInput | None
    jobs: tuple[Job, ...]
    ties: Mapping[str, str]
    dropped: tuple[tuple[str, str, str], ...]
    seed: int
    notes: tuple[str, ...]

    @property
    def specs(self) -> dict[str, Spec]:
        """Dtype and shape of every output tensor."""
        return {job.name: job.spec for job in self.jobs}

    @property
    def bytes_out(self) -> int:
        """Bytes of tensors that will be written."""
        return sum(job.spec.nbytes for job in self.jobs)

    @property
    def bytes_in(self) -> int:
        """Bytes of tensors that will be read at least once (nested recipes count their own inputs)."""
        total = sum(
            self.inputs[i].specs[name].nbytes
            for job in self.jobs
            for i, name in job.inputs
            if self.inputs[i].plan is None
        )
        return total + sum(nested.plan.bytes_in for nested in self.inputs if nested.plan)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the output: recipe, inputs, seed, jobs, and the version of the numerics."""
        jobs = [
            [j.name, j.spec.dtype, list(j.spec.shape), j.action, list(j.inputs), dict(j.parameters)] for j in self.jobs
        ]
        text = json.dumps(
            [
                NUMERICS,
                self.method.name,
                self.recipe.scope,
                self.seed,
                [i.identity() for i in self.inputs],
                jobs,
                dict(self.ties),
            ],
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def groups(self) -> list[list[int]]:
        """Jobs whose statistics are taken together: all merged ones under `scope: model`, else each by itself."""
        merged = [i for i, job in enumerate(self.jobs) if job.action == "merge"]
        if self.recipe.scope == "model" and merged:
            return [merged, *([i] for i, job in enumerate(self.jobs) if job.action != "merge")]
        return [[i] for i in range(len(self.jobs))]

    def close(self) -> None:
        """Closes every input."""
        for item in self.inputs:
            item.close()


Opener = Callable[[Any, str | None], Source]


def make_plan(recipe: Recipe, opener: Opener) -> Plan:
    """Resolves a recipe against its models.

    Args:
        recipe: a checked recipe. Recipes within it that give no seed have its seed.
        opener: `(model as written, folder of the recipe) -> Source`; reads headers only.

    Raises `RecipeError` with every problem found, and `CheckpointError` for models that cannot be opened (all of them
    reported together).
    """
    method = methods.get(recipe.method)
    assert method is not None, "the recipe was checked"
    return _Planner(recipe, method, _open_inputs(recipe, method, opener)).plan()


def _open_inputs(recipe: Recipe, method: Method, opener: Opener) -> list[tuple[PlanInput, ModelEntry | None]]:
    """Every model once, the base first, the rest in the order in which the method gets them."""
    wanted: list[tuple[Any, ModelEntry | None]] = []
    if method.space == "deltas":
        wanted.append((recipe.base, None))
    wanted += [(entry.model, entry) for entry in recipe.models]
    opened: list[tuple[Any, Source | Plan]] = []
    problems: list[Problem] = []
    requests: list[Problem] = []
    for model, entry in wanted:
        try:
            if isinstance(model, Recipe):
                opened.append(
                    (entry, make_plan(model if model.seed is not None else replace(model, seed=recipe.seed), opener))
                )
            else:
                opened.append((entry, opener(model, recipe.folder)))
        except RecipeError as error:
            requests += error.problems
        except CheckpointError as error:
            problems += error.problems
    if requests or problems:
        _close(found for _, found in opened)
        raise RecipeError([*requests, *problems]) if requests else CheckpointError(problems)
    labels = _unique_labels([_label(found) for _, found in opened])
    inputs = []
    for (entry, found), label, (model, _) in zip(opened, labels, wanted, strict=True):
        base = entry is None or (recipe.base is not None and model == recipe.base)
        inputs.append(
            (
                PlanInput(
                    label,
                    "base" if base else "model",
                    **({"plan": found} if isinstance(found, Plan) else {"source": found}),
                ),
                entry,
            )
        )
    if method.symmetric:
        # A canonical order, so that the bytes do not depend on how the recipe lists the models.
        head = inputs[:1] if method.space == "deltas" else []
        inputs = head + sorted(inputs[len(head) :], key=lambda pair: pair[0].label)
    return inputs


def _close(found: Iterable[Source | Plan]) -> None:
    for item in found:
        item.close()


def _label(found: Source | Plan) -> str:
    if isinstance(found, Plan):
        return found.recipe.name or f"{found.method.name} of {', '.join(i.label for i in found.inputs)}"
    return found.label


def _unique_labels(labels: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    unique = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        unique.append(label if seen[label] == 1 else f"{label}#{seen[label]}")
    return unique


class _Planner:
    """One planning: collects problems while it builds jobs."""

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        inputs: list[tuple[PlanInput, ModelEntry | None]],
    ) -> None:
        self.recipe, self.method, self.seed = recipe, method, recipe.seed or 0
        self.inputs = tuple(item for item, _ in inputs)
        self.entries = [entry for _, entry in inputs]
        self.out_dtype = recipe.out_dtype or recipe.dtype
        self.problems: list[Problem] = []
        self.notes: list[str] = list(recipe.notes)
        self.dropped: list[tuple[str, str, str]] = []
        self.models = [i for i, entry in enumerate(self.entries) if entry is not None]
        first = self.recipe.models[0] if self.recipe.models else None
        bases = [i for i, item in enumerate(self.inputs) if item.role == "base"]
        self.donor = bases[0] if bases else next(i for i, entry in enumerate(self.entries) if entry is first)

    def plan(self) -> Plan:
        ties = self._ties()
        names = self._names(ties)
        self.depths = Depths.of(names)
        self._check_layers()
        self._check_filters(names)
        jobs = [job for name in names if (job := self._job(name, ties)) is not None]
        if not any(job.action == "merge" for job in jobs) and not self.problems:
            self._say("P308", f"no tensor can be merged: {listed([i.label for i in self.inputs])} have none in common")
        self._check_density(jobs)
        self._check_weights(jobs)
        wanted = self.recipe.tokenizer_source
        named = self._input_named(wanted, "tokenizer_source") if wanted is not None else None
        tokenizer = self.inputs[named] if named is not None else None
        self._note_defaults()
        if self.problems:
            for item in self.inputs:
                item.close()
            raise RecipeError(self.problems)
        return Plan(
            self.recipe,
            self.method,
            self.inputs,
            self.inputs[self.donor],
            tokenizer,
            tuple(jobs),
            ties,
            tuple(self.dropped),
            self.seed,
            tuple(self.notes),
        )

    def _say(self, code: str, message: str, hint: str = "", where: str = "", place: Place | None = None) -> None:
        if place is not None:
            self.problems.append(Problem(code, message, place.path, hint, place.file, place.line, place.column))
        else:
            self.problems.append(Problem(code, message, where, hint, self.recipe.file or ""))

    def _ties(self) -> dict[str, str]:
        """Other name → stored name, for tensors that are tied in every model that has both names."""
        ties: dict[str, str] = {}
        for item in self.inputs:
            for alias, name in item.ties.items():
                apart = any(alias in other.specs and name in other.specs for other in self.inputs)
                if not apart and alias not in ties.values():
                    ties.setdefault(alias, name)
        return ties

    def _names(self, ties: Mapping[str, str]) -> list[str]:
        """Every tensor of every model once: the donor's in its order, then what only others have."""
        names = dict.fromkeys(self.inputs[self.donor].specs)
        for item in self.inputs:
            names |= dict.fromkeys(item.specs)
        for item in self.inputs:
            names |= dict.fromkeys(alias for alias in item.ties if alias not in ties)
        return [name for name in names if name not in ties]

    def _job(self, name: str, ties: Mapping[str, str]) -> Job | None:
        has: list[tuple[int, str]] = []
        for i, item in enumerate(self.inputs):
            if name in item.specs:
                has.append((i, name))
            elif name in item.ties:
                has.append((i, item.ties[name]))
            else:
                # A model may store a tied tensor under the other name alone.
                has += [(i, alias) for alias, stored in ties.items() if stored == name and alias in item.specs][:1]
        specs = [self.inputs[i].specs[stored] for i, stored in has]
        if any(dtypes.BY_NAME[spec.dtype].kind == "fp8" for spec in specs):
            self._say("P307", f"{name} is {specs[0].dtype}", "convert the checkpoint to bfloat16 first", name)
            return None
        floats = [dtypes.is_float(spec.dtype) for spec in specs]
        if any(floats) and not all(floats):
            pairs = ", ".join(f"{self.inputs[i].label}: {spec.dtype}" for (i, _), spec in zip(has, specs, strict=True))
            self._say("P310", f"{name} is not a float in every model ({pairs})", where=name)
            return None
        if not floats[0]:
            return self._copied_buffer(name, has, specs)
        if len(has) < len(self.inputs):
            return self._partly_missing(name, has, specs)
        if len({spec.shape for spec in specs}) > 1:
            self._shapes_differ(name, specs)
            return None
        out = Spec(self.out_dtype or dtypes.promote([spec.dtype for spec in specs]), specs[0].shape)
        return Job(name, out, "merge", tuple(has), self._bind(name))

    def _copied_buffer(self, name: str, has: list[tuple[int, str]], specs: list[Spec]) -> Job | None:
        """Integers and booleans: never averaged. Equal everywhere, or taken from where the recipe says."""
        order = sorted(range(len(has)), key=lambda k: has[k][0] != self.donor)
        ordered = [has[k] for k in order]
        if (giver := self._giver()) is not None and any(i == giver for i, _ in ordered):
            chosen = [pair for pair in ordered if pair[0] == giver]
            return Job(name, self.inputs[giver].specs[chosen[0][1]], "copy", (chosen[0],), reason="buffers_from")
        first = specs[order[0]]
        if any(spec != first for spec in specs):
            self._shapes_differ(name, specs)
            return None
        lacking = [item.label for i, item in enumerate(self.inputs) if i not in {i for i, _ in has}]
        reason = f"{first.dtype} buffer" + (f", not in {listed(lacking)}" if lacking else "")
        return Job(name, first, "copy", tuple(ordered), reason=reason)

    def _giver(self) -> int | None:
        wanted = self.recipe.buffers_from
        return None if wanted is None else self._input_named(wanted, "buffers_from")

    def _input_named(self, wanted: str, key: str) -> int | None:
        if wanted == "base":
            return self.donor
        for i, entry in enumerate(self.entries):
            written = self.recipe.base if entry is None else entry.model
            if wanted in (written, self.inputs[i].label):
                return i
        place = self.recipe.places.get(key)
        hint = did_you_mean(wanted, [item.label for item in self.inputs])
        if not any(problem.code == "P311" and problem.where == key for problem in self.problems):
            self._say("P311", f"{wanted!r} is not one of the recipe's models", hint, key, place)
        return None

    def _partly_missing(self, name: str, has: list[tuple[int, str]], specs: list[Spec]) -> Job | None:
        lacking = [item.label for i, item in enumerate(self.inputs) if i not in {i for i, _ in has}]
        if self.recipe.missing == "copy":
            chosen = min(range(len(has)), key=lambda k: (has[k][0] != self.donor, has[k][0]))
            spec = specs[chosen]
            out = Spec(self.out_dtype or spec.dtype, spec.shape)
            reason = f"not in {listed(lacking)}; taken from {self.inputs[has[chosen][0]].label}"
            self.dropped += [
                (self.inputs[i].label, stored, f"not in {listed(lacking)}")
                for k, (i, stored) in enumerate(has)
                if k != chosen
            ]
            return Job(name, out, "copy", (has[chosen],), reason=reason)
        near = did_you_mean(
            name, [n for i, item in enumerate(self.inputs) if item.label in lacking for n in item.specs]
        )
        self._say(
            "P302",
            f"{name} is missing from {listed(lacking)} but is in {listed([self.inputs[i].label for i, _ in has])}",
            near or "set `missing: copy` to copy such tensors",
            name,
        )
        return None

    def _shapes_differ(self, name: str, specs: list[Spec]) -> None:
        shown = ", ".join(
            f"{item.label}: {spec.dtype} {list(spec.shape)}" for item, spec in zip(self.inputs, specs, strict=False)
        )
        rows = {spec.shape[:1] for spec in specs}
        rest = {spec.shape[1:] for spec in specs}
        vocabulary = len(rows) > 1 and len(rest) == 1 and layer_of(name) is None
        self._say(
            "P301",
            f"{name} differs between the models ({shown})",
            "vocabularies of different sizes? resize one model's embeddings to the other's first" if vocabulary else "",
            name,
        )

    # Parameters

    def _bind(self, name: str) -> dict[str, Any]:
        depth = self.depths(name)
        bound: dict[str, Any] = {}
        for param in self.method.params.values():
            if param.per_model:
                bound[param.name] = [self._value(param.name, name, depth, self.entries[i]) for i in self.models]
            else:
                bound[param.name] = self._value(param.name, name, depth, None)
        return bound

    def _value(self, param: str, name: str, depth: float, entry: ModelEntry | None) -> Any:
        for settings in ([entry.parameters] if entry else []) + [self.recipe.parameters]:
            if (setting := settings.get(param)) is not None and (value := setting.at(name, depth)) is not None:
                return value
        known = self.method.params[param]
        if known.required:
            if not any(problem.code == "P304" and param in problem.message for problem in self.problems):
                place = self.recipe.places.get(f"parameters.{param}")
                self._say(
                    "P304",
                    f"{param} has no value for {name}",
                    "end its list with an entry without a filter",
                    f"parameters.{param}",
                    place,
                )
            return 0.0
        return known.default

    def _settings(self) -> list[tuple[str, Setting]]:
        found = list(self.recipe.parameters.items())
        for entry in self.recipe.models:
            found += entry.parameters.items()
        return found

    def _check_filters(self, names: list[str]) -> None:
        floats = [
            name for name in names if any(name in i.specs and dtypes.is_float(i.specs[name].dtype) for i in self.inputs)
        ]
        for _, setting in self._settings():
            for pattern, place in setting.filters:
                if not any(map(matcher(pattern), floats)):
                    parts = {part for name in floats for part in name.split(".")}
                    self._say(
                        "P303",
                        f"the filter {pattern!r} matches no tensor",
                        did_you_mean(pattern, sorted(parts)),
                        place=place,
                    )

    def _check_layers(self) -> None:
        if self.recipe.layer_range is None:
            return
        first, last = self.recipe.layer_range
        layers = max(self.depths.layers.values(), default=0)
        if first != 0 or last != layers:
            place = self.recipe.places.get("slices[0].sources[0].layer_range")
            self._say(
                "P309",
                f"layer_range [{first}, {last}] does not cover the model's {layers} layers",
                f"write [0, {layers}]; stacking layers is not supported yet",
                "slices",
                place,
            )

    def _check_density(self, jobs: list[Job]) -> None:
        if self.recipe.scope != "model":
            return
        values = {tuple(job.parameters["density"]) for job in jobs if "density" in job.parameters}
        if len(values) > 1:
            self._say(
                "P306",
                "density differs between tensors under `scope: model`",
                "give each model one density, or use `scope: tensor`",
                "parameters.density",
                self.recipe.places.get("parameters.density"),
            )

    def _check_weights(self, jobs: list[Job]) -> None:
        zero = [
            job.name
            for job in jobs
            if job.parameters.get("normalize") and cancelled(job.parameters.get("weight", [1.0]))
        ]
        if zero:
            self._say(
                "P305",
                f"the weights sum to zero under normalize, for {listed(zero)}",
                "set `normalize: false`, or change the weights",
                "parameters.weight",
                self.recipe.places.get("parameters.weight"),
            )

    def _note_defaults(self) -> None:
        given = {param for param, _ in self._settings()}
        for param, theirs in self.method.mergekit_defaults.items():
            if param not in given:
                ours = self.method.params[param].default
                self.notes.append(f"{param} is not given: {ours}, the paper's, is used (mergekit would use {theirs})")


def cancelled(weights: Sequence[float]) -> bool:
    """True if the weights sum to zero, up to rounding."""
    return abs(sum(weights)) <= negligible(weights)
