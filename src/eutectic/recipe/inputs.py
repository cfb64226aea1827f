"""The part of a recipe that lists its models: `models`, or mergekit's `slices` where they mean whole models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eutectic.errors import did_you_mean
from eutectic.recipe.located import Faults, Node, shown

_ENTRY_KEYS = ("model", "aligned", "statistics", "parameters")
_SOURCE_KEYS = ("model", "layer_range", "aligned", "statistics", "parameters")
_SLICE_KEYS = ("sources", "base_model", "parameters", "residual_weight")
MAX_MODELS = 1000
_STACKING = "layer stacking is not supported yet"
_BY_LAYER = r"{filter: '/layers\.[0-7]\./', value: 0.3}"


@dataclass(frozen=True)
class Inputs:
    """The entries as written (a mapping with `model`, or a bare model), and what a slice adds to the recipe.

    `complete` is False if an entry was lost to a problem, so that the models cannot be counted.
    """

    entries: tuple[Node, ...] = ()
    parameters: Node | None = None
    base: Node | None = None
    layer_range: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    complete: bool = False


def find_inputs(root: Node, faults: Faults) -> Inputs:
    """The models of the recipe at `root`; problems go to `faults`."""
    models, slices = root.get("models"), root.get("slices")
    if models is not None and slices is not None:
        faults.add("R107", slices.key_place, "a recipe has either models or slices, not both", "remove one")
        return Inputs()
    if slices is not None:
        return _slices(slices, faults)
    if models is not None:
        return _entries(models, _ENTRY_KEYS, faults)
    if root.get("modules") is None:
        faults.add("R111", root.place, "the recipe has no models", "list them under `models`, each as `- model: PATH`")
    return Inputs()


def _entries(node: Node, keys: tuple[str, ...], faults: Faults) -> Inputs:
    if not isinstance(node.data, list):
        faults.add("R112", node.place, f"must be a list of models, not {shown(node.data)}", "write `- model: PATH`")
        return Inputs()
    if len(node.data) > MAX_MODELS:
        faults.add("R105", node.place, f"{len(node.data)} models, the most is {MAX_MODELS}")
        return Inputs()
    good = tuple(item for item in node.elements() if _is_entry(item, keys, faults))
    return Inputs(good, complete=len(good) == len(node.data))


def _is_entry(node: Node, keys: tuple[str, ...], faults: Faults) -> bool:
    """True if a model can be read from the entry; tells unknown keys in any case."""
    if not isinstance(node.data, dict):
        if node.data is not None:
            return True
        faults.add("R111", node.place, "the entry is empty", "write `- model: PATH`")
        return False
    for key, item in node.items():
        if key not in keys and not (key == "merge_method" or "merge_method" in node.data):
            hint = did_you_mean(key, keys) or f"known: {', '.join(keys)}; parameters stand under `parameters`"
            faults.add("R110", item.key_place, "unknown key", hint)
    if node.get("model") is not None:
        return True
    hint = "a recipe inside a recipe stands under `model:`" if "merge_method" in node.data else "write `model: PATH`"
    faults.add("R111", node.place, "the entry has no model", hint)
    return False


def _slices(node: Node, faults: Faults) -> Inputs:
    """One slice whose sources all cover the same layers from 0 on is a merge of whole models."""
    if not isinstance(node.data, list) or not node.data or not isinstance(node.data[0], dict):
        faults.add(
            "R112", node.place, "must be a list of one slice with `sources`", "or list the models under `models`"
        )
        return Inputs()
    if len(node.data) > 1:
        hint = "only one slice that covers the whole models can be merged"
        if _in_order(node.data):
            hint = "list the models under `models`; layers get values of their own by filters: " + _BY_LAYER
            message = f"{len(node.data)} slices of the same models are not supported yet"
            faults.add("R113", node.key_place, message, hint)
            return Inputs()
        faults.add("R113", node.key_place, f"{len(node.data)} slices: {_STACKING}", hint)
        return Inputs()
    (piece,) = node.elements()
    for key, item in piece.items():
        if key not in _SLICE_KEYS:
            hint = did_you_mean(key, _SLICE_KEYS) or f"known: {', '.join(_SLICE_KEYS)}"
            faults.add("R110", item.key_place, "unknown key", hint)
    sources = piece.get("sources")
    if sources is None:
        faults.add("R111", piece.place, "the slice has no sources", "write `sources:` and a list of models")
        return Inputs()
    listed = _entries(sources, _SOURCE_KEYS, faults)
    ranges = [_layer_range(entry, faults) for entry in listed.entries]
    _whole(listed.entries, ranges, faults)
    unused = piece.get("residual_weight")
    return Inputs(
        listed.entries,
        piece.get("parameters"),
        piece.get("base_model"),
        ranges[0] if ranges else None,
        () if unused is None else (f"{unused.place.path} has no effect",),
        listed.complete,
    )


def _in_order(slices: list[Any]) -> bool:
    """Whether slices only cut the same models into layers that follow one another, so that nothing is stacked."""
    reached, models = 0, None
    for piece in slices:
        match piece:
            case {"sources": [{"layer_range": [int(first), int(last)]}, *_] as sources} if first == reached < last:
                ranges = [source.get("layer_range") for source in sources if isinstance(source, dict)]
                found = sorted(str(source.get("model")) for source in sources if isinstance(source, dict))
            case _:
                return False
        if ranges != [[first, last]] * len(sources) or found != (models or found):
            return False
        reached, models = last, found
    return True


def _layer_range(entry: Node, faults: Faults) -> tuple[int, int] | None:
    node = entry.get("layer_range")
    if node is None:
        faults.add("R134", entry.place, "the source has no layer_range", "write `layer_range: [0, N]` or list `models`")
        return None
    match node.data:
        case [int(first), int(last)] if (
            not isinstance(first, bool) and not isinstance(last, bool) and 0 <= first < last
        ):
            return first, last
    hint = "the first layer and the one after the last"
    faults.add("R134", node.place, "must be two integers [A, B] with 0 <= A < B", hint)
    return None


def _whole(entries: tuple[Node, ...], ranges: list[tuple[int, int] | None], faults: Faults) -> None:
    expected = next((found for found in ranges if found is not None), None)
    for entry, found in zip(entries, ranges, strict=True):
        node = entry.get("layer_range")
        if found is None or expected is None or node is None:
            continue
        if found[0] > 0:
            faults.add("R113", node.place, f"the layers begin at {found[0]}, not 0: {_STACKING}")
        elif found != expected:
            message = f"the sources have different layers, {list(expected)} and {list(found)}: {_STACKING}"
            faults.add("R113", node.place, message)
