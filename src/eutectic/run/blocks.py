"""jobs -> blocks of stored bits: reads the inputs of a job, applies its method, hands back the output's bits.

This is all that the engine, the lazy merge and `verify` share: what a block is, and how one is computed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic import dtypes
from eutectic.checkpoint import Source, Spec
from eutectic.errors import NumericError, Problem, RecipeError, several
from eutectic.kernels.bits import EXPONENT, STORED
from eutectic.kernels.digests import BLOCK, block_digest
from eutectic.kernels.outer_products import not_outer_products
from eutectic.kernels.streams import Block
from eutectic.lazy import LazyModule
from eutectic.plan import Job, Plan
from eutectic.run import gpu
from eutectic.run.groups import Group, Unit, as_stored, units_of

if TYPE_CHECKING:
    from eutectic.kernels import fused
else:
    fused = LazyModule("eutectic.kernels.fused")

# What holds larger numbers than a dtype.
_WIDER = {"float16": "bfloat16 or float32", "bfloat16": "float32", "float32": "float64"}

CODES: dict[str, tuple[str, str]] = {
    "N501": (
        "NaN or infinity in an input",
        "A merge with a broken input is broken, so it stops. Find out why the model has these values; with "
        "`--nonfinite count` the merge goes on and the manifest counts them for every tensor. A method called by hand "
        "refuses them too, and its `.function` takes them as they are.",
    ),
    "N502": (
        "NaN or infinity produced",
        "The inputs are finite but the result does not fit the output's dtype, as float16 ends at 65504. Choose a "
        "wider one, `out_dtype: bfloat16` or `float32`, or smaller weights.",
    ),
    "N503": (
        "integer buffers that differ",
        "Integer and boolean tensors are copied, never averaged, and here the models disagree. Say whose to take with "
        "`buffers_from: MODEL` (or `base`). Many large ones mean that a model is quantised: dequantise it first.",
    ),
    "N504": (
        "statistics of another model",
        "The statistics were measured of a model with other weights than the one they stand beside in the recipe: the "
        "digest of a tensor differs. Check that each model has its own, and collect them again if it was trained on.",
    ),
    "N506": (
        "a Gram matrix that is none",
        "A mean of outer products is symmetric, with squares on its diagonal. Statistics from elsewhere may hold "
        "something else, such as one triangle alone. `eutectic collect gram` measures.",
    ),
    "N505": (
        "a negative Fisher information",
        "It is a mean of squares; with negative weights an average is none. Statistics from elsewhere may hold "
        "something else, such as gradients that were not squared. `eutectic collect fisher` measures.",
    ),
}


@dataclass(slots=True)
class Made:
    """One computed block: its bits, the digests of what was read and written, and how many inputs are not finite."""

    bits: NDArray[Any]
    digest: bytes
    inputs: list[bytes]
    nonfinite: list[int]


class Loader:
    """Reads blocks and computes them, from any number of threads, each with buffers of its own."""

    def __init__(self, plan: Plan, sources: list[Source], *, count_nonfinite: bool, for_gpu: bool = False) -> None:
        self.plan = plan
        self._fresh: Callable[[int], NDArray[np.uint8]] = gpu.pinned if for_gpu else _pageable
        self.sources = sources
        self._count = count_nonfinite
        self._local = threading.local()
        self._spare: deque[NDArray[np.uint8]] = deque()

    def load(self, unit: Unit) -> Block:
        """The inputs of a unit, ready for a stream. Valid until this thread loads the next one."""
        return self._read(unit, None)

    def make(self, group: Group, unit: Unit, held: Block | None = None, lanes: Sequence[int] = (0,)) -> Iterator[Made]:
        """Computes a unit of a group whose reductions are done, with each of its streams that `lanes` names.

        `held` is the unit's block if it is still in memory. What is made is valid until the next is asked for.
        """
        job = self.plan.jobs[unit.job]
        if not group.streams:
            made = self._copy(job, unit)
            yield from (made for _ in lanes)
            return
        seen: list[tuple[bytes, int]] = []
        if held is None:
            held = self._read(unit, seen)
        else:
            seen = [self._look_at(job, k, row) for k, row in enumerate((*held.bits, *held.beside))]
        nonfinite = [bad for _, bad in seen]
        out = self._result(unit.count, STORED[job.spec.dtype])
        for lane in lanes:
            group.streams[lane].combine(held, out)
            if not sum(nonfinite) and not group.measures:
                _check_result(job, out)
            yield Made(out, _digests(out), [digest for digest, _ in seen], nonfinite)

    def holdable(self, unit: Unit) -> int:
        """Bytes that keeping the block this thread loaded last would take; 0 if it cannot be kept (it was converted).

        The block keeps the whole of the thread's buffer, which an earlier block may have made larger.
        """
        buffer: NDArray[np.uint8] = self._local.buffer
        return buffer.nbytes if as_stored(self.plan, unit.job) else 0

    def check_copies(self) -> None:
        """Raises `RecipeError` for every integer buffer that differs between models, before anything is written."""
        problems = []
        for number, job in enumerate(self.plan.jobs):
            if job.action != "copy" or len(job.inputs) < 2:
                continue
            for unit in units_of(job, number, 0, False):
                first_row = self._raw(*job.inputs[0], unit)
                odd = [
                    self.plan.inputs[i].label
                    for i, name in job.inputs[1:]
                    if not np.array_equal(self._raw(i, name, unit), first_row)
                ]
                if odd:
                    first = self.plan.inputs[job.inputs[0][0]].label
                    problems.append(
                        Problem(
                            "N503",
                            f"{job.spec.dtype} buffer differs between {first} and {', '.join(odd)}",
                            job.name,
                            "say whose to take with `buffers_from: MODEL` or `buffers_from: base`",
                        )
                    )
                    break
        if problems:
            raise RecipeError(problems)

    def _raw(self, number: int, name: str, unit: Unit) -> NDArray[Any]:
        spec = self.plan.inputs[number].specs[name]
        stored = STORED.get(spec.dtype) or np.dtype(dtypes.BY_NAME[spec.dtype].bits)
        row: NDArray[Any] = np.empty(unit.stop - unit.start, stored)
        self.sources[number].read_into(name, unit.start, unit.stop, row.view(np.uint8).data)
        return row

    def _copy(self, job: Job, unit: Unit) -> Made:
        number, name = job.inputs[0]
        row = self._raw(number, name, unit)
        spec = self.plan.inputs[number].specs[name]
        nonfinite = [self._check_input(job, 0, row)] if dtypes.is_float(spec.dtype) else [0]
        out = row
        if spec.dtype != job.spec.dtype:
            out = _converted(row, job.spec.dtype)
            if not nonfinite[0]:
                _check_result(job, out)
        digest = _digests(row)
        others = [digest] * len(job.inputs)  # equal, or refused by `check_copies`
        return Made(out, _digests(out), others, nonfinite * len(job.inputs))

    def _read(self, unit: Unit, seen: list[tuple[bytes, int]] | None) -> Block:
        """Bits of every input in one block; `seen` takes the digest and the count of each as it is stored."""
        job = self.plan.jobs[unit.job]
        work = self.plan.working[unit.job]
        direct = as_stored(self.plan, unit.job)
        number, first = job.inputs[0]
        dtype = STORED[self.plan.inputs[number].specs[first].dtype] if direct else work
        bits, beside = self._buffer(len(job.inputs), unit.stop - unit.start, dtype, self._besides(job, unit))
        own = slice(unit.before, unit.before + unit.count)
        for k, (row, (i, name)) in enumerate(zip(bits, job.inputs, strict=True)):
            if direct:
                stored = row
                self.sources[i].read_into(name, unit.start, unit.stop, row.view(np.uint8).data)
            else:
                stored = self._raw(i, name, unit)
                row[:] = _converted(stored, work)
            if seen is not None:
                # At once, while the row is still in the cache.
                seen.append(self._look_at(job, k, stored[own]))
        for k, (row, (i, name)) in enumerate(zip(beside, job.beside, strict=True), len(bits)):
            start, stop = self._range_beside(job, unit, i, name)
            self.sources[i].read_into(name, start, stop, row.view(np.uint8).data)
            if seen is not None:
                seen.append(self._look_at(job, k, row))
        return Block(unit.within, unit.index, unit.first, bits[:, own], bits, unit.before, beside)

    def _range_beside(self, job: Job, unit: Unit, number: int, name: str) -> tuple[int, int]:
        """The entries of a tensor beside those of the models that a unit needs: its own of one of the same form."""
        spec = self.plan.inputs[number].specs[name]
        return (unit.first, unit.first + unit.count) if spec.shape == job.spec.shape else (0, spec.numel)

    def _besides(self, job: Job, unit: Unit) -> list[tuple[int, Any]]:
        """How many entries of each tensor beside the models' a unit needs, and of what dtype."""
        found = []
        for number, name in job.beside:
            start, stop = self._range_beside(job, unit, number, name)
            found.append((stop - start, STORED[self.plan.inputs[number].specs[name].dtype]))
        return found

    def _look_at(self, job: Job, k: int, row: NDArray[Any]) -> tuple[bytes, int]:
        return _digests(row), self._check_input(job, k, row)

    def _buffer(
        self, rows: int, count: int, dtype: Any, beside: Sequence[tuple[int, Any]] = ()
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...]]:
        """This thread's buffer, reused: fresh memory for every block would cost more than filling it.

        Its first part is `rows` of `count` entries, what follows is for what is read besides.
        """
        sizes = [size * np.dtype(kind).itemsize for size, kind in [(rows * count, dtype), *beside]]
        ends = list(accumulate(_aligned(size) for size in sizes))
        nbytes = ends[-1]
        kept: NDArray[np.uint8] | None = getattr(self._local, "buffer", None)
        if kept is None:
            with suppress(IndexError):
                kept = self._spare.pop()
        if kept is None or kept.nbytes < nbytes:
            kept = self._fresh(nbytes)
        self._local.buffer = kept
        shaped: NDArray[Any] = kept[: sizes[0]].view(dtype).reshape(rows, count)
        parts = zip(ends, sizes[1:], beside, strict=False)
        return shaped, tuple(kept[first : first + size].view(kind) for first, size, (_, kind) in parts)

    def _result(self, count: int, dtype: Any) -> NDArray[Any]:
        """This thread's buffer for results, reused as well."""
        nbytes = count * np.dtype(dtype).itemsize
        kept: NDArray[np.uint8] | None = getattr(self._local, "result", None)
        if kept is None or kept.nbytes < nbytes:
            kept = self._local.result = self._fresh(nbytes)
        shaped: NDArray[Any] = kept[:nbytes].view(dtype)
        return shaped

    def keep(self) -> NDArray[np.uint8]:
        """Gives away this thread's buffer, so that the block loaded last stays valid until the buffer is given back."""
        kept: NDArray[np.uint8] = self._local.buffer
        self._local.buffer = None
        return kept

    def give_back(self, buffer: NDArray[np.uint8]) -> None:
        """Takes back what `keep` gave, for use by any thread."""
        self._spare.append(buffer)

    def _check_input(self, job: Job, k: int, row: NDArray[Any]) -> int:
        number, name = job.reads[k]
        item = self.plan.inputs[number]
        bad = count_nonfinite(row, item.specs[name].dtype)
        if bad and not self._count:
            mend = "mend the model" if item.about is None else "collect the statistics again"
            hint = f"{mend}, or pass `nonfinite='count'` to go on and have them counted"
            message = f"{several(bad, 'value')} of {item.label} {'is' if bad == 1 else 'are'} NaN or infinite"
            raise NumericError(Problem("N501", message, name, hint))
        if item.about and item.about.kind == "fisher" and (less := count_negative(row, item.specs[name].dtype)):
            hint = "a Fisher information is a mean of squares: collect the statistics again"
            message = f"{several(less, 'value')} of {item.label} {'is' if less == 1 else 'are'} negative"
            raise NumericError(Problem("N505", message, name, hint))
        if item.about and item.about.kind == "gram" and (why := not_a_gram(row, item.specs[name])):
            hint = "collect the statistics again"
            raise NumericError(Problem("N506", f"{item.label} {why}", name, hint))
        return bad

    def check_measured(self, number: int, digests: Sequence[str]) -> None:
        """Raises `NumericError` (N504) if a model's tensor has other bytes than its statistics were measured of."""
        job, count = self.plan.jobs[number], len(self.plan.models)
        for (i, name), digest in zip(job.reads, digests, strict=True):
            artefact = self.plan.inputs[count + i] if i + count < len(self.plan.inputs) else None
            said = artefact.about.digests.get(name) if artefact and artefact.about else None
            if artefact and said not in (None, digest):
                model = self.plan.inputs[i]
                measured = f"{artefact.label} was measured of another model than {model.label}"
                hint = "collect the statistics of this model"
                if model.aligned:
                    # What such a recipe gives is rounded, and the view of it is not.
                    hint = (
                        "put a recipe in the model's place, `passthrough` of it as it is aligned, and collect of that"
                    )
                raise NumericError(Problem("N504", f"{measured}: the tensor has other bytes", name, hint))


