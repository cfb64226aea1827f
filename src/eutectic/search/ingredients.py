"""The ingredients of a soup: opened once, mixed as live merges, and the recipe that a mixture leaves behind."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from eutectic import methods, recipe
from eutectic.averaging.checkpoints import expanded
from eutectic.checkpoint import Source
from eutectic.errors import Problem, RecipeError
from eutectic.names import layer_of
from eutectic.plan import Plan, make_plan
from eutectic.plan.inputs import Opener
from eutectic.plan.labels import labels_of
from eutectic.run.merged import MergedSource
from eutectic.search.running import RunningMean, RunningSum

# Of each part of the model (its pattern, "" for all that has none) one weight for each ingredient.
Weights = Mapping[str, Sequence[float]]
# Of a weight, so that the recipe can be read.
DIGITS = 6


class Pot:
    """Open checkpoints and their mixtures. Every mixture is the merge `linear`, with equal weights or given ones."""

    def __init__(
        self, checkpoints: Any, opener: Opener, *, out: str | os.PathLike[str] | None = None, dtype: str | None = None
    ) -> None:
        """Opens every checkpoint; reads no weight.

        Args:
            checkpoints: a list of paths, hub ids, patterns, modules and mappings of tensors, or one pattern.
            opener: opens one of them.
            out: the output folder, which patterns pass over.
            dtype: of every mixture; None for that of the checkpoints.

        Raises `RecipeError` (S801) for fewer than two, and the plan's problems for checkpoints that do not match.
        """
        self._opener, self._dtype = opener, dtype
        self.models = expanded(checkpoints, out)
        if len(self.models) < 2:
            message = f"a soup needs two checkpoints or more, not {len(self.models)}"
            raise RecipeError(Problem("S801", message, "checkpoints", "name others, or a pattern such as 'runs/*'"))
        self._opened: dict[Any, Source] = {}
        self._sum: tuple[tuple[int, ...], RunningSum] | None = None
        self._fits = False
        try:
            # All of them together: the problems of every checkpoint at once.
            self.plan = self._planned(self.recipe(range(len(self.models))))
        except BaseException:
            self.close()
            raise
        self.sources = [self._open(model, None) for model in self.models]
        self.labels = labels_of(self.sources)
        self._fits = RunningSum.fits(self.plan)

    def close(self) -> None:
        """Closes every checkpoint."""
        for source in self._opened.values():
            source.close()

    def recipe(self, chosen: Sequence[int], weights: Weights | None = None) -> dict[str, Any]:
        """The recipe of a mixture, its best ingredient first: that one gives config, tokenizer and integer buffers.

        Args:
            chosen: the numbers of the ingredients.
            weights: for each part of the model one a chosen ingredient; None for equal ones.
        """
        entries: list[Any] = [self.models[i] for i in chosen]
        first = entries[0]
        made: dict[str, Any] = {"merge_method": "linear"}
        # What is in memory has no name to be called by.
        made |= {"buffers_from": first} if isinstance(first, str) else {"base_model": first, "buffers_from": "base"}
        made["models"] = entries
        if weights is not None:
            made["models"] = [
                {"model": model, "parameters": {"weight": _setting({part: own[k] for part, own in weights.items()})}}
                for k, model in enumerate(entries)
            ]
        return made | ({"out_dtype": self._dtype} if self._dtype is not None else {})

    def alone(self, number: int) -> Source:
        """One ingredient as it is, or in the dtype of the mixtures."""
        if self._dtype is None:
            return self.sources[number]
        return MergedSource(self._planned(self.recipe([number])), self.labels[number])

    def mix(self, chosen: Sequence[int], weights: Weights | None = None) -> Source:
        """A mixture as a live merge. One that adds an ingredient to those that are `kept` reads that one alone."""
        if len(chosen) == 1 and weights is None:
            return self.alone(chosen[0])
        planned = self._planned(self.recipe(chosen, weights))
        label = f"a mixture of {len(chosen)}"
        if weights is None and self._sum is not None and self._sum[0] == tuple(chosen[:-1]):
            return RunningMean(planned, label, self._sum[1], self.sources[chosen[-1]])
        return MergedSource(planned, label)

    def keep(self, chosen: Sequence[int]) -> None:
        """Holds the sum of these ingredients, where there is memory for it: of those that were kept and new ones."""
        if not self._fits:
            return
        numbers = tuple(chosen)
        if self._sum is None or self._sum[0] != numbers[: len(self._sum[0])]:
            self._sum = ((), RunningSum(self.plan))
        held, total = self._sum
        for number in numbers[len(held) :]:
            total.add(self.plan, self.sources[number])
        self._sum = (numbers, total)

    def parts(self, by: str) -> dict[str, list[str]]:
        """The averaged tensors of each part that has weights of its own, by its pattern; the last is "", the rest.

        Raises `RecipeError` (S804) where no tensor has a layer number.
        """
        return parts_of(self.plan, by)

    def _planned(self, made: dict[str, Any]) -> Plan:
        return make_plan(recipe.load(made, methods=methods), self._open)

    def _open(self, model: Any, folder: str | None) -> Source:
        key = model if isinstance(model, str) else id(model)
        if key not in self._opened:
            self._opened[key] = self._opener(model, folder)
        return self._opened[key]


def parts_of(plan: Plan, by: str) -> dict[str, list[str]]:
    """The merged tensors of each part that has weights of its own, by its pattern; the last is "", the rest.

    `by` is `layer` or `tensor`; anything else makes one part of all. Raises `RecipeError` (S804) for `layer` where no
    tensor has a layer number.
    """
    found: dict[str, list[str]] = {}
    for job in plan.jobs:
        if job.action == "merge":
            found.setdefault(_part_of(job.name, by), []).append(job.name)
    if by == "layer" and found.keys() == {""}:
        raise RecipeError(Problem("S804", "no tensor has a layer number in its name", "by", "learn one for each model"))
    return {**{part: names for part, names in found.items() if part}, "": found.get("", [])}


def _part_of(name: str, by: str) -> str:
    """A filter that finds the layer of a tensor, or the tensor itself; "" for what has none of its own."""
    if by == "tensor":
        return f"/^{re.escape(name)}$/"
    place = layer_of(name) if by == "layer" else None
    if place is None:
        return ""
    stack, number = place
    start = next(text for text in (f"{stack}.{number}.", f"{stack}{number}.") if name.startswith(text.lstrip(".")))
    return f"/^{re.escape(start.lstrip('.'))}/"


def _setting(values: Mapping[str, float]) -> Any:
    """Weights by part as a recipe writes them."""
    if values.keys() == {""}:
        return values[""]
    return [{"filter": part, "value": value} if part else {"value": value} for part, value in values.items()]
