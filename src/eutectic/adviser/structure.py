"""headers, config.json and tokenizer files -> which tensors can be compared, and what speaks against a merge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from eutectic import dtypes
from eutectic.adviser.beside import Beside, beside
from eutectic.adviser.model import Matched, Structure
from eutectic.checkpoint import Source, Spec
from eutectic.checkpoint.configs import contradictions
from eutectic.checkpoint.vocabulary import are_apart
from eutectic.errors import listed
from eutectic.names import Depths, counted, layer_of, numberless
from eutectic.plan.tokenizers import how_tokens_differ
from eutectic.plan.unlike import named_otherwise, one_of_shards

# With less than this share of the entries in every model, what a merge would copy is most of the model.
COMMON_SHARE = 0.5
# Integers in more than this share of the entries are no buffers: the model is quantised.
QUANTISED_SHARE = 0.5
# What a recipe can do about tensors that some models lack.
_COPIED = " (`missing: copy` in a recipe copies them)"

# Spec of each model under a name, None where it has none.
_Row = tuple[Spec | None, ...]


def structure_of(sources: Sequence[Source], labels: Sequence[str]) -> Structure:
    """Compares how models are built. Reads headers and small files, no weight.

    Raises `CheckpointError` for a config or tokenizer file that cannot be read.
    """
    found = Structure()
    named = [_stored(source) for source in sources]
    rows: dict[str, _Row] = {}
    seen: set[tuple[str | None, ...]] = set()
    for name in dict.fromkeys(name for names in named for name in names):
        stored = tuple(names.get(name) for names in named)
        # A tensor under two names (a tied head) is one, unless some model has two.
        if stored in seen:
            continue
        seen.add(stored)
        specs = [None if at is None else source.specs[at] for source, at in zip(sources, stored, strict=True)]
        rows[name] = tuple(specs)
        if (matched := _matched(name, stored, rows[name])) is not None:
            found.matched.append(matched)
    beyond = _look_at_layers(found, named, labels)
    _look_at_tensors(found, {name: row for name, row in rows.items() if name not in beyond}, labels)
    _look_at_names(found, named, labels)
    _look_beside(found, [beside(source) for source in sources], labels)
    return found


def _stored(source: Source) -> dict[str, str]:
    """Every name of a model, and the name under which its tensor is stored."""
    return {name: name for name in source.specs} | dict(source.ties) | dict(source.implied)


def _matched(name: str, stored: tuple[str | None, ...], row: _Row) -> Matched | None:
    specs = [spec for spec in row if spec is not None and dtypes.is_float(spec.dtype)]
    if len(specs) < len(row) or len({spec.shape for spec in specs}) > 1:
        return None
    names = tuple(at for at in stored if at is not None)
    return Matched(name, names, specs[0].shape, tuple(spec.dtype for spec in specs), specs[0].numel)


def _look_at_layers(found: Structure, named: Sequence[Mapping[str, str]], labels: Sequence[str]) -> set[str]:
    """Tells of stacks of which some models have more layers; returns the tensors of the layers that are too many."""
    counts = [Depths.of(names).layers for names in named]
    least: dict[str, int] = {}
    for stack in counts[0]:
        each = [layers.get(stack, 0) for layers in counts]
        # A stack that a model lacks altogether is a part of its own, as a head is.
        if min(each) > 1 and len(set(each)) > 1:
            least[stack] = min(each)
            told = ", ".join(f"{label} {count}" for label, count in zip(labels, each, strict=True))
            found.faults.append(f"the numbers of layers differ: {stack or 'layers'}: {told}")
    places = {name: layer_of(name) for names in named for name in names}
    return {name for name, at in places.items() if at is not None and at[1] >= least.get(at[0], at[1] + 1)}


def _look_at_tensors(found: Structure, rows: Mapping[str, _Row], labels: Sequence[str]) -> None:
    fp8, kinds, shapes, gone = (_Groups(labels) for _ in range(4))
    for name, row in rows.items():
        present = [spec for spec in row if spec is not None]
        floats = {dtypes.is_float(spec.dtype) for spec in present}
        if any(dtypes.BY_NAME[spec.dtype].kind == "fp8" for spec in present):
            fp8.add(name, row, lambda spec: spec.dtype)
        elif len(floats) > 1:
            kinds.add(name, row, lambda spec: spec.dtype)
        elif len({spec.shape for spec in present}) > 1:
            shapes.add(name, row, lambda spec: str(list(spec.shape)))
        elif len(present) < len(row):
            gone.add(name, row, lambda spec: "")
    found.faults += [f"stored as float8 without a meaning of its own, convert to bfloat16: {it}" for it in fp8.shown()]
    found.faults += [f"floats in some models only: {it}" for it in kinds.shown()]
    found.faults += [f"shapes differ: {it}" for it in shapes.shown()]
    common = sum(one.numel for one in found.matched)
    entries = sum(max(spec.numel for spec in row if spec is not None) for row in rows.values())
    missing = [f"missing from {it}" for it in gone.lacking()]
    if gone and not shapes and common < COMMON_SHARE * entries:
        found.faults += [f"most of the weights are not in every model; {it}" for it in missing]
    else:
        (found.faults if shapes else found.cautions).extend(missing if shapes else [f"{it}{_COPIED}" for it in missing])
    _look_for_integers(found, rows, entries)


def _look_at_names(found: Structure, named: Sequence[Mapping[str, str]], labels: Sequence[str]) -> None:
    """Tells why tensors may be missing: models of which only a shard was named, and names that begin otherwise."""
    found.cautions += filter(None, map(one_of_shards, labels))
    for other, label in zip(named[1:], labels[1:], strict=True):
        lacking, spare = (
            [name for name in one if name not in two] for one, two in ((named[0], other), (other, named[0]))
        )
        if renamed := named_otherwise(lacking, spare, (labels[0], label)):
            found.cautions.append(renamed)


def _look_for_integers(found: Structure, rows: Mapping[str, _Row], entries: int) -> None:
    whole = sum(
        max(spec.numel for spec in row if spec)
        for row in rows.values()
        if not any(spec and dtypes.BY_NAME[spec.dtype].kind != "integer" for spec in row)
    )
    if whole > QUANTISED_SHARE * entries:
        found.faults.append("most entries are integers: the models are quantised; dequantise them first")
    elif not found.matched and not found.faults:
        found.faults.append("there is no floating tensor that all models have")


class _Groups:
    """Tensors that differ in the same way, told of together: layer numbers become `*`."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._names: dict[tuple[str, tuple[str | None, ...]], list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._names)

    def add(self, name: str, row: _Row, of: Callable[[Spec], str]) -> None:
        key = (numberless(name), tuple(None if spec is None else of(spec) for spec in row))
        self._names.setdefault(key, []).append(name)

    def shown(self) -> list[str]:
        """`layers.*.up.weight (32 tensors): a [4, 4], b [8, 4]`, in the order of the models."""
        lines = []
        for (_, values), names in self._names.items():
            each = ", ".join(f"{at} {value or 'none'}" for at, value in zip(self._labels, values, strict=True))
            lines.append(f"{counted(names)}: {each}")
        return lines

    def lacking(self) -> list[str]:
        """`a, b: layers.*.bias (32 tensors), …`, one line for each set of models."""
        by_models: dict[str, list[str]] = {}
        for (_, values), names in self._names.items():
            without = [at for at, value in zip(self._labels, values, strict=True) if value is None]
            by_models.setdefault(", ".join(without), []).append(counted(names))
        return [f"{models}: {'; '.join(patterns)}" for models, patterns in by_models.items()]


