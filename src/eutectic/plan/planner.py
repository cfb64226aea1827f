"""recipe × specs -> jobs, or every problem at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from eutectic import dtypes, methods
from eutectic.checkpoint import Source, Spec
from eutectic.errors import CheckpointError, EutecticError, RecipeError, listed, several
from eutectic.methods import Method
from eutectic.names import Depths, matcher
from eutectic.plan.configs import note_configs
from eutectic.plan.findings import Findings
from eutectic.plan.inputs import Input, Opener, open_donor, open_inputs, opening_once
from eutectic.plan.model import Job, Plan, PlanInput
from eutectic.plan.parameters import Parameters
from eutectic.plan.post import Posts
from eutectic.plan.statistics import Measured
from eutectic.plan.tokenizers import Numberings, chat_template, check_numbers, note_numbers, place_of_source
from eutectic.plan.unlike import one_of_shards, why_missing, why_shapes_differ
from eutectic.recipe import Place, Recipe, label_of, same_model
from eutectic.recipe.tokenizers import BASE, UNION

# (input number, name there) of every input that has a tensor.
_Holders = list[tuple[int, str]]


def planning_together(opener: Opener, opened: dict[Any, Source] | None = None) -> Callable[[Recipe], Plan]:
    """`make_plan` for recipes that share their inputs: each is opened once, as `opening_once` does."""
    return partial(make_plan, opener=opening_once(opener, opened), numberings=Numberings())


def make_plan(recipe: Recipe, opener: Opener, numberings: Numberings | None = None) -> Plan:
    """Resolves a recipe against its models.

    Args:
        recipe: a checked recipe. Recipes within it that give no seed have its seed.
        opener: `(model as written, folder of the recipe) -> Source`; reads headers only.
        numberings: what plans that share their inputs have found of the tokenizers.

    Raises `RecipeError` with every problem found, and `CheckpointError` for models that cannot be opened (all of them
    reported together).
    """
    known = methods.get(recipe.method)
    assert known is not None, "the recipe was checked"
    method = known.resolved(recipe.base is not None)
    numberings = numberings or Numberings()
    plan_nested = partial(make_plan, numberings=numberings)
    inputs = open_inputs(recipe, method, opener, plan_nested)
    try:
        donor = open_donor(recipe, method, opener, plan_nested, [item.model.label for item in inputs])
    except EutecticError:
        for item in inputs:
            item.close()
        raise
    return _Planner(recipe, method, inputs, donor, numberings).plan()


class _Planner:
    """One planning: collects findings while it builds jobs."""

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        inputs: list[Input],
        donor: PlanInput | None,
        numberings: Numberings,
    ) -> None:
        self.numberings = numberings
        self.recipe, self.method = recipe, method
        self.file_donor = donor
        self.inputs = tuple(item.model for item in inputs)
        self.entries = [item.entry for item in inputs]
        self.artefacts = tuple(item.statistics for item in inputs if item.statistics is not None)
        self.out_dtype = recipe.out_dtype or recipe.dtype
        self.findings = Findings(recipe)
        bases = [number for number, item in enumerate(self.inputs) if item.role == "base"]
        first = recipe.models[0]
        self.donor = bases[0] if bases else next(i for i, entry in enumerate(self.entries) if entry is first)
        self.ties = self._ties()
        self.names = self._names()
        self.depths = Depths.of(self.names)
        listed_models = [entry for entry in self.entries if entry is not None]
        self.parameters = Parameters(recipe, method, listed_models, self.depths, self.findings)
        self.posts = Posts(recipe, method, self.depths, self.findings)
        self.left_out = [(pattern, matcher(pattern)) for pattern in recipe.leave_out]
        self.measured = Measured(
            method,
            self.inputs,
            self.artefacts,
            holders=self._has,
            merged=lambda name: not self._rule(name) and self.parameters.bind(name).get("solve", True),
            places=[entry.place.path for entry in listed_models],
            findings=self.findings,
        )
        self.giver = self._input_named(recipe.buffers_from, "buffers_from")
        # Tensors to be told of together: those missing from the same models, those of one refused dtype.
        self.missing: dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]] = {}
        self.refused: dict[tuple[str, str], list[str]] = {}

    def plan(self) -> Plan:
        self._check_layers()
        floats = [name for name in self.names if any(dtypes.is_float(s.dtype) for s in self._specs(self._has(name)))]
        # Names that config.json ties to a tensor count, stored or not.
        tied = {alias: name for item in self.inputs for alias, name in item.implied.items()} | self.ties
        self.parameters.check_filters(floats, tied)
        self.posts.check_filters(floats, tied)
        where = self.recipe.places.get("leave_out") or Place("", None, None, "leave_out")
        self.findings.check_filters([(pattern, where) for pattern in self.recipe.leave_out], self.names, tied)
        jobs = [job for name in self.names if (job := self._job(name)) is not None]
        self._report_groups()
        if floats and all(map(self._rule, floats)):
            self.findings.say("P308", "no tensor can be merged: leave_out takes every one", where="leave_out")
        self.measured.report()
        if not any(job.action == "merge" for job in jobs) and not self.findings.problems:
            labels = listed([item.label for item in self.inputs])
            self.findings.say("P308", f"no tensor can be merged: {labels} have none of floats in common")
        self.parameters.check(jobs)
        tokenizer, template = self._tokenizer()
        self.parameters.note_defaults()
        self.parameters.note_overruled()
        self.parameters.note_shared_gradients(jobs)
        self._tell_of_inputs()
        if problems := self.findings.problems:
            self._close()
            raise RecipeError(problems)
        return Plan(
            self.recipe,
            self.method,
            (*self.inputs, *self.artefacts),
            self.file_donor or self.inputs[self.donor],
            tokenizer,
            tuple(jobs),
            self.ties,
            tuple(self.findings.dropped),
            self.recipe.seed or 0,
            tuple(dict.fromkeys(self.findings.notes)),
            template,
        )

    def _close(self) -> None:
        for item in (*self.inputs, *self.artefacts, *filter(None, [self.file_donor])):
            item.close()

    # Names

    def _ties(self) -> dict[str, str]:
        """Other name → name of the output, for tensors that are tied in every model that has both names."""
        ties: dict[str, str] = {}
        for item in self.inputs:
            for alias, name in item.ties.items():
                if alias in ties or alias in ties.values() or name in ties:
                    continue
                pairs = [(other.stored(alias), other.stored(name)) for other in self.inputs]
                if all(one is None or two is None or one == two for one, two in pairs):
                    ties[alias] = name
        return ties

    def _names(self) -> list[str]:
        """Every tensor of every model once: the donor's in its order, then what only others have."""
        names = dict.fromkeys(self.inputs[self.donor].specs)
        for item in self.inputs:
            names |= dict.fromkeys(item.specs)
        for item in self.inputs:
            names |= dict.fromkeys(item.ties)
        return [name for name in names if name not in self.ties]

    def _has(self, name: str) -> _Holders:
        """The inputs that have a tensor, and its name there: a model may store a tied tensor under the other name."""
        aliases = [name, *(alias for alias, kept in self.ties.items() if kept == name)]
        found = []
        for number, item in enumerate(self.inputs):
            stored = next(filter(None, map(item.stored, aliases)), None) or item.implied.get(name)
            if stored is not None:
                found.append((number, stored))
        return found

    def _specs(self, has: _Holders) -> list[Spec]:
        return [self.inputs[number].specs[stored] for number, stored in has]

    def _largest(self, name: str) -> int:
        """The entries of a tensor, of the largest where models differ."""
        return max(spec.numel for spec in self._specs(self._has(name)))

    def _dtypes(self, has: _Holders) -> list[str]:
        """The dtypes that tensors are stored with, which the output has where the recipe names none."""
        inputs = [(self.inputs[number], stored) for number, stored in has]
        return [item.rounds.get(stored, item.specs[stored].dtype) for item, stored in inputs]

    # Jobs

    def _job(self, name: str) -> Job | None:
        has = self._has(name)
        specs = self._specs(has)
        fp8 = [k for k, spec in enumerate(specs) if dtypes.BY_NAME[spec.dtype].kind == "fp8"]
        if fp8:
            self.refused.setdefault((self._label(has[fp8[0]]), specs[fp8[0]].dtype), []).append(name)
            return None
        if rule := self._rule(name):
            return self._taken(name, has, specs, f"left out by the rule {rule!r}")
        floats = [dtypes.is_float(spec.dtype) for spec in specs]
        if any(floats) and not all(floats):
            pairs = ", ".join(f"{self._label(pair)}: {spec.dtype}" for pair, spec in zip(has, specs, strict=True))
            self.findings.say("P310", f"is a float in some models only ({pairs})", where=name)
            return None
        if not floats[0]:
            return self._copied_buffer(name, has, specs)
        if len(has) < len(self.inputs):
            return self._partly_missing(name, has, specs)
        if len({spec.shape for spec in specs}) > 1:
            self._shapes_differ(name, has, specs)
            return None
        out = Spec(self.out_dtype or dtypes.promote(self._dtypes(has)), specs[0].shape)
        beside = self.measured(name, has, out.shape)
        bound = self.measured.bound(self.parameters.bind(name))
        if "solve" in bound and beside.layer is None:
            bound["solve"] = False
        post = self.posts.bind(name)
        return Job(name, out, "merge", tuple(has), bound, beside.reason, post, beside.reads, beside.layer)

    def _rule(self, name: str) -> str | None:
        """The filter of `leave_out` that a tensor matches."""
        return next((pattern for pattern, matches in self.left_out if matches(name)), None)

    def _copied_buffer(self, name: str, has: _Holders, specs: list[Spec]) -> Job | None:
        """Integers and booleans: never averaged. Equal everywhere, or taken from where the recipe says."""
        for pair, spec in zip(has, specs, strict=True):
            if pair[0] == self.giver:
                self._drop(has, pair, f"buffers_from is {self._label(pair)}")
                return Job(name, spec, "copy", (pair,), reason="buffers_from")
        if len(set(specs)) > 1:
            self._shapes_differ(name, has, specs)
            return None
        donor_first = sorted(has, key=lambda pair: pair[0] != self.donor)
        lacking = self._lacking(has)
        reason = f"{specs[0].dtype} buffer" + (f", not in {listed(lacking)}" if lacking else "")
        return Job(name, specs[0], "copy", tuple(donor_first), reason=reason)

    def _partly_missing(self, name: str, has: _Holders, specs: list[Spec]) -> Job | None:
        if self.recipe.missing != "copy":
            present = tuple(number for number, _ in has)
            absent = tuple(number for number in range(len(self.inputs)) if number not in present)
            self.missing.setdefault((absent, present), []).append(name)
            return None
        return self._taken(name, has, specs, f"not in {listed(self._lacking(has))}")

    def _taken(self, name: str, has: _Holders, specs: list[Spec], why: str) -> Job:
        """The copy of the donor's tensor, or of the first model's that has it; the others are dropped."""
        chosen, spec = min(zip(has, specs, strict=True), key=lambda pair: (pair[0][0] != self.donor, pair[0][0]))
        self._drop(has, chosen, why)
        dtype = self.out_dtype if self.out_dtype and dtypes.is_float(spec.dtype) else self._dtypes([chosen])[0]
        reason = f"{why}; taken from {self._label(chosen)}"
        return Job(name, Spec(dtype, spec.shape), "copy", (chosen,), reason=reason)

    def _drop(self, has: _Holders, chosen: tuple[int, str], why: str) -> None:
        self.findings.dropped += [(self._label(pair), pair[1], why) for pair in has if pair != chosen]

    def _label(self, pair: tuple[int, str]) -> str:
        return self.inputs[pair[0]].label

    def _lacking(self, has: _Holders) -> list[str]:
        present = {number for number, _ in has}
        return [item.label for number, item in enumerate(self.inputs) if number not in present]

    # Problems

    def _shapes_differ(self, name: str, has: _Holders, specs: list[Spec]) -> None:
        pairs = zip(has, specs, strict=True)
        shown = ", ".join(f"{self._label(pair)}: {spec.dtype} {list(spec.shape)}" for pair, spec in pairs)
        hint = "say whose to take with `buffers_from: MODEL` or `buffers_from: base`"
        if dtypes.is_float(specs[0].dtype):
            hint = why_shapes_differ(name, specs)
        self.findings.say("P301", f"differs between the models ({shown})", hint, name)

    def _report_groups(self) -> None:
        gone = sum(self._largest(name) for names in self.missing.values() for name in names)
        for (absent, present), names in self.missing.items():
            lacking, having = ([self.inputs[number] for number in numbers] for numbers in (absent, present))
            hint = why_missing(names, lacking, having[0], gone / (sum(map(self._largest, self.names)) or 1))
            where = names[0] if len(names) == 1 else ""
            verb, told = ("is", "") if where else ("are", f"{listed(names)} ")
            without, others = (listed([item.label for item in items]) for items in (lacking, having))
            self.findings.say("P302", f"{told}{verb} missing from {without} but {verb} in {others}", hint, where)
        for (label, dtype), names in self.refused.items():
            verb = "is" if len(names) == 1 else "are"
            hint = "convert the checkpoint to bfloat16 first"
            self.findings.say("P307", f"{listed(names)} {verb} {dtype} in {label}", hint)

    def _check_layers(self) -> None:
        if self.recipe.layer_range is None:
            return
        first, last = self.recipe.layer_range
        layers = max(self.depths.layers.values(), default=0)
        if (first, last) != (0, layers):
            message = f"layer_range [{first}, {last}] does not cover the model's {several(layers, 'layer')}"
            hint = f"write [0, {layers}]; stacking layers is not supported yet"
            self.findings.say("P309", message, hint, "slices[0].sources[0].layer_range")

    def _tokenizer(self) -> tuple[PlanInput | None, str | None]:
        """The input that the recipe names for its tokenizer, and the chat template; None each to leave them alone."""
        wanted = self.recipe.tokenizer_source
        number = None if wanted == UNION else self._input_named(wanted, place_of_source(self.recipe))
        tokenizer = None if number is None else self.inputs[number]
        donor = self.file_donor or self.inputs[self.donor]
        listed_first = sorted(self.inputs, key=lambda item: -1 if item.place is None else item.place)
        models = [donor, *(item for item in listed_first if item is not donor)]
        try:
            note_configs(models, self.findings)
            if wanted is None:
                note_numbers(models, donor, self.numberings, self.findings)
            else:
                check_numbers(self.recipe, models, tokenizer or donor, self.numberings, self.findings)
            return tokenizer, chat_template(self.recipe, models, tokenizer or donor, self.findings)
        except CheckpointError:
            self._close()
            raise

    def _input_named(self, wanted: str | None, key: str) -> int | None:
        """The input that a key of the recipe names; None, and a problem, if it is not merged."""
        if wanted is None:
            return None
        for number, entry in enumerate(self.entries):
            written = self.recipe.base if entry is None else entry.model
            if self.inputs[number].role == "base" if wanted == "base" else same_model(wanted, label_of(written)):
                return number
        if key != "buffers_from" and self.file_donor and self._is_base(wanted):
            return None  # where it comes from anyway
        hint = "list it under `models`, or name one of the models"
        self.findings.say("P311", f"{wanted!r} is not merged by {self.method.name}", hint, key)
        return None

    def _is_base(self, wanted: str) -> bool:
        base = self.recipe.base
        return wanted == BASE or (base is not None and same_model(wanted, label_of(base)))

    # What the user should know

    def _tell_of_inputs(self) -> None:
        """Hands on what nested plans say, and the stored tensors that nothing reads."""
        for item in self.inputs:
            if shard := one_of_shards(item.label):
                self.findings.notes.append(f"{shard}; what the others hold is not merged")
            for name, why in item.ignored.items():
                self.findings.dropped.append((item.label, name, why))
                self.findings.notes.append(f"{item.label}: the stored {name} is not merged: {why}")
            if item.plan is not None:
                self.findings.notes += [f"{item.label}: {note}" for note in item.plan.notes]
                self.findings.dropped += [(f"{item.label}: {at}", name, why) for at, name, why in item.plan.dropped]
