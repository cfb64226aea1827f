"""What a comparison finds out: structure, base, statistics, verdict. Plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from eutectic.adviser.sums import Sums
from eutectic.errors import listed, several

Answer = Literal["merge directly", "align first", "not mergeable"]


@dataclass(frozen=True, slots=True)
class Matched:
    """A floating tensor that every model has, with the same shape. `stored` is its name in each model's files."""

    name: str
    stored: tuple[str, ...]
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    numel: int


@dataclass(slots=True)
class Structure:
    """How the models are built.

    Attributes:
        matched: the floating tensors that can be compared.
        faults: what keeps the models from being merged as they are, alike tensors told of together.
        cautions: what differs and need not keep them.
        vocabulary: whether the tokenizers have the same tokens under the same numbers; None if that is not known.
    """

    matched: list[Matched] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    vocabulary: bool | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """The common base: its label, or None, whether it was given, and why it is this one or none."""

    label: str | None
    given: bool
    reason: str


@dataclass(frozen=True, order=True, slots=True)
class Place:
    """A cell of the tables: stack and layer (-1 outside of any), and what the tensors in it do."""

    stack: str
    layer: int
    kind: str

    @property
    def row(self) -> str:
        """The layer in words."""
        return "outside" if self.layer < 0 else f"{self.stack}.{self.layer}".lstrip(".")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, what it rests on, the methods that suit (name and why), and what to be careful about."""

    answer: Answer
    reasons: tuple[str, ...]
    methods: tuple[tuple[str, str], ...] = ()
    cautions: tuple[str, ...] = ()


@dataclass(slots=True)
class Comparison:
    """Several models side by side.

    Attributes:
        models: labels of the models, in the order given, without the base.
        base: the base, and how it was found.
        structure: how they are built.
        one_run: whether they are checkpoints of one training run, by their names.
        whole: sums over every tensor that was compared; None where none was.
        matrices: sums over tensors of two dimensions and more. Norms and biases, whose entries are large and
            hardly differ between any two models of one kind, would hide whether two models are related.
        cells: the same by layer and kind.
        untouched: model → names of the tensors in which it equals the base.
        broken: model → names of tensors with NaN, infinity or squares beyond float64; they are in no sum.
        verdict: in words.
    """

    models: tuple[str, ...]
    base: Base
    structure: Structure
    one_run: bool = False
    whole: Sums | None = None
    matrices: Sums | None = None
    cells: Mapping[Place, Sums] = field(default_factory=dict)
    untouched: Mapping[str, list[str]] = field(default_factory=dict)
    broken: Mapping[str, list[str]] = field(default_factory=dict)
    verdict: Verdict = Verdict("not mergeable", ())

    def __repr__(self) -> str:
        base = f" against {self.base.label}" if self.base.label is not None else ""
        tensors = several(len(self.structure.matched), "tensor")
        return f"<Comparison of {listed(self.models)}{base}: {self.verdict.answer}; {tensors}, see .verdict>"

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Every pair of models, by number."""
        return ((a, b) for b in range(len(self.models)) for a in range(b))

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        based = self.base.label is not None
        return {
            "models": list(self.models),
            "base": {"label": self.base.label, "given": self.base.given, "reason": self.base.reason},
            "one_run": self.one_run,
            "verdict": {
                "answer": self.verdict.answer,
                "reasons": list(self.verdict.reasons),
                "methods": [{"name": name, "why": why} for name, why in self.verdict.methods],
                "cautions": list(self.verdict.cautions),
            },
            "structure": {
                "tensors": len(self.structure.matched),
                "faults": list(self.structure.faults),
                "cautions": list(self.structure.cautions),
                "same_vocabulary": self.structure.vocabulary,
            },
            "whole": self.whole.as_json(base=based) if self.whole else None,
            "matrices": self.matrices.as_json(base=based) if self.matrices else None,
            "cells": [
                {"layer": place.row, "kind": place.kind, **sums.as_json(base=based)}
                for place, sums in self.cells.items()
            ],
            "untouched": dict(self.untouched),
            "broken": dict(self.broken),
        }
