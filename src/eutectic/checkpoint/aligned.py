"""A model read through moves: its units in other places, scaled or mixed, computed on read and never written."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eutectic import dtypes
from eutectic.checkpoint.moving import Piece, change_of, made, pieces
from eutectic.checkpoint.source import Source, Spec
from eutectic.checkpoint.symmetry import Axis, Factor, Moves, Part, Symmetries
from eutectic.errors import CheckpointError, NumericError, Problem
from eutectic.kernels.digests import BLOCK
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


@dataclass(frozen=True, slots=True)
class _Slab:
    """Entries `first:first + numel` of a tensor of the view: all of it, or the slice that a unit of a stack is.

    `axes` are those of the place; the entries are made of `origin` of the model, from its entry `offset` on.
    """

    axes: tuple[Axis, ...]
    shape: tuple[int, ...]
    first: int
    origin: str
    offset: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class Aligned(Source):
    """A source as an element of its symmetry group makes it.

    Tensors whose units change places, or signs, keep their dtype and every bit of it. Where values change, tensors are
    float32 (float64 if they are stored so), so that a merge rounds once; `rounds` has the dtypes that they are stored
    with. Config, tokenizer and files are the source's own.

    Args:
        source: the model. Closing the view closes it.
        symmetries: its table. A name that is tied may stand in it, with the axes of the tensor that it is tied to.
        moves: the element.
        digests: tensor of the source → digest of its bytes; those of every tensor that is read are compared.
        reference: the same of the model that this one is aligned to, to tell when the two are mixed up.
        to: the label of that one.
        label: its short name; by default the source's.
        artefact: where the moves were read from, which is closed with the view.

    Raises `CheckpointError`: G101–G103 where the table does not fit the source, G113 for tied tensors that would move
    apart, G114 for tensors that cannot be multiplied. Reading raises `NumericError` (G115) for other bytes.
    """

    def __init__(
        self,
        source: Source,
        symmetries: Symmetries,
        moves: Moves,
        *,
        digests: Mapping[str, str] | None = None,
        reference: Mapping[str, str] | None = None,
        to: str = "",
        label: str | None = None,
        artefact: Source | None = None,
    ) -> None:
        self.label, self.to = label or source.label, to
        self.path = "" if label else source.path
        self.ties, self.implied, self.ignored = source.ties, source.implied, source.ignored
        self.metadata, self.chat_template = source.metadata, source.chat_template
        self._artefact = artefact
        self._source, self._moves, self._groups = source, moves, symmetries.groups
        self._said, self._reference = digests or {}, reference or {}
        problems = [*unfit(symmetries, source)]
        if problems:
            raise CheckpointError(problems)
        self.specs: dict[str, Spec] = {}
        self.rounds: dict[str, str] = {}
        self._slabs: dict[str, tuple[_Slab, ...]] = {}
        for name in source.specs:
            self._slabs[name] = tuple(_slabs(name, source, symmetries, moves))
            self._specify(name, problems)
        if problems:
            raise CheckpointError(problems)
        self._content = _content(symmetries, moves)
        self._locks = {name: threading.Lock() for name in self._said}
        self._checked: set[str] = set()
        self._lock = threading.Lock()
        self._kept: tuple[Any, Tensor] | None = None

    def _specify(self, name: str, problems: list[Problem]) -> None:
        slabs = self._slabs[name]
        spec = self._source.specs[slabs[0].origin if slabs else name]
        changes = {change_of(slab.axes, self._moves, self._groups) for slab in slabs}
        if changes & {"signs", "values"} and not dtypes.is_float(spec.dtype):
            problems.append(Problem("G114", f"is {spec.dtype}, and the moves multiply it", name))
        if "values" in changes and spec.dtype != "float64":
            self.rounds[name] = spec.dtype
            spec = Spec("float32", spec.shape)
        self.specs[name] = spec

    # Reading

    def read_into(self, name: str, start: int, stop: int, out: memoryview) -> None:
        itemsize = dtypes.itemsize(self.specs[name].dtype)
        for slab in self._slabs[name]:
            low, high = max(start, slab.first), min(stop, slab.first + slab.numel)
            if low < high:
                self._check(slab.origin)
                part = out[(low - start) * itemsize : (high - start) * itemsize]
                self._read_slab(name, slab, low - slab.first, high - slab.first, part)

    def _read_slab(self, name: str, slab: _Slab, start: int, stop: int, out: memoryview) -> None:
        """Entries `start:stop` of a slab."""
        dtype = self.specs[name].dtype
        if not change_of(slab.axes, self._moves, self._groups) and dtype == self._source.specs[slab.origin].dtype:
            self._source.read_into(slab.origin, slab.offset + start, slab.offset + stop, out)
            return
        row = math.prod(slab.shape[1:])
        itemsize = dtypes.itemsize(dtype)
        for piece in pieces(slab.axes, self._moves):
            low, high = max(start, piece.first * row), min(stop, piece.last * row)
            if low >= high:
                continue
            if piece.whole:
                tensor = self._made_once(name, slab, piece, dtype)
            else:
                piece = replace(piece, first=low // row, last=-(-high // row))
                tensor = self._made(slab, piece, dtype)
            bits = tensor.reshape(-1).view(torch.uint8).numpy().data
            first = piece.first * row
            out[(low - start) * itemsize : (high - start) * itemsize] = bits[
                (low - first) * itemsize : (high - first) * itemsize
            ]

    def _made_once(self, name: str, slab: _Slab, piece: Piece, dtype: str) -> Tensor:
        """A piece that is made whole is kept until another one is wanted."""
        key = (name, slab.first, piece.first)
        with self._lock:
            if self._kept is None or self._kept[0] != key:
                self._kept = (key, self._made(slab, piece, dtype))
            return self._kept[1]

    def _made(self, slab: _Slab, piece: Piece, dtype: str) -> Tensor:
        stored = self._source.specs[slab.origin].dtype
        rest, itemsize = slab.shape[1:], dtypes.itemsize(stored)
        row = math.prod(rest)
        # Whatever only changes places is moved as bits.
        seen = stored if dtypes.is_float(stored) else f"int{8 * itemsize}"

        def read(runs: Sequence[tuple[int, int]]) -> Tensor:
            count = sum(last - first for first, last in runs)
            rows = torch.empty((count, *rest), dtype=getattr(torch, seen))
            view, at = rows.reshape(-1).view(torch.uint8).numpy().data, 0
            for first, last in runs:
                end = at + (last - first) * row * itemsize
                self._source.read_into(slab.origin, slab.offset + first * row, slab.offset + last * row, view[at:end])
                at = end
            return rows

        tensor = made(piece, slab.axes, self._moves, read)
        return (tensor if seen != stored else tensor.to(getattr(torch, dtype))).contiguous()

    def _check(self, origin: str) -> None:
        """Compares a tensor with the one that was aligned, when it is first read."""
        if origin not in self._locks:
            return
        with self._locks[origin]:
            if origin in self._checked:
                return
            found = self._source.digest(origin)
            if found != self._said[origin]:
                raise NumericError(self._other(origin, found))
            self._checked.add(origin)

    def _other(self, name: str, found: str) -> Problem:
        message = f"{self._source.label} is not the model that was aligned: the tensor has other bytes"
        hint = "align this model, with `eutectic align`"
        if found == self._reference.get(name):
            message += ", those of the model that it was aligned to"
            hint = "`aligned` belongs beside the other model: the second that `eutectic align` was given"
        return Problem("G115", message, name, hint)

    def working_bytes(self) -> int:
        most = 0
        for name, slabs in self._slabs.items():
            itemsize = dtypes.itemsize(self.specs[name].dtype)
            for slab in slabs:
                if change_of(slab.axes, self._moves, self._groups):
                    row = max(math.prod(slab.shape[1:]), 1)
                    rows = max((p.last - p.first for p in pieces(slab.axes, self._moves) if p.whole), default=0)
                    count = max(rows * row, min(slab.numel, BLOCK + 2 * row))
                    # Rows as they are read and in their order; float64 before and after; what is kept; matrices.
                    entries = count * (3 * itemsize + (24 if name in self.rounds else 0))
                    most = max(most, entries + _matrices(slab.axes, self._moves))
        return most

    # What is the source's own

    def identity(self) -> dict[str, Any]:
        return {**self._source.identity(), "label": self.label, "aligned": {"to": self.to, "moves": self._content}}

    def stamp(self) -> Any:
        return [self._source.stamp(), self._content]

    def files(self) -> Mapping[str, int] | None:
        return self._source.files()

    def check_unchanged(self) -> None:
        self._source.check_unchanged()

    def close(self) -> None:
        self._source.close()
        if self._artefact is not None:
            self._artefact.close()

    def folder(self) -> str | None:
        return self._source.folder()

    def tokenizer_folder(self) -> str | None:
        return self._source.tokenizer_folder()

    def beside(self, name: str) -> bytes | None:
        return self._source.beside(name)


def unfit(symmetries: Symmetries, source: Source) -> Iterator[Problem]:
    """Why a table does not fit a model: as `Symmetries.problems`, and G113 for tied tensors that would move apart."""
    tied = {alias: kept for alias, kept in {**source.implied, **source.ties}.items() if alias in symmetries.axes}
    problems = symmetries.problems({**source.specs, **{alias: source.specs[kept] for alias, kept in tied.items()}})
    yield from problems
    if problems:
        return
    for alias, kept in tied.items():
        if kept in symmetries.axes and _effect(symmetries, alias) != _effect(symmetries, kept):
            yield Problem("G113", f"is tied to {kept}, and its symmetries are others", alias)


def _effect(symmetries: Symmetries, name: str) -> list[list[tuple[tuple[Factor, ...], str]]]:
    """What moves do along each axis. Being made or being read makes no difference to places, signs and rotations."""

    def role(part: Part) -> str:
        scales = {symmetries.groups[one.group].scale for one in part.factors if one.group}
        kinds = {symmetries.gauges[one.gauge].kind for one in part.factors if one.gauge}
        if not kinds and scales <= {""}:
            return ""
        return (
            "made or read" if part.role != "order" and kinds <= {"orthogonal"} and scales <= {"", "sign"} else part.role
        )

    return [[(part.factors, role(part)) for part in parts] for parts in symmetries.axes[name]]


def _matrices(axes: tuple[Axis, ...], moves: Moves) -> int:
    """Bytes of the matrices by which entries are multiplied: products take a copy of them."""
    gauges = {factor.gauge for parts in axes for part in parts for factor in part.factors}
    return sum(matrices.nbytes for gauge, matrices in moves.matrices.items() if gauge in gauges)


def _slabs(name: str, source: Source, symmetries: Symmetries, moves: Moves) -> Iterator[_Slab]:
    shape = source.specs[name].shape
    if name in symmetries.axes:
        yield _Slab(symmetries.axes[name], shape, 0, symmetries.taker(name, moves), 0)
        return
    size = math.prod(shape[1:])
    for number in range(shape[0]):
        place = f"{name}[{number}]"
        taker = symmetries.taker(place, moves)
        unit = int(taker.removeprefix(f"{name}[").removesuffix("]"))
        yield _Slab(symmetries.axes[place], shape[1:], number * size, name, unit * size)


def _content(symmetries: Symmetries, moves: Moves) -> str:
    """SHA-256 of all that decides what the view makes of a model."""
    found = hashlib.sha256(json.dumps(symmetries.as_json(), sort_keys=True).encode())
    for kind in (moves.orders, moves.scales, moves.matrices):
        for name in sorted(kind):
            found.update(json.dumps([name, list(kind[name].shape)]).encode())
            found.update(kind[name].contiguous().numpy().tobytes())
    return found.hexdigest()
