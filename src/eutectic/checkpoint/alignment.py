"""An alignment: the moves that take one model to another's order and bases, in memory and as a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eutectic.checkpoint.aligned import Aligned, unfit
from eutectic.checkpoint.artefact import fingerprint_of, write_artefact
from eutectic.checkpoint.elements import misfits
from eutectic.checkpoint.memory import MemorySource
from eutectic.checkpoint.opening import open_source
from eutectic.checkpoint.safetensors import MalformedError, strict_json
from eutectic.checkpoint.source import Source
from eutectic.checkpoint.storage import REAL, Storage
from eutectic.checkpoint.symmetry import Moves, Symmetries
from eutectic.errors import CheckpointError, Problem, listed, several
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

ABOUT = "alignment.json"
# Of alignment.json.
FORMAT = 1
_KINDS = ("orders", "scales", "matrices")
_CHANGE = ("units", "moved", "before", "after")
_AGAIN = "align the models again, with `eutectic align`"


@dataclass(frozen=True, slots=True)
class Named:
    """One of the two models: its label, and tensor → digest of its stored bytes."""

    label: str
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Alignment:
    """Moves for a model, which take it to the order and the bases of a reference, and how they were found.

    Attributes:
        symmetries: the table that the moves are of.
        moves: only what moves.
        reference: the model that stays as it is.
        model: the one that moves.
        method: `weights`, `activations`, … : how units were matched.
        settings: of the method, plain data.
        objective: what was maximised: at the start, and after each sweep. Empty if the method has no such number.
        distance: ‖reference - model‖² over the tensors that say which units are alike, before and after.
        changes: group → its `units`, how many `moved`, and the distance `before` and `after` over its tensors.
        notes: what to mind.
    """

    symmetries: Symmetries
    moves: Moves
    reference: Named
    model: Named
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    objective: tuple[float, ...] = ()
    distance: tuple[float, float] = (0.0, 0.0)
    changes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        before, after = self.distance
        return f"<Alignment {self.label!r}: by {self.method}, distance² {before:.4g} before and {after:.4g} after>"

    @property
    def label(self) -> str:
        """A short name for messages."""
        return f"{self.model.label} to {self.reference.label}"

    @property
    def gain(self) -> float:
        """Share of the squared distance between the models that the alignment removes; 0: there is nothing to align."""
        before, after = self.distance
        return 1 - after / before if before else 0.0

    def source(self, model: Any, *, label: str | None = None, artefact: Source | None = None) -> Aligned:
        """The model, moved, as a source. Nothing is written.

        Args:
            model: the one that was aligned, as for `open_source`.
            label: its short name; by default its own.
            artefact: what is closed with the view.

        Raises as `Aligned`, and for a model of other tensors than the one that was aligned `CheckpointError` (G115).
        """
        source = open_source(model)
        if self.model.digests:
            self._refuse_another(source)
        return Aligned(
            source,
            self.symmetries,
            self.moves,
            digests=self.model.digests,
            reference=self.reference.digests,
            to=self.reference.label,
            label=label,
            artefact=artefact,
        )

    def _refuse_another(self, source: Source) -> None:
        """G115 for tensors or shapes that are not those of the model that was aligned."""
        odd = dict.fromkeys(one.where for one in unfit(self.symmetries, source) if one.code in ("G101", "G102"))
        if odd:
            message = f"the alignment is of {self.label}, and {source.label} is another model"
            which = f"{several(len(odd), 'tensor', 'differs', 'differ')} in name or shape: {listed(list(odd))}"
            hint = "align this model, with `eutectic align`"
            raise CheckpointError(Problem("G115", f"{message}: {which}", hint=hint))

    def as_json(self) -> dict[str, Any]:
        """All but the table, the moves and the digests, as plain data."""
        return {
            "method": self.method,
            "reference": self.reference.label,
            "model": self.model.label,
            "settings": dict(self.settings),
            "objective": list(self.objective),
            "distance": list(self.distance),
            "gain": self.gain,
            "changes": {name: dict(one) for name, one in self.changes.items()},
            "symmetries": self.symmetries.origin,
            "notes": list(self.notes),
        }

    def save(self, out: str | os.PathLike[str], *, replace: bool = False, storage: Storage = REAL) -> None:
        """Writes the folder that `aligned:` in a recipe names. It appears whole or not at all.

        Args:
            out: the folder to make. Where it is there and holds this very alignment, nothing is done.
            replace: whether another alignment that is there may be replaced.
            storage: the file system.

        Raises `RecipeError` (W401) if it exists, `OutputError` if it cannot be written.
        """
        source = MemorySource(self.label, dict(_tensors(self.moves)))
        body = {"format": FORMAT, **self._body()}
        write_artefact(out, source, body, about=ABOUT, replace=replace, storage=storage)

    def _body(self) -> dict[str, Any]:
        """What alignment.json says of the alignment."""
        models = {"reference": self.reference, "model": self.model}
        return {
            **self.as_json(),
            **{key: {"label": one.label, "digests": dict(one.digests)} for key, one in models.items()},
            "symmetries": self.symmetries.as_json(),
        }


def _tensors(moves: Moves) -> Iterator[tuple[str, Tensor]]:
    """Moves as the folder stores them."""
    for kind in _KINDS:
        for name, tensor in getattr(moves, kind).items():
            yield f"{kind}/{name}", tensor.cpu().contiguous()


def read_alignment(source: Source) -> Alignment:
    """What `Alignment.save` wrote.

    Raises `CheckpointError`: G110 where there is no alignment.json, G111 where it or the tensors beside it are not what
    they should be, G112 with all that is wrong with the moves.
    """
    raw = source.beside(ABOUT)
    if raw is None:
        hint = "name a folder that `eutectic align` made"
        raise CheckpointError(Problem("G110", f"{source.label!r} has no {ABOUT}, so it is no alignment", hint=hint))
    try:
        found = strict_json(raw)
    except MalformedError as error:
        raise _broken(source, f"is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise _broken(source, "is no mapping")
    if found.get("format") != FORMAT:
        raise _broken(source, f"is of format {found.get('format')!r}, and this version of Eutectic reads {FORMAT}")
    symmetries = _table(source, found)
    moves = _moves(source, found)
    if problems := list(misfits(symmetries, moves)):
        raise CheckpointError(problems)
    try:
        alignment = Alignment(symmetries, moves, **_about(found))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise _broken(source, "lacks the labels and digests of its models, or has others than names and text") from None
    if found.get("fingerprint") != fingerprint_of(found):
        raise _broken(source, "was changed after it was written")
    return alignment


def _table(source: Source, found: Mapping[str, Any]) -> Symmetries:
    try:
        symmetries = Symmetries.from_json(found["symmetries"])
        if not _is_sane(symmetries):
            raise ValueError
        outer = [group.within for group in symmetries.groups.values()]
        owners = [gauge.of for gauge in symmetries.gauges.values()]
        lost = {name for name in (*outer, *owners) if name is not None} - symmetries.groups.keys()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise _broken(source, "has no table under 'symmetries'") from None
    if lost:
        raise _broken(source, f"has symmetries of groups that they do not have: {listed(sorted(lost))}")
    return symmetries


def _is_sane(symmetries: Symmetries) -> bool:
    """Whether sizes are numbers, kinds are known and names are text."""
    groups, gauges = symmetries.groups.values(), symmetries.gauges.values()
    factors = [one for axes in symmetries.axes.values() for parts in axes for part in parts for one in part.factors]
    names = {*(one.within for one in groups), *(one.of for one in gauges), *(one.group for one in factors)}
    names |= {*(one.gauge for one in factors), *(one for patterns in symmetries.stacks.values() for one in patterns)}
    units = [*(one.size for one in groups), *(one.size for one in gauges)]
    kinds = {"linear", "orthogonal", "rotary"}.issuperset(one.kind for one in gauges)
    scales = {"", "sign", "positive", "any"}.issuperset(one.scale for one in groups)
    texts = all(name is None or isinstance(name, str) for name in names)
    whole = all(type(size) is int and size >= 0 for size in (*units, *(one.size for one in factors)))
    return texts and kinds and scales and whole and all(units)


def _moves(source: Source, found: Mapping[str, Any]) -> Moves:
    said = found.get("tensors")
    if not isinstance(said, dict) or said.keys() != source.specs.keys():
        raise _broken(source, "does not list the tensors beside it")
    odd = [name for name in source.specs if name.partition("/")[0] not in _KINDS]
    odd += [name for name in source.specs if name not in odd and source.digest(name) != said[name]]
    if odd:
        raise _broken(source, f"is of other tensors than lie beside it: {listed(odd)}")
    parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in _KINDS}
    for name in source.specs:
        kind, _, of = name.partition("/")
        parts[kind][of] = source[name]
    return Moves(**parts)


def _about(found: Mapping[str, Any]) -> dict[str, Any]:
    """The other fields. Raises whatever it meets where they cannot be so."""
    named = {}
    for key in ("reference", "model"):
        label, digests = found[key]["label"], found[key]["digests"]
        if not isinstance(label, str) or not all(isinstance(one, str) for one in digests.values()):
            raise TypeError
        named[key] = Named(label, digests)
    before, after = found["distance"]
    return {
        **named,
        "method": str(found["method"]),
        "settings": dict(found["settings"]),
        "objective": tuple(map(float, found["objective"])),
        "distance": (float(before), float(after)),
        "changes": {str(name): {key: one[key] for key in _CHANGE} for name, one in found["changes"].items()},
        "notes": tuple(map(str, found["notes"])),
    }


def _broken(source: Source, why: str) -> CheckpointError:
    return CheckpointError(Problem("G111", f"{ABOUT} of {source.label!r} {why}", hint=_AGAIN))
