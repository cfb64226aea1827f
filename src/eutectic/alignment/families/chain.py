"""One layer behind the other, told by names and shapes alone: MLPs, LeNet, VGG, with norms of any kind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from eutectic.alignment.families.blocks import normed
from eutectic.alignment.families.reading import Model
from eutectic.alignment.families.rules import Layout

# What the last layer is called when its name has no number.
_LAST = re.compile(r"(?:.*[._])?(?:out|output|head|last|final|classifier|fc|linear)")


@dataclass(frozen=True, slots=True)
class _Module:
    """A module with a weight: its name, the weight's shape, and its name apart as text and number."""

    name: str
    shape: tuple[int, ...]
    stem: str
    number: int | None

    @property
    def order(self) -> tuple[bool, bool, int]:
        """Convolutions before matrices, numbers before what has none."""
        return len(self.shape) == 2, self.number is None, self.number or 0


def _modules(model: Model) -> Iterator[_Module]:
    for name, spec in model.specs.items():
        if name.endswith(".weight"):
            module = name.removesuffix(".weight")
            stem = module.rstrip("0123456789")
            yield _Module(module, spec.shape, stem, int(module[len(stem) :]) if stem != module else None)


def is_chain(model: Model) -> bool:
    """Whether names say in which order the layers come: numbers under one name for each kind, and a last one.

    `0 2 4`, `fc1 fc2 fc3`, `features.0 … classifier.6`, `conv1 conv2 fc1 fc2 out`. A skip that names do not show is not
    seen: `align --check` proves what is declared.
    """
    weights = [one for one in _modules(model) if len(one.shape) > 1]
    numbered = {(len(one.shape) == 2, one.stem) for one in weights if one.number is not None}
    others = [one for one in weights if one.number is None]
    alone = len({kind for kind, _ in numbered}) == len(numbered)
    last = all(len(one.shape) == 2 and _LAST.fullmatch(one.name) for one in others) and len(others) <= 1
    return bool(numbered) and alone and last


def chain(model: Model, kind: str) -> Layout:
    """The layout of such a model; its units are named after the layers that make them.

    Norms belong to the layer before them, or to that of the same number. One of a convolution without statistics is
    over `num_groups` groups of channels, of which config.json must tell; one of a matrix is taken for a layer norm.
    """
    modules = list(_modules(model))
    layers = sorted((one for one in modules if len(one.shape) > 1), key=lambda one: one.order)
    rules: dict[str, str] = {}
    norms = {one.name: _normalised(one, layers) for one in modules if len(one.shape) == 1}
    for place, layer in enumerate(layers):
        units = layer.name if place + 1 < len(layers) else "-"
        if units != "-" and layer in norms.values():
            units = f"={units}"
        read = "-"
        if place:
            before = layers[place - 1]
            # Behind a flatten a channel has an entry for each place.
            read = f"<{before.name}" + ("*" if len(layer.shape) == 2 < len(before.shape) else "")
        rules[f"{layer.name}.weight"] = " ".join([units, read, *["-"] * (len(layer.shape) - 2)])
        rules[f"{layer.name}.bias"] = units
    parts = {}
    for name, of in norms.items():
        rules |= normed(name, "-" if of is None or of is layers[-1] else of.name)
        if of is not None and len(of.shape) > 2 and f"{name}.running_mean" not in model.specs:
            parts[of.name] = model.number("num_groups")
    return Layout(kind, rules, scales=dict.fromkeys((one.name for one in layers), model.behind_relu()), parts=parts)


def _normalised(norm: _Module, layers: list[_Module]) -> _Module | None:
    """The layer whose output a norm is of; None for one of the input."""
    same = [one for one in layers if one.stem == norm.stem]
    if same:
        before = [one for one in same if (one.number or 0) < (norm.number or 0)]
        return max(before, key=lambda one: one.number or 0, default=None)
    fitting = [one for one in layers if one.number == norm.number and one.shape[0] == norm.shape[0]]
    return fitting[0] if fitting else None