def _pageable(nbytes: int) -> NDArray[np.uint8]:
    return np.empty(nbytes, np.uint8)


def _aligned(nbytes: int) -> int:
    """The next multiple of a cache line."""
    return -(-nbytes // 64) * 64


def _check_result(job: Job, out: NDArray[Any]) -> None:
    """Raises `NumericError` (N502) for results of finite inputs that are not finite."""
    if bad := count_nonfinite(out, job.spec.dtype):
        wider = _WIDER.get(job.spec.dtype)
        advice = [f"choose out_dtype: {wider}"] if wider else []
        hint = ", or ".join([*advice, *(["smaller weights"] if job.action == "merge" else [])])
        raise NumericError(
            Problem("N502", f"{several(bad, 'value', 'does', 'do')} not fit {job.spec.dtype}", job.name, hint)
        )


def count_nonfinite(bits: NDArray[Any], dtype: str) -> int:
    """How many stored values are NaN or infinite."""
    words = bits.view(dtypes.BY_NAME[dtype].bits)
    mask, step, signs = _carrying(dtype)
    whole = len(words) - len(words) % (8 // words.itemsize)
    found = int(fused.carries(words[:whole].view(np.uint64), mask, step))
    rest = words if found & signs else words[whole:]
    return int(fused.count_masked(rest, words.dtype.type(EXPONENT[dtype]))) if len(rest) else 0


@cache
def _carrying(dtype: str) -> tuple[np.uint64, np.uint64, int]:
    """What `fused.carries` takes for a dtype, and the bits that tell what it has found."""
    width, exponent = 8 * dtypes.itemsize(dtype), EXPONENT[dtype]
    lanes, sign = range(0, 64, width), 1 << width - 1
    mask, step = sum(exponent << lane for lane in lanes), sum(sign - exponent << lane for lane in lanes)
    return np.uint64(mask), np.uint64(step), sum(sign << lane for lane in lanes)


def count_negative(bits: NDArray[Any], dtype: str) -> int:
    """How many stored values are below zero; -0.0 and NaN are not."""
    words = bits.view(dtypes.BY_NAME[dtype].bits)
    signed = words.view(f"i{words.itemsize}") < 0
    if not signed.any():
        return 0
    return int(np.count_nonzero(_converted(bits[signed], "float64") < 0))


def not_a_gram(bits: NDArray[Any], spec: Spec) -> str:
    """Why a stored matrix, or a stack of them, is no mean of outer products; empty where it may be one."""
    if len(bits) != spec.numel or not spec.numel:
        return ""
    side = spec.shape[-1]
    # Collected matrices are float32, and are not copied.
    values = bits if bits.dtype.kind == "f" else _converted(bits, "float32")
    return not_outer_products(values.reshape(-1, side, side))


def _converted(row: NDArray[Any], dtype: str) -> NDArray[Any]:
    out: NDArray[Any] = np.empty(len(row), STORED[dtype])
    fused.convert(row, out)
    return out


def _digests(row: NDArray[Any]) -> bytes:
    """The digests of the blocks of 2²⁰ entries in `row`, one after the other."""
    return b"".join(block_digest(row[i : i + BLOCK]) for i in range(0, len(row), BLOCK))


def sources_of(plan: Plan, nested: Mapping[int, Source]) -> list[Source]:
    """Every input as a source; `nested` has those for recipes within the recipe."""
    found = []
    for number, item in enumerate(plan.inputs):
        source = nested.get(number, item.source)
        assert source is not None
        found.append(source)
    return found
