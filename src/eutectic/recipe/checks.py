"""What can be said of a recipe's structure before any file is opened."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from eutectic.paths import collapsed
from eutectic.recipe.located import Faults, Node
from eutectic.recipe.model import Model, ModelEntry, label_of, same_model
from eutectic.recipe.schema import MethodLike
from eutectic.recipe.values import Scalar, Setting


def from_base(
    method: MethodLike, models: list[ModelEntry], base: Model | None, root: Node, faults: Faults
) -> list[ModelEntry]:
    """The models of a method that starts from the base, the base first, whether listed or only named by base_model."""
    if base is None:
        missing_base(method, root, faults)
        return models
    listed = [entry for entry in models if same_model(entry.model, base)]
    others = [entry for entry in models if not same_model(entry.model, base)]
    if len(others) > 1 and not listed:
        node = root.get("base_model") or root
        names = " and ".join(repr(label_of(entry.model)) for entry in others)
        message = f"{label_of(base)!r} is none of the models"
        faults.add("R132", node.place, message, f"{method.name} goes from base_model to one other; listed are {names}")
        return models
    return [*(listed or [ModelEntry(base, place=(root.get("base_model") or root).place)]), *others]


def missing_base(method: MethodLike, root: Node, faults: Faults) -> None:
    """Notes that the method needs a base model."""
    why = "the model at its start" if method.base == "first" else "the model that the others were fine-tuned from"
    faults.add("R132", root.place, f"{method.name} needs base_model", f"name {why}")


def counts(method: MethodLike, models: Sequence[ModelEntry], root: Node, faults: Faults) -> None:
    """The number of models is one that the method merges."""
    least, most = method.models
    if least <= len(models) and (most is None or len(models) <= most):
        return
    wanted = f"{least}" if most == least else f"at least {least}" if most is None else f"{least} to {most}"
    plural = "model" if wanted.endswith(" 1") or wanted == "1" else "models"
    beside = " besides the base" if method.space == "deltas" else ""
    node = root.get("models") or root.get("slices") or root
    faults.add("R131", node.key_place, f"{method.name} merges {wanted} {plural}{beside}, not {len(models)}")


def repeats(models: Sequence[ModelEntry], faults: Faults) -> None:
    """No model is listed twice."""
    names: dict[str, ModelEntry] = {}
    others: list[ModelEntry] = []
    for entry in models:
        if isinstance(entry.model, str):
            before = names.get(collapsed(entry.model))
            names.setdefault(collapsed(entry.model), entry)
        else:
            before = next((other for other in others if same_model(entry.model, other.model)), None)
            others.append(entry)
        if before is not None:
            message = f"the model {label_of(entry.model)!r} is listed twice"
            alike = before.aligned == entry.aligned
            hint = "list it once, with a larger weight" if alike else "list it once: as it is, or by one alignment"
            faults.add("R133", entry.place, message, hint)


def repeated_artefacts(models: Sequence[ModelEntry], faults: Faults) -> None:
    """No two models have the same statistics or the same alignment: they are of one model."""
    for kind, verb, given in (
        ("statistics", "stand", [entry.statistics for entry in models]),
        ("alignment", "stands", [entry.aligned for entry in models]),
    ):
        seen: list[object] = []
        for entry, artefact in zip(models, given, strict=True):
            one = collapsed(artefact) if isinstance(artefact, str) else artefact
            if one is not None and any(one is other or (isinstance(one, str) and one == other) for other in seen):
                message = f"the {kind} {label_of(artefact)!r} {verb} beside two models"
                whose = "an alignment of its own" if kind == "alignment" else "statistics of its own"
                faults.add("R133", entry.place, message, f"each model has {whose}")
            seen.append(one)


def required(
    method: MethodLike, models: Sequence[ModelEntry], given: Collection[str], root: Node, faults: Faults
) -> None:
    """Parameters without a default are given: to all (`given` names those), or to each model if it is one a model."""
    for name, param in method.params.items():
        if not param.required or name in given:
            continue
        hint = f"write `{name}:` under `parameters`"
        if not param.per_model:
            faults.add("R126", root.place, f"{method.name} needs the parameter {name!r}", hint)
            continue
        for entry in models:
            if name not in entry.parameters:
                faults.add("R126", entry.place, f"{method.name} needs {name!r} for each model", hint)


def weights(
    method: MethodLike, models: Sequence[ModelEntry], parameters: Mapping[str, Setting], root: Node, faults: Faults
) -> None:
    """Constant weights do not sum to zero where the method divides by their sum."""
    if "weight" not in method.params or "normalize" not in method.params or not models:
        return
    given = parameters.get("normalize")
    normalize = method.params["normalize"].default if given is None else given.constant
    shares = [_constant(entry.parameters.get("weight"), parameters.get("weight"), method) for entry in models]
    if normalize is not True or any(isinstance(share, str) or share is None for share in shares):
        return
    numbers = [float(share) for share in shares if share is not None]
    # Relative, so that 0.1 + 0.2 - 0.3 counts as zero, and no sum overflows.
    largest = max(map(abs, numbers)) or 1.0
    parts = [number / largest for number in numbers]
    if abs(math.fsum(parts)) <= 1e-9 * math.fsum(map(abs, parts)):
        written = ", ".join(f"{number:g}" for number in numbers)
        node = root.get("models") or root.get("slices") or root
        faults.add("R127", node.key_place, f"the weights {written} sum to zero", "set normalize: false or change them")


def _constant(own: Setting | None, shared: Setting | None, method: MethodLike) -> Scalar | None:
    """The weight if it is one for every tensor."""
    setting = own.over(shared) if own is not None else shared
    return method.params["weight"].default if setting is None else setting.constant
