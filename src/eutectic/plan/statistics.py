"""The statistics beside the models: which tensor's go with which, and everything by which they do not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eutectic.checkpoint import About
from eutectic.errors import listed
from eutectic.kernels.layers import Layer
from eutectic.methods import GLOBAL, Method
from eutectic.plan.findings import Findings
from eutectic.plan.model import PlanInput

# (input number, name there), one a model.
Pairs = tuple[tuple[int, str], ...]

WORDS = {"fisher": "Fisher", "gram": "Gram matrix"}
_ANOTHER = "are these the statistics of this model? `eutectic collect` makes them"


@dataclass(frozen=True, slots=True)
class Beside:
    """What one tensor's job reads besides the models', how that goes together, and what becomes of the tensor."""

    reads: Pairs = ()
    layer: Layer | None = None
    reason: str = ""


class Measured:
    """The statistics of every model of a plan.

    Args:
        method: one that uses statistics; with any other, nothing is done.
        models, artefacts: inputs, one artefact a model. In the plan the artefacts come after the models.
        holders: name → (input number, name there) of every model that has the tensor.
        merged: name → whether the tensor is merged with its statistics, as far as the recipe says.
        places: where each artefact stands in the recipe.
        findings: takes the problems.
    """

    def __init__(
        self,
        method: Method,
        models: Sequence[PlanInput],
        artefacts: Sequence[PlanInput],
        *,
        holders: Callable[[str], Sequence[tuple[int, str]]],
        merged: Callable[[str], bool],
        places: Sequence[str],
        findings: Findings,
    ) -> None:
        self._models, self._artefacts = models, artefacts
        self._holders, self._merged, self._places, self._findings = holders, merged, places, findings
        self._word = WORDS.get(method.statistics, "")
        self._fates: dict[str, list[str]] = {}
        self._missing: dict[tuple[int, ...], list[str]] = {}
        self._used = False
        fits = [self._check(number, method.statistics) for number in range(len(artefacts))]
        self._sound = all(fits)
        self._weight_of = [{b: w for w, b in self._about(i).bias.items()} for i in range(len(artefacts))]

    def __call__(self, name: str, has: Sequence[tuple[int, str]], shape: Sequence[int]) -> Beside:
        """What the job of a tensor reads, and what becomes of it; problems go to the findings."""
        if not self._artefacts or not self._sound:
            return Beside()
        if self._about(0).kind == "fisher":
            found = self._fisher(name, has, shape)
        else:
            weights = {table.get(name, name) for table in self._weight_of}
            if len(weights) > 1:
                other = listed(sorted(weights - {name}))
                self._say(f"only some of the statistics have it as the bias of {other}", "collect them alike", name)
                return Beside()
            (weight,) = weights
            found = self._gram(name, weight, self._holders(weight) if weight != name else has)
        self._used = self._used or bool(found.reads)
        if found.reason and not found.reads:
            self._fates.setdefault(found.reason, []).append(name)
        return found

    def bound(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a tensor with the norms of the statistics in place of the word for them."""
        given = dict(parameters)
        if self._artefacts and GLOBAL in given.get("norm", ()):
            values = enumerate(given["norm"])
            given["norm"] = [self._norm(number) if value == GLOBAL else value for number, value in values]
        return given

    def report(self) -> None:
        """Notes what only shows once all tensors were asked for."""
        for absent, names in self._missing.items():
            lacking = listed([self._artefacts[number].label for number in absent])
            hint = "collect the statistics of all models alike"
            self._say(f"{lacking} {'have' if len(absent) > 1 else 'has'} no {self._word} of {listed(names)}", hint)
        if not self._artefacts or not self._sound or self._findings.problems:
            return
        if not self._used:
            self._say(f"no tensor that is merged has a {self._word}", _ANOTHER)
        for reason, names in self._fates.items():
            self._findings.notes.append(f"{reason} ({listed(names)})")

    # One kind after the other

    def _fisher(self, name: str, has: Sequence[tuple[int, str]], shape: Sequence[int]) -> Beside:
        found = [self._stored(number, (name, stored)) for number, stored in has]
        reads = self._complete(name, found)
        if reads is None:
            return Beside(reason=f"averaged: no {self._word}" if not any(found) else "")
        odd = [number for number, (i, stored) in enumerate(reads) if self._spec(i, stored).shape != tuple(shape)]
        for number in odd:
            self._misfit(name, number, self._spec(*reads[number]).shape, shape)
        return Beside(reads)

    def _gram(self, name: str, weight: str, has: Sequence[tuple[int, str]]) -> Beside:
        """Of a weight, or of a bias, which is solved with its weight."""
        if len(has) < len(self._models):
            return Beside()  # which is refused by itself
        if other := next((alias for item in self._models for alias in _tied(item, name)), None):
            # The inputs of the head say nothing of the rows of an embedding.
            return Beside(reason=f"averaged: tied with {other}")
        abouts = [self._about(number) for number in range(len(self._artefacts))]
        keys = [self._key(number, (weight, stored)) for number, stored in has]
        found = [about.shared.get(key, key) if key else None for about, key in zip(abouts, keys, strict=True)]
        reads = self._complete(name, found)
        if reads is None:
            return Beside(reason=f"averaged: no {self._word}" if not any(found) else "")
        layers = {_layer(about, key or weight) for about, key in zip(abouts, keys, strict=True)}
        biases = {about.bias.get(key or weight) for about, key in zip(abouts, keys, strict=True)}
        if len(layers) > 1 or len(biases) > 1:
            self._say("the statistics do not agree on how it is stored", "collect them alike", name)
            return Beside()
        return self._solved(name, weight, has, reads, layers.pop(), biases.pop())

    def _solved(
        self, name: str, weight: str, has: Sequence[tuple[int, str]], reads: Pairs, layer: Layer, bias: str | None
    ) -> Beside:
        shapes = [self._models[number].specs[stored].shape for number, stored in has]
        for number, shape in enumerate(shapes):
            gram = self._spec(*reads[number]).shape
            if not layer.fits(shape, gram):
                self._misfit(weight, number, gram, shape)
                return Beside()
        together = [one for one in (weight, bias) if one is not None]
        partner = next((one for one in together if one != name), None)
        beside: Pairs = ()
        if partner is not None:
            beside = tuple(self._holders(partner))
            if len(beside) < len(self._models):
                self._say(f"{partner}, which is solved with it, is not in every model", _ANOTHER, name)
                return Beside()
            lengths = {self._models[i].specs[stored].shape for i, stored in self._holders(str(bias))}
            if lengths != {(layer.outputs(shapes[0]),)}:
                message = f"is not as long as {weight} has outputs, whose bias the statistics call it"
                self._say(message, _ANOTHER, str(bias))
                return Beside()
        out = [one for one in together if not self._merged(one)]
        if out:
            return Beside(reason="averaged: `solve: false`" if name in out else f"averaged, as {out[0]} is not solved")
        blind = [i for i, (_, stored) in enumerate(reads) if self._about(i).counts.get(stored, 1) == 0]
        if len(blind) == len(reads):
            return Beside(reason="averaged: no model has seen an input of it")
        why = "solved" if partner is None else f"solved with {partner}"
        if blind:
            why += f"; {listed([self._models[i].label for i in blind])} saw no input of it"
        part = Layer(layer.transposed, layer.groups, layer.bias, "weight" if name == weight else "bias")
        return Beside((*reads, *beside), part, why)

    # Parts

    def _check(self, number: int, kind: str) -> bool:
        about, label = self._about(number), self._artefacts[number].label
        if about.kind != kind:
            self._say(
                f"{label} holds {about.kind} statistics, not {kind}", f"`eutectic collect {kind}` makes them", number
            )
            return False
        if about.samples == 0:
            self._say(f"{label} was measured on no samples", "collect the statistics again, with data", number)
        model = self._models[number]
        names = [*self._artefacts[number].specs, *about.shared, *about.bias, *about.bias.values()]
        strange = [name for name in dict.fromkeys(names) if model.stored(name) is None and name not in model.implied]
        if strange:
            self._say(f"{label} has {listed(strange)}, which {model.label} does not have", _ANOTHER, number)
        return True

    def _complete(self, name: str, found: Sequence[str | None]) -> Pairs | None:
        """The pairs if every artefact has the tensor."""
        reads = tuple((len(self._models) + i, stored) for i, stored in enumerate(found) if stored is not None)
        if len(reads) == len(found):
            return reads
        if reads:
            absent = tuple(number for number, stored in enumerate(found) if stored is None)
            self._missing.setdefault(absent, []).append(name)
        return None

    def _stored(self, number: int, names: Sequence[str]) -> str | None:
        return next((stored for name in names if (stored := self._artefacts[number].stored(name))), None)

    def _key(self, number: int, names: Sequence[str]) -> str | None:
        """The name by which an artefact knows a weight."""
        known = self._artefacts[number].specs.keys() | self._about(number).shared.keys()
        return next((name for name in names if name in known), None)

    def _about(self, number: int) -> About:
        about = self._artefacts[number].about
        assert about is not None
        return about

    def _spec(self, number: int, stored: str) -> Any:
        return self._artefacts[number - len(self._models)].specs[stored]

    def _norm(self, number: int) -> float:
        norm = self._about(number).norm if self._sound else 1.0
        if not norm:
            label = self._artefacts[number].label
            found = "is zero everywhere" if norm == 0 else "does not say its norm"
            self._say(f"{label} {found}, which `norm: {GLOBAL}` divides by", "give numbers under `norm`", number)
        return norm or 1.0

    def _misfit(self, name: str, number: int, found: Sequence[int], shape: Sequence[int]) -> None:
        label = self._artefacts[number].label
        message = f"the {self._word} {list(found)} in {label} does not fit the tensor {list(shape)}"
        self._say(message, _ANOTHER, name)

    def _say(self, message: str, hint: str, where: str | int = "") -> None:
        place = f"{self._places[where]}.statistics" if isinstance(where, int) else where
        self._findings.say("P314", message, hint, place)


def _tied(item: PlanInput, name: str) -> list[str]:
    """Other names of a tensor."""
    ties = {**item.implied, **item.ties}
    kept = ties.get(name, name)
    return [one for one in (*ties, kept) if one != name and ties.get(one, one) == kept]


def _layer(about: About, name: str) -> Layer:
    return Layer(name in about.transposed, about.groups.get(name, 1), name in about.bias)
