"""Zipped models as a folder: the trunk once, what stays of each model beside it, and zipit.json."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from eutectic.alignment.zipit.members import every
from eutectic.alignment.zipit.module import Zipped, ZippedGroup
from eutectic.checkpoint import REAL, MemorySource, Source, Storage, open_source
from eutectic.checkpoint.artefact import write_artefact
from eutectic.checkpoint.safetensors import MalformedError, strict_json
from eutectic.errors import CheckpointError, Problem, listed, several
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

ABOUT = "zipit.json"
# Of zipit.json.
FORMAT = 1


def save_zipped(zipped: Zipped, out: str | os.PathLike[str], *, replace: bool = False, storage: Storage = REAL) -> None:
    """Writes a folder that `load_zipped` reads: safetensors, and zipit.json. It appears whole or not at all.

    The trunk's tensors are called `trunk.NAME`, those of model k `models.k.NAME`, as the models have them.

    Args:
        zipped: what `zipit` made.
        out: the folder to make. Where it is there and holds these very tensors, nothing is done.
        replace: whether other zipped models that are there may be replaced.
        storage: the file system.

    Raises `RecipeError` (W401) if it exists, `OutputError` if it cannot be written.
    """
    source = MemorySource("zipped", {place: tensor.detach() for place, tensor in _placed(zipped)})
    groups = {name: {**asdict(group), "folded": list(group.folded)} for name, group in zipped.groups.items()}
    body = {
        "format": FORMAT,
        "models": len(zipped.members),
        "shared": sorted(zipped.shared),
        "ties": dict(source.ties),
        "groups": groups,
    }
    write_artefact(out, source, body, about=ABOUT, replace=replace, storage=storage)


def load_zipped(path: str | os.PathLike[str], modules: Sequence[nn.Module]) -> Zipped:
    """Reads what `save_zipped` wrote into modules.

    Args:
        path: the folder.
        modules: of the architectures of the models that were zipped, in their order. They become the members, and take
            the folder's values.

    Raises `CheckpointError`: G247 with every tensor that the folder or a module lacks or has in another shape.
    """
    with open_source(path) as source:
        about = _about(source)
        if about["models"] != len(modules):
            message = f"holds {about['models']} models, and {several(len(modules), 'module', 'is', 'are')} given"
            raise CheckpointError(Problem("G247", message, source.label))
        _check(source, about, modules)
        groups = {name: ZippedGroup(**{**one, "folded": tuple(one["folded"])}) for name, one in about["groups"].items()}
        zipped = Zipped(modules, about["shared"], groups)
        with torch.no_grad():
            for place, tensor in _placed(zipped):
                tensor.copy_(source[about["ties"].get(place, place)])
    return zipped


def _placed(zipped: Zipped) -> Iterator[tuple[str, Tensor]]:
    """Where each saved tensor stands in the folder."""
    for number, member in enumerate(zipped.members):
        for name, tensor in member.state_dict().items():
            if name not in zipped.shared:
                yield f"models.{number}.{name}", tensor
            elif number == 0:
                yield f"trunk.{name}", tensor


def _check(source: Source, about: Mapping[str, Any], modules: Sequence[nn.Module]) -> None:
    shared = set(about["shared"])
    problems, used = [], set()
    for number, module in enumerate(modules):
        state = module.state_dict()
        for name in state:
            place = f"trunk.{name}" if name in shared else f"models.{number}.{name}"
            stored = about["ties"].get(place, place)
            used.add(stored)
            if stored not in source.specs:
                problems.append(Problem("G247", f"the folder has no {place}", f"modules[{number}]"))
            elif source.specs[stored].shape != tuple(state[name].shape):
                sizes = f"{list(source.specs[stored].shape)} in the folder, {list(state[name].shape)} in the module"
                problems.append(Problem("G247", f"{place} is of shape {sizes}", f"modules[{number}]"))
        if lost := sorted(shared - {name for name, _ in every(module)}):
            problems.append(Problem("G247", f"the module has no {listed(lost)}", f"modules[{number}]"))
    said = about["tensors"]
    if odd := [name for name in source.specs if source.digest(name) != said.get(name)]:
        problems.append(Problem("G247", f"{listed(odd)} are not as they were saved", source.label))
    if unused := [name for name in source.specs if name not in used]:
        problems.append(Problem("G247", f"the modules have no {listed(unused)}", source.label))
    if problems:
        raise CheckpointError(problems)


def _about(source: Source) -> dict[str, Any]:
    raw = source.beside(ABOUT)
    if raw is None:
        hint = "name a folder that `save_zipped` made"
        raise CheckpointError(Problem("G247", f"has no {ABOUT}, so it holds no zipped models", source.label, hint))
    try:
        found = strict_json(raw)
        if found["format"] != FORMAT:
            message = f"{ABOUT} is of format {found['format']!r}, and this version reads {FORMAT}"
            raise CheckpointError(Problem("G247", message, source.label))
        kinds = {"models": int, "shared": list, "ties": dict, "groups": dict, "tensors": dict}
        if not all(isinstance(found[key], kind) for key, kind in kinds.items()):
            raise TypeError
    except (MalformedError, KeyError, TypeError):
        raise CheckpointError(Problem("G247", f"{ABOUT} is not what it should be", source.label)) from None
    return dict(found)
