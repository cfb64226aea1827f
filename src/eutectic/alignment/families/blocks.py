"""What the blocks of networks have in common: axes of attention, modules with a bias, norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from eutectic.checkpoint.symmetry import Axis, Factor, Gauge, Group, Role, axis

# What every attention has; gains are of norms over all heads at once.
ATTENTION = ("query", "key", "value", "out")
AXES_OF_ATTENTION = (*ATTENTION, "querygain", "keygain")


@dataclass(frozen=True, slots=True)
class Attention:
    """The sizes of an attention layer, and which bases of its vectors may be changed.

    Attributes:
        heads: of queries.
        groups: heads of keys and values; as many queries as heads / groups share one.
        size: of a head's vectors.
        keys: the gauge between queries and keys: `rotary` where rotary embeddings turn the planes of coordinates i and
            i + size/2, `linear` where nothing stands between, None where a norm or other rotations do.
        values: the gauge between values and output: `linear`, or None where something stands between.
    """

    heads: int
    groups: int
    size: int
    keys: Literal["linear", "rotary"] | None
    values: Literal["linear"] | None = "linear"

    def declared(self, layer: str) -> tuple[dict[str, Group], dict[str, Gauge], dict[str, Axis]]:
        """The groups and gauges of one layer, and its axes by name: rows, for `out` columns, for gains places.

        Queries read the gauge of the keys: k ← Mk and q ← M⁻ᵀq leave qᵀk as it is.
        """
        shared = f"{layer}heads"
        queries = shared if self.heads == self.groups else f"{layer}queries"
        groups = {shared: Group(self.groups)}
        if queries != shared:
            groups[queries] = Group(self.heads, within=shared)
        kinds = {f"{layer}keys": self.keys, f"{layer}values": self.values}
        gauges = {name: Gauge(shared, self.size, kind) for name, kind in kinds.items() if kind}

        def vectors(gauge: str, role: Role, *, of_queries: bool) -> Axis:
            heads = Factor(self.heads, queries) if of_queries else Factor(self.groups, shared)
            return axis(heads, Factor(self.size, gauge=gauge if gauge in gauges else None), role=role)

        axes = {
            "query": vectors(f"{layer}keys", "in", of_queries=True),
            "key": vectors(f"{layer}keys", "out", of_queries=False),
            "value": vectors(f"{layer}values", "out", of_queries=False),
            "out": vectors(f"{layer}values", "in", of_queries=True),
            "querygain": vectors("", "order", of_queries=True),
            "keygain": vectors("", "order", of_queries=False),
        }
        return groups, gauges, axes


def modules(rules: Mapping[str, str]) -> dict[str, str]:
    """Rules for modules as rules for tensors: the weight as it says, the bias as the weight's first axis."""
    made: dict[str, str] = {}
    for module, axes in rules.items():
        made |= {f"{module}.weight": axes, f"{module}.bias": axes.split()[0]}
    return made


def normed(module: str, units: str) -> dict[str, str]:
    """Rules of a norm over channels: gain and bias make its units, the statistics of a batch norm follow them."""
    statistics = {f"{module}.running_mean": f"={units}", f"{module}.running_var": f"={units}"}
    return {**modules({module: units}), **statistics, f"{module}.num_batches_tracked": ""}
