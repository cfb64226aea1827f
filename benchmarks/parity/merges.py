"""Whole merges of pico llamas, the same recipe through `eutectic merge` and `mergekit-yaml`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import make_checkpoints
from measure import our_command
from peer import Peer
from safetensors.torch import load_file
from torch import Tensor

TOLERANCE = 1e-6
# 1/cos(Ω/2) - 1 at a cosine of 0.9995, where mergekit stops to interpolate on the sphere.
SLERP_TOLERANCE = 1.3e-4
# Without a layer number; mergekit takes the gradient's first value for them, Eutectic the last.
BEHIND_THE_LAYERS = ("model.norm.weight", "lm_head.weight")


@dataclass(frozen=True)
class Recipe:
    """A recipe for both. `gradients` says that it gives the tensors behind the last layer a gradient's value."""

    title: str
    content: Mapping[str, Any]
    gradients: bool = False
    tolerance: float = TOLERANCE


@dataclass
class Comparison:
    """How far two merges are apart, all relative to the largest value of a tensor.

    Attributes:
        tensors: how many must agree.
        same: largest difference of those.
        identical: how many of those are equal bit by bit.
        behind: largest difference of the tensors behind the layers, where those get a gradient's value.
        behind_at_end: the same, against mergekit with every gradient replaced by its last value.
        faults: names that disagree and should not.
    """

    recipe: Recipe
    tensors: int
    same: float = 0.0
    identical: int = 0
    behind: float | None = None
    behind_at_end: float | None = None
    faults: list[str] = field(default_factory=list)


def model(name: str, **parameters: Any) -> dict[str, Any]:
    """An entry of `models`; the name stands for a folder."""
    return {"model": name, "parameters": parameters}


def recipes() -> list[Recipe]:
    """Gradients, filters, normalisation and their mixtures, as model cards have them."""
    common = {"base_model": "base", "dtype": "float32"}
    bent = [
        model("tuned-1", density=[1, 0.7, 0.1], weight=1.0),
        model("tuned-2", density=0.5, weight=[0.2, 0.3, 0.7, 1]),
        model("tuned-3", density=0.33, weight=[{"filter": "mlp", "value": 0.5}, {"value": 0}]),
    ]
    turns = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ]
    signed = [model("tuned-1", weight=0.6), model("tuned-2", weight=-0.3), model("tuned-3", weight=0.4)]
    kept = [model("tuned-1", weight=[0.1, 0.9], density=1.0), model("tuned-2", weight=0.5, density=1.0)]
    faded = [model("tuned-1", weight=[0.2, 0.8]), model("tuned-2", weight=0.5)]
    parts = [model("tuned-1", weight=[{"filter": "q_proj", "value": 1}, {"value": 0.2}]), model("tuned-2", weight=0.5)]
    shared = {"normalize": True, "int8_mask": True}
    return [
        Recipe("linear, filters, not normalised", _linear(parts, normalize=False)),
        Recipe("linear, gradient", _linear(faded), gradients=True),
        Recipe(
            "slerp, gradients in filters",
            {**common, "merge_method": "slerp", "models": [{"model": "base"}, {"model": "tuned-1"}]}
            | {"parameters": {"t": turns}},
            tolerance=SLERP_TOLERANCE,
        ),
        Recipe(
            "task_arithmetic, a negative weight, λ 0.7",
            {**common, "merge_method": "task_arithmetic", "models": signed, "parameters": {"lambda": 0.7}},
        ),
        Recipe(
            "ties, gradients, filters, normalised",
            {**common, "merge_method": "ties", "models": bent, "parameters": shared},
            gradients=True,
        ),
        Recipe(
            "dare_linear, density 1, gradient",
            {**common, "merge_method": "dare_linear", "models": kept},
            gradients=True,
        ),
    ]


def _linear(models: list[dict[str, Any]], **parameters: Any) -> dict[str, Any]:
    return {"merge_method": "linear", "dtype": "float32", "models": models, "parameters": parameters}


def at_end(value: Any) -> Any:
    """A recipe with every gradient replaced by its last value."""
    if isinstance(value, Mapping):
        return {key: at_end(part) for key, part in value.items()}
    if isinstance(value, list):
        numbers = all(isinstance(part, int | float) for part in value)
        return value[-1] if numbers and value else [at_end(part) for part in value]
    return value


def placed(value: Any, folders: Mapping[str, Path]) -> Any:
    """A recipe with every model's name replaced by its folder."""
    if isinstance(value, Mapping):
        return {key: placed(part, folders) for key, part in value.items()}
    if isinstance(value, list):
        return [placed(part, folders) for part in value]
    return str(folders[value]) if isinstance(value, str) and value in folders else value


@dataclass
class Kitchen:
    """Where merges are made: the models' folders, a scratch folder, and the peer."""

    folders: Mapping[str, Path]
    scratch: Path
    peer: Peer
    made: int = 0

    def run(self, content: Mapping[str, Any], *, ours: bool) -> dict[str, Tensor]:
        """Merges and reads the result. Raises `SystemExit` with the program's words if it fails."""
        self.made += 1
        recipe, out = self.scratch / f"{self.made}.yaml", self.scratch / f"{self.made}"
        # JSON is YAML.
        recipe.write_text(json.dumps(placed(content, self.folders), indent=2))
        command = [our_command(), "merge", str(recipe), str(out), "--quiet"] if ours else self.peer.merge(recipe, out)
        done = subprocess.run(
            command, env=self.peer.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}")
        tensors: dict[str, Tensor] = {}
        for file in sorted(out.glob("*.safetensors")):
            tensors |= load_file(file)
        return tensors


def gap(mine: Tensor, other: Tensor) -> float:
    """The largest difference relative to the largest value."""
    return float((mine.double() - other.double()).abs().max() / other.double().abs().max())


def one(recipe: Recipe, kitchen: Kitchen) -> Comparison:
    """One recipe through both, and through mergekit at the gradients' ends for what stands behind the layers."""
    mine, other = kitchen.run(recipe.content, ours=True), kitchen.run(recipe.content, ours=False)
    apart = BEHIND_THE_LAYERS if recipe.gradients else ()
    found = Comparison(recipe, len(other.keys() - set(apart)))
    if mine.keys() != other.keys():
        found.faults = sorted(mine.keys() ^ other.keys())
        return found
    for name in other.keys() - set(apart):
        found.same = max(found.same, gap(mine[name], other[name]))
        found.identical += bool(mine[name].equal(other[name]))
        if gap(mine[name], other[name]) > recipe.tolerance:
            found.faults.append(name)
    if apart:
        end = kitchen.run(at_end(recipe.content), ours=False)
        found.behind = max(gap(mine[name], other[name]) for name in apart)
        found.behind_at_end = max(gap(mine[name], end[name]) for name in apart)
        found.faults += [name for name in apart if gap(mine[name], end[name]) > recipe.tolerance]
    return found


def compare(peer: Peer, scratch: Path) -> list[Comparison]:
    """Every recipe through both commands."""
    folders = {folder.name: folder for folder in make_checkpoints.make(scratch, "pico")}
    kitchen = Kitchen(folders, scratch, peer)
    return [one(recipe, kitchen) for recipe in recipes()]
