"""A finished output -> is it what its manifest says, and is that what the recipe gives?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eutectic import methods, recipe
from eutectic.checkpoint import REAL, FileSource, Source, Storage, open_folder, open_source
from eutectic.checkpoint.existing import MANIFEST, SWEEP, Existing
from eutectic.dtypes import is_float
from eutectic.errors import CheckpointError, EutecticError, Problem, RecipeError, listed, several
from eutectic.kernels.digests import BLOCK, block_digest, digest_of
from eutectic.lazy import LazyModule
from eutectic.paths import absolute, folder_name, near_path
from eutectic.plan import Plan, make_plan
from eutectic.report.manifest import encoded
from eutectic.run.merged import MergedSource

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

CODES: dict[str, tuple[str, str]] = {
    "V701": (
        "no manifest",
        "The folder has no readable eutectic.json, so nothing says what it should hold. Only folders that "
        "`eutectic merge` made can be verified. A manifest that is there and damaged says nothing either: copy the "
        "folder again from where it is whole, or merge again.",
    ),
    "V702": (
        "the output is not what its manifest says",
        "A file was changed, damaged or removed, or a tensor added, after the merge. Merge again with `--replace`.",
    ),
    "V703": (
        "the recipe gives other bytes",
        "The output is intact, but merging the same models again gives another result: a model has changed since, or "
        "another version of Eutectic with other numerics made it.",
    ),
    "V704": (
        "the merge cannot be repeated",
        "A model that was merged cannot be found or opened any more, or lived in memory. `--stored-only` checks the "
        "output against its manifest without the models.",
    ),
}


# What sums of float32 and float64 may differ by, as a part of the largest value.
ROUNDING = 1e-6
_DAMAGED = "was it edited? Copy the folder again from where it is whole, or merge again"
# Tensors that are named one by one where many differ.
NAMED = 12


@dataclass(slots=True)
class Verification:
    """What was checked. `problems` is empty when all is well.

    Attributes:
        path: the output folder.
        stored: tensors whose stored bytes were compared with the manifest.
        derived: tensors that were computed again and compared.
        near: of these, tensors of a merge by a GPU that the CPU makes with other last digits.
        files: other files that were compared.
        added: files in the folder that no merge wrote, which may change how the model is used (a chat template, say).
        problems: what differs.
    """

    path: str
    stored: int = 0
    derived: int = 0
    near: int = 0
    files: int = 0
    added: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def verify(
    out: str | os.PathLike[str],
    *,
    stored_only: bool = False,
    sample: int | None = None,
    progress: Callable[[int], None] | None = None,
    storage: Storage = REAL,
) -> Verification:
    """Compares an output with its manifest, then merges again and compares.

    Args:
        out: a folder that `merge` made, or the manifest in it.
        stored_only: leave out merging again; the models need not be there.
        sample: merge only this many tensors again, spread over the model; None is all.
        progress: called with the bytes of each tensor that was checked.
        storage: the file system.

    Raises `CheckpointError` when there is no manifest (V701) or the merge cannot be repeated (V704), and `RecipeError`
    (M603) for arguments that cannot be.
    """
    folder = _folder(_checked(out, sample), storage)
    manifest, intact = _read(folder, storage)
    result = Verification(folder)
    if not intact:
        _differs(result, MANIFEST, "was changed after the merge")
    try:
        source = open_folder(folder, os.path.basename(absolute(folder)), storage)
    except CheckpointError as error:
        result.problems += [Problem("V702", p.message, p.where, p.hint, p.file) for p in error.problems]
        return result
    try:
        _check_files(result, manifest, storage)
        _check_weights(result, manifest, source)
        _check_stored(result, manifest, source, progress)
        _note_added(result, storage)
        if not stored_only and not result.problems:
            _check_derived(result, manifest, source, sample, progress, storage)
    finally:
        source.close()
    return result


def _checked(out: str | os.PathLike[str], sample: int | None) -> str:
    """The folder. Raises `RecipeError` (M603) for what names none, and for a sample that is no number of tensors."""
    place, problems = folder_name(out), []
    if place is None:
        problems.append(Problem("M603", f"must be a folder that `merge` made, not {out!r}", "out"))
    if sample is not None and (isinstance(sample, bool) or not isinstance(sample, int) or sample < 1):
        problems.append(Problem("M603", f"must be a whole number from 1 on, not {sample!r}", "sample"))
    if problems:
        raise RecipeError(problems)
    return str(place)


def read_manifest(out: str, storage: Storage = REAL) -> dict[str, Any]:
    """The manifest of an output, by its folder or its own path. Raises `CheckpointError` (V701)."""
    return _read(_folder(out, storage), storage)[0]


def _folder(out: str, storage: Storage) -> str:
    """The folder of an output that is named by its manifest."""
    folder, name = os.path.split(out)
    return folder or os.curdir if name == MANIFEST and not storage.is_dir(out) else out


def _read(folder: str, storage: Storage) -> tuple[dict[str, Any], bool]:
    """The manifest, and whether it is byte for byte what was written."""
    path = os.path.join(folder, MANIFEST)
    try:
        raw = storage.read_bytes(path, 1 << 30)
    except (OSError, ValueError) as error:
        raise CheckpointError(_unread(folder, error, storage)) from error
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(Problem("V701", f"the manifest is damaged: {error}", "", _DAMAGED, path)) from error
    if not _is_manifest(found):
        raise CheckpointError(Problem("V701", "this is no manifest of a merge", "", _DAMAGED, path))
    return found, encoded(found) == raw


def _unread(folder: str, error: Exception, storage: Storage) -> Problem:
    """Why there is no manifest to read."""
    made = "name a folder that `eutectic merge` made"
    if isinstance(error, NotADirectoryError):
        return Problem("V701", "this is a file", "", made, folder)
    if not isinstance(error, FileNotFoundError):
        reason = getattr(error, "strerror", None) or error
        return Problem("V701", f"the manifest cannot be read: {reason}", file=os.path.join(folder, MANIFEST))
    if not storage.exists(folder):
        return Problem("V701", "there is no such folder", "", near_path(folder, ("",)) or made, folder)
    if storage.exists(os.path.join(folder, SWEEP)):
        made = "this folder holds a sweep; verify each of the folders in it"
    return Problem("V701", f"there is no {MANIFEST} in this folder", "", made, folder)


def _is_manifest(found: Any) -> bool:
    tables = [found.get(key) for key in ("tensors", "files", "weights")] if isinstance(found, dict) else [None]
    if not all(isinstance(table, dict) for table in tables) or "recipe" not in found:
        return False
    folders = found.get("found_from", [])
    if not isinstance(folders, list) or not all(isinstance(folder, str) for folder in folders):
        return False
    keys = {"dtype", "shape", "digest"}
    inputs = found.get("inputs", [])
    if not isinstance(inputs, list):
        return False
    entries = [*found["tensors"].values(), *found["weights"].values(), *inputs]
    return all(isinstance(entry, dict) for entry in entries) and all(
        keys <= entry.keys() for entry in found["tensors"].values()
    )


def _differs(result: Verification, where: str, message: str) -> None:
    result.problems.append(Problem("V702", message, where))


def _check_files(result: Verification, manifest: Mapping[str, Any], storage: Storage) -> None:
    for name, digest in manifest["files"].items():
        try:
            data = storage.read_bytes(os.path.join(result.path, name), 1 << 30)
        except (OSError, ValueError) as error:
            _differs(result, name, f"cannot be read: {getattr(error, 'strerror', None) or error}")
            continue
        result.files += 1
        if digest_of([block_digest(data)]) != digest:
            _differs(result, name, "was changed after the merge")


def _note_added(result: Verification, storage: Storage) -> None:
    """Notes files that do no harm by themselves; those of weights are problems already."""
    told = {problem.where for problem in result.problems}
    try:
        result.added = [name for name in Existing(result.path, storage).strangers() if name not in told]
    except OSError as error:
        _differs(result, str(error.filename or result.path), f"cannot be read: {error.strerror or error}")


def _check_weights(result: Verification, manifest: Mapping[str, Any], source: FileSource) -> None:
    """The files of weights: names, sizes and headers, metadata included."""
    stored = {file.pop("name"): file for file in map(dict, source.identity()["files"])}
    written = manifest["weights"]
    missing = [name for name in sorted(written) if name not in stored]
    unknown = [name for name in sorted(stored) if name not in written]
    for name in missing:
        if new := next((one for one in unknown if stored[one] == written[name]), None):
            unknown.remove(new)
            result.problems.append(Problem("V702", f"is called {new} now", name, "give it its name back"))
        else:
            _differs(result, name, "is missing: the manifest names it, and it is not in the folder")
    for name in unknown:
        _differs(result, name, "is in the folder, and the manifest does not name it")
    for name in sorted(stored.keys() & written.keys()):
        if stored[name] != written[name]:
            _differs(result, name, "has another size or header than was written")


def _check_stored(
    result: Verification, manifest: Mapping[str, Any], source: FileSource, progress: Callable[[int], None] | None
) -> None:
    tensors = manifest["tensors"]
    for name in tensors.keys() - source.specs.keys():
        _differs(result, name, "is missing: the manifest names it, and no file holds it")
    for name in source.specs.keys() - tensors.keys():
        _differs(result, name, "is in a file, and the manifest does not name it")
    for name, spec in source.specs.items():
        entry = tensors.get(name)
        if entry is None:
            continue
        if (entry["dtype"], entry["shape"]) != (spec.dtype, list(spec.shape)):
            said = f"{entry['dtype']} {entry['shape']}"
            _differs(result, name, f"is {spec.dtype} {list(spec.shape)}, the manifest says {said}")
        elif source.digest(name) != entry["digest"]:
            _differs(result, name, "has other bytes than were written")
        result.stored += 1
        if progress:
            progress(spec.nbytes)


def _check_derived(
    result: Verification,
    manifest: Mapping[str, Any],
    source: FileSource,
    sample: int | None,
    progress: Callable[[int], None] | None,
    storage: Storage,
) -> None:
    plan = _plan_again(os.path.realpath(result.path), manifest, storage)
    again = MergedSource(plan, count_nonfinite=True)
    try:
        names = list(again.specs)
        if sample is not None and sample < len(names):
            names = [names[i * len(names) // sample] for i in range(sample)]
        other: list[str] = []
        for name in names:
            if name not in source.specs or again.specs[name] != source.specs[name]:
                result.problems.append(Problem("V703", "the recipe gives a tensor of another kind", name))
            elif again.digest(name) != manifest["tensors"][name]["digest"]:
                if "gpu" in manifest and _near(again, source, name):
                    result.near += 1
                else:
                    other.append(name)
            result.derived += 1
            if progress:
                progress(again.specs[name].nbytes)
        if again.specs.keys() != source.specs.keys():
            result.problems.append(Problem("V703", "the recipe gives other tensors", result.path))
        if other:
            result.problems += _other_bytes(plan, manifest, other, len(names))
    finally:
        again.close()


def _near(again: Source, source: Source, name: str) -> bool:
    """Whether two tensors differ by no more than sums in another order do: a last digit, more where terms cancel."""
    dtype = source.specs[name].dtype
    if not is_float(dtype):
        return False
    largest = max(float(two.nan_to_num(0.0, 0.0, 0.0).abs().amax()) for two in _blocks(source, name))
    allowed = {"rtol": 2 * torch.finfo(getattr(torch, dtype)).eps, "atol": ROUNDING * largest}
    pairs = zip(_blocks(again, name), _blocks(source, name), strict=True)
    return all(bool(torch.isclose(one, two, **allowed, equal_nan=True).all()) for one, two in pairs)


def _blocks(source: Source, name: str) -> Iterator[torch.Tensor]:
    """A tensor in float64, a block at a time, as all of it may not fit in memory."""
    spec = source.specs[name]
    for first in range(0, spec.numel, BLOCK):
        stop = min(first + BLOCK, spec.numel)
        block = torch.empty(stop - first, dtype=getattr(torch, spec.dtype))
        source.read_into(name, first, stop, block.view(torch.uint8).numpy().data)
        yield block.double()


def _other_bytes(plan: Plan, manifest: Mapping[str, Any], names: list[str], checked: int) -> list[Problem]:
    """One problem that says which models changed, and the first tensors by name."""
    sources = {item.label: item.source for item in plan.inputs if item.source is not None}
    changed = []
    for label, source in sources.items():
        for name in names[:NAMED]:
            said = next((one for one in manifest["tensors"][name]["inputs"] if one["model"] == label), None)
            stored = said.get("tensor", name) if said else ""
            if said and stored in source.specs and source.digest(stored) != said["digest"]:
                changed.append(label if _aligned_alike(source, label, manifest) else f"the alignment of {label}")
                break
    why = f"{listed(changed)} changed since the merge" if changed else "the models are as they were"
    found = [Problem("V703", f"{len(names)} of {several(checked, 'tensor')} come out with other bytes: {why}")]
    return found + [Problem("V703", "the recipe gives other bytes", name) for name in names[:NAMED]]


def _aligned_alike(source: Source, label: str, manifest: Mapping[str, Any]) -> bool:
    said: Mapping[str, Any] = next((one for one in manifest["inputs"] if one.get("label") == label), {})
    return bool(source.identity().get("aligned") == said.get("aligned"))


def _plan_again(path: str, manifest: Mapping[str, Any], storage: Storage) -> Plan:
    """The plan of the manifest's recipe; relative paths are tried from where the merge was run."""
    if live := _in_memory(manifest):
        message = f"the merge was made from models in memory ({listed(live)}), which cannot be opened again"
        raise CheckpointError(Problem("V704", message, hint="pass `stored_only=True`: it needs no models"))
    folders = [os.path.normpath(os.path.join(path, relative)) for relative in manifest.get("found_from", [])]

    def opener(model: Any, _folder: str | None) -> Source:
        for folder in folders:
            candidate = os.path.join(folder, model)
            if not os.path.isabs(model) and os.path.exists(candidate):
                return open_source(candidate, storage=storage)
        return open_source(model, storage=storage)

    try:
        return make_plan(recipe.load(manifest["recipe"], methods=methods), opener)
    except EutecticError as error:
        hint = "put the models back, or pass `stored_only=True`"
        raise CheckpointError(
            Problem("V704", f"the merge cannot be repeated: {problem.message}", problem.where, hint, problem.file)
            for problem in error.problems
        ) from error


def _in_memory(manifest: Mapping[str, Any]) -> list[str]:
    """Labels of the inputs that nothing can be found by: neither files nor a recipe."""
    said = manifest.get("inputs", [])
    return [str(one.get("label")) for one in said if not {"files", "recipe", "repaired"} & one.keys()]
