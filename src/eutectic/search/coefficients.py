"""Learned coefficients: a recipe's weights follow the gradient of an objective through the live merge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from eutectic.errors import NumericError, Problem, RecipeError, did_you_mean, listed, several
from eutectic.evaluate import Settings
from eutectic.evaluate.loading import Kind
from eutectic.lazy import LazyModule
from eutectic.plan import Plan
from eutectic.recipe import Recipe
from eutectic.recipe.values import EVERYTHING, Entry, Setting
from eutectic.run.merged import MergedSource
from eutectic.run.refusals import sources_in
from eutectic.search.gradients import by_part, loss_gradient, mean_loss, places_of
from eutectic.search.ingredients import DIGITS, Weights
from eutectic.search.kept import KeptSteps
from eutectic.search.objectives import MEASURES
from eutectic.search.pullback import METHODS, Pullback
from eutectic.search.training_data import TrainingData

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

PARTS = ("task", "layer", "tensor")
# Steps from one look at the held-out data to the next; the paper's code looks as often.
EVERY = 10
# What task vectors begin at in the paper; where weights are normalised they begin equal.
PRIOR = 0.3


@dataclass(frozen=True, slots=True)
class LearnOptions:
    """What is learned, and how. Defaults are those of AdaMerging's code where it has them.

    Attributes:
        by: one weight for each model (`task`), for each model and `layer`, or for each model and `tensor`.
        objective: `entropy` of the outputs, without labels, or `cross-entropy`.
        steps: of Adam, at most (the paper's 500).
        lr: its rate (the paper's 0.001).
        init: what every weight begins at; None: the recipe's own weights, else 0.3 (the paper's), or one divided by the
            number of models where the method normalises.
        clamp: keep weights in [0, 1], as the paper's code does.
        held_out: share of the data that no gradient comes from and that the step is chosen by; 0: the last step is.
        patience: stop after so many looks at the held-out data without gain.
    """

    by: str = "task"
    objective: str = "entropy"
    steps: int = 500
    lr: float = 1e-3
    init: float | None = None
    clamp: bool = True
    held_out: float = 0.2
    patience: int = 10

    def __post_init__(self) -> None:
        """Raises `RecipeError` (S810) with everything that cannot be."""
        problems = []
        for name, value, known in (("by", self.by, PARTS), ("objective", self.objective, tuple(MEASURES))):
            if value not in known:
                message = f"must be one of {', '.join(known)}, not {value!r}"
                problems.append(Problem("S810", message, name, did_you_mean(str(value), known)))
        for name, count in (("steps", self.steps), ("patience", self.patience)):
            if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
                problems.append(Problem("S810", f"must be a whole number from 1 on, not {count!r}", name))
        if not _number(self.lr) or self.lr <= 0:
            problems.append(Problem("S810", f"must be a number above 0, not {self.lr!r}", "lr"))
        if not _number(self.held_out) or not 0 <= self.held_out < 1:
            problems.append(Problem("S810", f"must lie in [0, 1), not {self.held_out!r}", "held_out"))
        if self.init is not None and not _number(self.init):
            problems.append(Problem("S810", f"must be a number, not {self.init!r}", "init"))
        if problems:
            raise RecipeError(problems)


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class LearnStep:
    """The weights after so many steps.

    Attributes:
        number: of steps; 0 is the beginning.
        loss: the objective on the next step's batches, mean over the data sets; None after the last step.
        held_out: the objective on the held-out data, mean over the data sets; None between two looks.
        weights: by part one a model, in the recipe's order; None between two looks.
    """

    number: int
    loss: float | None
    held_out: float | None
    weights: Weights | None

    def as_json(self) -> dict[str, Any]:
        """The step as plain data: a line of the log."""
        weights = None if self.weights is None else {part: list(own) for part, own in self.weights.items()}
        return {"step": self.number, "loss": self.loss, "held_out": self.held_out, "weights": weights}


# Digest of a search -> the steps that it took, if it is the one that is finished.
Earlier = Callable[[str], Sequence[LearnStep]]


@dataclass(frozen=True)
class Learned:
    """Learned weights and how they came about.

    Attributes:
        options: what was asked for.
        data: names of the data sets.
        models: labels, in the recipe's order.
        weights: by part of the model (a filter, "" for all or the rest) one a model.
        recipe: the recipe with these weights: their merge is the one that was measured, bit for bit.
        steps: all of them, from the beginning.
        chosen: the number of the step whose weights these are.
        notes: what the user should know.
        resumed: how many steps a run that was stopped had taken.
        search: digest of the search, as the recipe's file says it; empty where models in memory make that unknown.
        already_complete: the recipe's file was there and is exactly what this search writes; nothing was learned.
    """

    options: LearnOptions
    data: tuple[str, ...]
    models: tuple[str, ...]
    weights: Weights
    recipe: Recipe
    steps: tuple[LearnStep, ...]
    chosen: int
    notes: tuple[str, ...] = ()
    resumed: int = 0
    search: str = ""
    already_complete: bool = False

    def __repr__(self) -> str:
        weights = f"weights of {several(len(self.models), 'model')} in {several(len(self.weights), 'part')}"
        return f"<Learned {weights}: step {self.chosen} of {self.steps[-1].number}; see .weights and .recipe>"

    @property
    def looks(self) -> list[LearnStep]:
        """The steps whose weights are known."""
        return [step for step in self.steps if step.weights is not None]

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "learn": self.options.by,
            "objective": self.options.objective,
            "data": list(self.data),
            "models": list(self.models),
            "weights": {part: list(own) for part, own in self.weights.items()},
            "recipe": self.recipe.to_dict(),
            "chosen": self.chosen,
            "steps": [step.as_json() for step in self.steps],
            "notes": list(self.notes),
            "resumed": self.resumed,
            "already_complete": self.already_complete,
        }


def refuse_recipe(recipe: Recipe, options: LearnOptions) -> None:
    """Raises `RecipeError` (S811, S810) with every reason why a recipe's weights cannot be learned."""
    problems = []
    if recipe.method not in METHODS:
        hint = f"learn with {', '.join(METHODS)}"
        problems.append(Problem("S811", f"{recipe.method} cannot be learned by gradient", "merge_method", hint))
    if recipe.post:
        steps = listed([step.name for step in recipe.post])
        hint = "learn without it, and add it to the recipe that comes out"
        problems.append(Problem("S811", f"the gradient does not go through {steps}", "post", hint))
    if recipe.scope != "tensor":
        message = "what is trimmed over the whole model cannot be learned from tensor by tensor"
        problems.append(Problem("S811", message, "parameters.scope", "leave out `scope: model`"))
    if _has_weights(recipe) and options.init is not None:
        message = "the recipe has weights to begin at, and init is another beginning"
        problems.append(Problem("S810", message, "init", "take the weights out of the recipe, or leave out init"))
    if options.clamp and options.init is not None and not 0 <= options.init <= 1:
        message = f"weights are kept in [0, 1], and {options.init:g} lies outside"
        problems.append(Problem("S810", message, "init", "turn clamp off"))
    if problems:
        raise RecipeError(problems)


def _has_weights(recipe: Recipe) -> bool:
    return "weight" in recipe.parameters or any("weight" in entry.parameters for entry in recipe.models)


def learn_weights(
    plan: Plan,
    parts: Mapping[str, Sequence[str]],
    data: Sequence[TrainingData],
    kind: Kind,
    options: LearnOptions,
    run: Settings,
    on_step: Callable[[LearnStep], None] | None = None,
    kept: KeptSteps | None = None,
    earlier: Earlier | None = None,
) -> Learned:
    """Adam on a recipe's weights.

    Args:
        plan: of the recipe, which `refuse_recipe` let pass.
        parts: the tensors of each part that has weights of its own.
        data: a batch of each goes into every step.
        kind: of the module that the data want.
        options: see `LearnOptions`.
        run: how to load and run the merges.
        on_step: called after each step, and with the beginning.
        kept: where steps are kept as they are taken, and those of a run that was stopped are found; opened.
        earlier: the steps of the same search if it is finished already, by its digest; raises for another.

    Yang and others, AdaMerging (arXiv:2310.02575), and its code. Differs from the paper: the step is chosen by
    data that are held out, and not the last; a batch of each data set goes into a step, where the code takes two;
    clamped weights stop at the bound and can come back, where the code's lose their gradient beyond it. Means over
    next-token distributions and over several data sets of language models are an extension, and so is cross-entropy.

    Raises `RecipeError` (S810) for a beginning that cannot be, `NumericError` (E908) for a loss that is not finite.
    """
    values = beginning(plan, parts, options)
    steps: list[LearnStep] = []
    kept = kept or KeptSteps()
    if kept.opened:
        kept.take([one.digest() for one in data], [source.stamp() for source in sources_in(plan)])
    if earlier is not None:
        steps += earlier(kept.search)
        return _learned(plan, data, options, steps, search=kept.search, already_complete=True)
    climb = _Descent(plan, parts, data, kind, options, run, values, kept)
    for step in climb:
        steps.append(step)
        if on_step:
            on_step(step)
    more: dict[str, Any] = {"notes": climb.notes, "resumed": len(kept.found), "search": kept.search}
    return _learned(plan, data, options, steps, **more)


def _learned(
    plan: Plan, data: Sequence[TrainingData], options: LearnOptions, steps: Sequence[LearnStep], **more: Any
) -> Learned:
    """What comes of all steps: the weights of the best, or of the last where nothing is held out."""
    looks = [step for step in steps if step.weights is not None]
    chosen = min(looks, key=lambda step: step.held_out) if options.held_out else looks[-1]  # type: ignore[arg-type, return-value]
    assert chosen.weights is not None
    labels = {item.place: item.label for item in plan.inputs if item.place is not None}
    return Learned(
        options,
        tuple(one.name for one in data),
        tuple(labels[place] for place in sorted(labels)),
        chosen.weights,
        with_weights(plan.recipe, chosen.weights),
        tuple(steps),
        chosen.number,
        **more,
    )


def beginning(plan: Plan, parts: Mapping[str, Sequence[str]], options: LearnOptions) -> torch.Tensor:
    """What the weights begin at, (parts, models of the recipe). Raises `RecipeError` (S810)."""
    places, problems = places_of(plan), []
    of = {job.name: job.parameters for job in plan.jobs if job.action == "merge"}
    values = torch.zeros((len(parts), len(places)), dtype=torch.float64)
    for row, (part, names) in enumerate(parts.items()):
        equal = 1 / len(places) if of[names[0]].get("normalize") else PRIOR
        values[row] = equal if options.init is None else options.init
        if _has_weights(plan.recipe):
            found = {tuple(of[name]["weight"]) for name in names}
            values[row, places] = torch.tensor(next(iter(found)), dtype=torch.float64)
            if len(found) > 1:
                message = f"the recipe's weights differ within {part or 'what has one weight a model'}"
                problems.append(Problem("S810", message, "by", "learn by layer or tensor, or begin at one weight each"))
    if options.clamp and not bool(((values >= 0) & (values <= 1)).all()):
        message = "the recipe's weights lie outside [0, 1], where weights are kept"
        problems.append(Problem("S810", message, "clamp", "turn clamp off"))
    if problems:
        raise RecipeError(problems)
    return values


def reweighted(plan: Plan, parts: Mapping[str, Sequence[str]], weights: Weights) -> Plan:
    """The plan with other weights: the plan of `with_weights` of its recipe, without reading that one."""
    places = places_of(plan)
    of = {name: [weights[part][place] for place in places] for part, names in parts.items() for name in names}
    jobs = (
        replace(job, parameters={**job.parameters, "weight": of[job.name]}) if job.name in of else job
        for job in plan.jobs
    )
    return replace(plan, jobs=tuple(jobs))


def with_weights(recipe: Recipe, weights: Weights) -> Recipe:
    """The recipe with a weight for each model, or one for each model and part."""
    entries = []
    for place, entry in enumerate(recipe.models):
        setting = Setting(tuple(Entry(part or EVERYTHING, (own[place],)) for part, own in weights.items()))
        entries.append(replace(entry, parameters={**entry.parameters, "weight": setting}))
    others = {name: setting for name, setting in recipe.parameters.items() if name != "weight"}
    return replace(recipe, models=tuple(entries), parameters=others)


class _Descent:
    """The steps, one after the other."""

    def __init__(
        self,
        plan: Plan,
        parts: Mapping[str, Sequence[str]],
        data: Sequence[TrainingData],
        kind: Kind,
        options: LearnOptions,
        run: Settings,
        values: torch.Tensor,
        kept: KeptSteps,
    ) -> None:
        self._kept = kept
        self._plan, self._parts, self._data, self._kind = plan, parts, data, kind
        self._options, self._run = options, run
        self._values = values.requires_grad_()
        self._adam = torch.optim.Adam([self._values], lr=options.lr)
        self._pullback = Pullback()
        self.notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[LearnStep]:
        options = self._options
        random = np.random.default_rng(self._run.seed)
        batches = [one.batches(random) for one in self._data]
        best, waited = math.inf, 0
        for number in range(options.steps + 1):
            last = number == options.steps
            weights = self._weights()
            merge = MergedSource(reweighted(self._plan, self._parts, weights), f"the merge of step {number}")
            look = last or number % EVERY == 0
            known = self._kept.found[number] if number < len(self._kept.found) else None
            held_out = None
            if look and options.held_out:
                held_out = self._held_out(merge) if known is None else known["held_out"]
            if held_out is not None:
                waited = 0 if held_out < best else waited + 1
                best = min(best, held_out)
                last = last or waited >= options.patience
            loss = None
            if not last:
                losses = [next(one) for one in batches]
                loss = self._moved(known or self._seen(merge, losses, number, held_out), number)
            yield LearnStep(number, loss, held_out, weights if look else None)
            if last:
                return

    def _weights(self) -> Weights:
        rows = self._values.detach().tolist()
        return {part: [round(one, DIGITS) for one in own] for part, own in zip(self._parts, rows, strict=True)}

    def _held_out(self, merge: MergedSource) -> float:
        found = [mean_loss(merge, one.held_out, self._kind, self._run, f"held-out {one.name}") for one in self._data]
        return math.fsum(found) / len(found)

    def _seen(self, merge: MergedSource, losses: Sequence[Any], number: int, held_out: float | None) -> dict[str, Any]:
        """What a step needs: the loss before it and the gradient; kept."""
        loss, gradient = loss_gradient(merge, losses, self._kind, self._run, f"step {number + 1}")
        by_tensor = self._pullback(merge, gradient)
        notes = _without_gradient(self._parts, by_tensor) if number == 0 else ()
        slope = by_part(self._plan, self._parts, by_tensor)
        if not bool(torch.isfinite(slope).all()):
            message = f"the gradient of step {number + 1} is not finite with {merge.label}"
            raise NumericError(Problem("E908", message, "learn", "a smaller lr, or look at the models"))
        found = {"loss": loss, "slope": slope.tolist(), "held_out": held_out, "notes": list(notes)}
        self._kept.keep(found)
        return found

    def _moved(self, seen: Mapping[str, Any], number: int) -> float:
        """Takes a step, and returns the loss before it."""
        if number == 0:
            self.notes = tuple(seen["notes"])
        self._values.grad = torch.tensor(seen["slope"], dtype=self._values.dtype)
        self._adam.step()
        if self._options.clamp:
            with torch.no_grad():
                self._values.clamp_(0.0, 1.0)
        loss: float = seen["loss"]
        return loss


def _without_gradient(parts: Mapping[str, Sequence[str]], found: Mapping[str, Any]) -> tuple[str, ...]:
    """Says which parts stay where they began, as nothing in them is a parameter of the module."""
    still = [names[0] for names in parts.values() if not found.keys() & set(names)]
    if not still:
        return ()
    return (f"{listed(still)}: no parameter, so no gradient; such weights stay where they began",)
