"""Which family a model is of, its table, and when there is none: which is nearest, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from eutectic.alignment.families import chain, decoders, encoders, gpt, resnet, vision
from eutectic.alignment.families.reading import Model
from eutectic.alignment.families.rules import Layout, table_of
from eutectic.checkpoint.source import Spec
from eutectic.checkpoint.symmetry import Axis, Symmetries
from eutectic.errors import Problem, did_you_mean

CHAIN = "layers in a row"
# By what config.json calls `model_type`, and the names that have none.
FAMILIES: dict[str, Callable[[Model, str], Layout]] = {
    **dict.fromkeys(decoders.TYPES, decoders.decoder),
    **dict.fromkeys(gpt.TYPES, gpt.gpt),
    **dict.fromkeys(encoders.TYPES, encoders.encoder),
    **dict.fromkeys(vision.TYPES, vision.vision),
    "resnet": resnet.resnet,
    CHAIN: chain.chain,
}


@dataclass(frozen=True)
class Attempt:
    """What came of declaring a model.

    Attributes:
        family: the one it is of, or that which its tensors' names are nearest to; empty when none is near.
        symmetries: the table; None when there is none that fits.
        problems: why not.
        stated: whether config.json says which family it is, rather than names and shapes alone.
    """

    family: str = ""
    symmetries: Symmetries | None = None
    problems: list[Problem] = field(default_factory=list)
    stated: bool = False


def declared(
    specs: Mapping[str, Spec], config: Mapping[str, Any] | None = None, *, tied: Mapping[str, str] | None = None
) -> Symmetries | None:
    """The symmetries that are declared for a model's family.

    Args:
        specs: its tensors.
        config: what its config.json says. Without, only networks whose names and shapes tell all are known: layers in a
            row (MLP, VGG) and ResNets.
        tied: other name → tensor, as `Source.ties` has them.

    Returns None when no family fits every tensor.
    """
    return attempt(specs, config, tied=tied).symmetries


def attempt(
    specs: Mapping[str, Spec], config: Mapping[str, Any] | None = None, *, tied: Mapping[str, str] | None = None
) -> Attempt:
    """As `declared`, with what does not fit."""
    tied = tied or {}
    model = Model({**specs, **{other: specs[name] for other, name in tied.items()}}, config or {})
    family = _family(model)
    if not family:
        return _nearest(model)
    whole, problems = table_of(model.specs, FAMILIES[family](model, family))
    problems = model.problems or [*problems, *_torn(whole, tied)]
    stored = {name: axes for name, axes in whole.axes.items() if name not in tied}
    table = None if problems else replace(whole, axes=stored)
    return Attempt(family, table, problems, stated=model.says("model_type") == family)


def _torn(symmetries: Symmetries, tied: Mapping[str, str]) -> Iterator[Problem]:
    """Tensors of two names whose rules move them in two ways: the head may read what the embedding makes, no more."""
    axes = symmetries.axes
    for other, name in tied.items():
        if other not in axes or name not in axes:
            continue
        if [_moves(symmetries, parts) for parts in axes[other]] != [_moves(symmetries, parts) for parts in axes[name]]:
            yield Problem("G163", f"is the same tensor as {name!r}, and moves in another way", other)


def _moves(symmetries: Symmetries, parts: Axis) -> list[tuple[object, ...]]:
    """Parts without their roles where these make no difference: units of no scale, or a sign made or read."""
    found: list[tuple[object, ...]] = []
    for part in parts:
        scales = {symmetries.groups[factor.group].scale for factor in part.factors if factor.group}
        gauged = any(factor.gauge for factor in part.factors)
        signs = scales <= {"", "sign"} and part.role != "order"
        found.append((part.factors, None if not gauged and (signs or scales <= {""}) else part.role))
    return found


def _family(model: Model) -> str:
    """What config.json says the model is, or what names alone tell."""
    stated = model.says("model_type")
    if isinstance(stated, str) and stated in FAMILIES:
        return stated
    if resnet.is_resnet(model):
        return "resnet"
    by_names = next((kind for kind, (_, _, mark) in vision.TYPES.items() if mark in model.specs), "")
    return by_names or (CHAIN if chain.is_chain(model) else "")


def _nearest(model: Model) -> Attempt:
    """The family with rules for most tensors, and those that it has none for."""
    stated = model.says("model_type")
    found: list[tuple[int, str, list[str]]] = []
    for family in FAMILIES.keys() - {CHAIN}:
        layout = FAMILIES[family](Model(model.specs, model.config), family)
        strange = [name for name, spec in model.specs.items() if not layout.every(name, spec.shape)]
        found.append((len(strange), family, strange))
    few, family, strange = min(found, key=lambda one: one[:2])
    if few > len(model.specs) / 2:
        family, strange = "", []
    message = f"says model_type {stated!r}, which is not declared" if stated else "no model_type is given"
    hint = did_you_mean(str(stated or ""), FAMILIES) or f"declared are {', '.join(sorted(FAMILIES))}"
    problems = [Problem("G161", message, "config.json", hint)]
    problems += [Problem("G162", f"no tensor of {family} is called this", name) for name in strange]
    return Attempt(family, None, problems)
