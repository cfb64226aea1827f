"""Tensor names: patterns that select them, and the layer a name belongs to. No tensor, no file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

_LAYER = re.compile(r"^(.*?)\.?(\d+)\.")
# What comes before the layers; everything else outside of them (final norm, head, pooler) comes after.
_BEFORE = re.compile(r"embed|\bwte\b|\bwpe\b|embd|\bstem\b|conv_in|rotary|patch", re.IGNORECASE)

# What a tensor does, told from its name; the first that fits. Norms come first: they stand inside everything else.
KINDS = {
    "norm": re.compile(r"norm|(^|[._])ln(_|\d|\.|$)|(^|[._])bn\d*\.", re.IGNORECASE),
    "head": re.compile(r"lm_head|embed_out|classifier|(^|\.)score\.|(^|\.)head\.|(^|\.)output\.weight$"),
    "embedding": re.compile(r"embed|\bwte\b|\bwpe\b|embd|patch", re.IGNORECASE),
    "attention": re.compile(r"attn|attention|[qkvo]_proj|\bqkv|\bquery\b|\bkey\b|\bvalue\b", re.IGNORECASE),
    "mlp": re.compile(r"mlp|ffn|feed_?forward|expert|\bfc\d|dense|intermediate|(gate|up|down)_proj|\bw[123]\b", re.I),
}
OTHER = "other"


def kind_of(name: str) -> str:
    """One of `KINDS`, or `OTHER`: what a tensor is in its model, by its name alone."""
    return next((kind for kind, pattern in KINDS.items() if pattern.search(name)), OTHER)


def numberless(name: str) -> str:
    """The name with `*` for every number: equal for the tensors of all layers that do the same."""
    return re.sub(r"\d+", "*", name)


def gathered(names: Iterable[str]) -> list[str]:
    """Names, those that differ in numbers only told of together: `layers.*.up.weight (32 tensors)`."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(numberless(name), []).append(name)
    return [counted(alike) for alike in found.values()]


def counted(alike: Sequence[str]) -> str:
    """One or more names that differ in numbers only, in words."""
    return alike[0] if len(alike) == 1 else f"{numberless(alike[0])} ({len(alike)} tensors)"


@lru_cache(maxsize=1024)
def matcher(pattern: str) -> Callable[[str], bool]:
    """A predicate on tensor names.

    `"*"` matches all, `"/regex/"` searches a regular expression, and anything else is a plain substring, as in
    mergekit. Raises `re.error` for a broken expression.
    """
    if pattern == "*":
        return lambda name: True
    if len(pattern) > 2 and pattern.startswith("/") and pattern.endswith("/"):
        compiled = re.compile(pattern[1:-1])
        return lambda name: compiled.search(name) is not None
    return lambda name: pattern in name


def layer_of(name: str) -> tuple[str, int] | None:
    """The stack a tensor belongs to and its number there: `model.layers.3.mlp.up.weight` → `("model.layers", 3)`."""
    found = _LAYER.match(name)
    return (found[1], int(found[2])) if found else None


@dataclass(frozen=True, slots=True)
class Depths:
    """Where each tensor stands between the first layer (0) and the last (1), for gradients over layers."""

    layers: dict[str, int]

    @classmethod
    def of(cls, names: Iterable[str]) -> Depths:
        """Counts the layers of every stack found in `names`."""
        layers: dict[str, int] = {}
        for name in names:
            if place := layer_of(name):
                layers[place[0]] = max(layers.get(place[0], 0), place[1] + 1)
        return cls(layers)

    def __call__(self, name: str) -> float:
        """0 for embeddings and the first layer, 1 for the last layer and whatever follows it; linear between."""
        place = layer_of(name)
        if place is None:
            return 0.0 if _BEFORE.search(name) else 1.0
        last = self.layers[place[0]] - 1
        return place[1] / last if last > 0 else 1.0