def _look_beside(found: Structure, all_files: list[Beside], labels: Sequence[str]) -> None:
    for one in contradictions((label, files.config) for label, files in zip(labels, all_files, strict=True)):
        (found.faults if one.cuts else found.cautions).append(str(one))
    _compare_tokenizers(found, [(label, files) for label, files in zip(labels, all_files, strict=True)])


def _compare_tokenizers(found: Structure, models: Iterable[tuple[str, Beside]]) -> None:
    known = [(label, files) for label, files in models if files.tokenizer]
    if len(known) < 2:
        return
    first_label, first = known[0]
    alike = True
    for label, files in known[1:]:
        if files.tokenizer == first.tokenizer:
            continue
        if not (files.tokens and first.tokens):
            alike = False
            found.cautions.append(f"the tokenizer files of {first_label} and {label} differ: {_changed(first, files)}")
            continue
        how = how_tokens_differ(first.tokens, files.tokens)
        alike = alike and not how
        between = f"the vocabularies of {first_label} and {label}"
        if how and are_apart(first.tokens, files.tokens):
            found.faults.append(f"{between} differ: {how}; rows of the embeddings mean different tokens")
        elif how:
            found.cautions.append(f"{between} are nearly the same: {how}")
        else:
            text = f"{_changed(first, files)} (settings, not tokens)"
            found.cautions.append(f"the tokenizer files of {first_label} and {label} differ: {text}")
    found.vocabulary = alike


def _changed(first: Beside, other: Beside) -> str:
    names = sorted(first.tokenizer.keys() | other.tokenizer.keys())
    return listed([name for name in names if first.tokenizer.get(name) != other.tokenizer.get(name)])
