"""jobs -> blocks of stored bits: reads the inputs of a job, applies its method, hands back the output's bits.

This is all that the engine, the lazy merge and `verify` share: what a block is, and how one is computed.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic import dtypes
from eutectic.checkpoint import Source
from eutectic.errors import NumericError, Problem, RecipeError
from eutectic.kernels.bits import EXPONENT, STORED
from eutectic.kernels.digests import BLOCK, block_digest
from eutectic.kernels.random import Rng
from eutectic.kernels.streams import Block, Stream, StreamJob
from eutectic.lazy import LazyModule
from eutectic.plan import Job, Plan
from eutectic.run.reference import Reference

if TYPE_CHECKING:
    from eutectic.kernels import fused
else:
    fused = LazyModule("eutectic.kernels.fused")

CODES: dict[str, tuple[str, str]] = {
    "N501": (
        "NaN or infinity in an input",
        "A merge with a broken input is broken, so it stops. Find out why the model has these values; with "
        "`--nonfinite count` the merge goes on and the manifest counts them for every tensor.",
    ),
    "N502": (
        "NaN or infinity produced",
        "The inputs are finite but the result does not fit the output's dtype, as float16 ends at 65504. Choose "
        "`out_dtype: bfloat16` or `float32`, or smaller weights.",
    ),
    "N503": (
        "integer buffers that differ",
        "Integer and boolean tensors are copied, never averaged, and here the models disagree. Say whose to take with "
        "`buffers_from: MODEL` (or `base`). Many large ones mean that a model is quantised: dequantise it first.",
    ),
}


@dataclass(slots=True)
class Made:
    """One computed block: its bits, the digests of what was read and written, and how many inputs are not finite."""

    bits: NDArray[Any]
    digest: bytes
    inputs: list[bytes]
    nonfinite: list[int]


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of work: entries `first : first + count` of one job. Streams number their jobs within the group."""

    job: int
    within: int
    index: int
    first: int
    count: int


class Group:
    """Jobs that share a stream, or one that is copied. Units can be made once nothing is `pending`."""

    def __init__(self, plan: Plan, jobs: list[int], device: str, reference: bool) -> None:
        self.jobs = jobs
        self.stream: Stream | None = None
        first = plan.jobs[jobs[0]]
        if first.action == "merge":
            described = [_described(plan, job) for job in jobs]
            if plan.method.streamed is None or in_torch(plan, device, reference):
                self.stream = Reference(plan.method, described, device)
            else:
                self.stream = plan.method.streamed(described)
        # Whether each tensor is one unit, as its method cannot be computed in parts.
        self.whole = isinstance(self.stream, Reference) and not plan.method.elementwise
        self.units = [
            unit for within, job in enumerate(jobs) for unit in _units(plan.jobs[job], job, within, self.whole)
        ]
        self.within = {job: within for within, job in enumerate(jobs)}
        self.unit_counts = Counter(unit.job for unit in self.units)

    @property
    def pending(self) -> bool:
        """True while reductions are due."""
        return self.stream is not None and self.stream.pending

    def wanted(self) -> list[Unit]:
        """The units that the present reduction needs."""
        assert self.stream is not None
        return [unit for unit in self.units if self.stream.wants(unit.index)]


def in_torch(plan: Plan, device: str, reference: bool) -> bool:
    """Whether the plain torch form of the method is used. A GPU has none that ranks a whole model."""
    on_device = device != "cpu" and plan.recipe.scope == "tensor"
    return reference or on_device or plan.method.streamed is None


def _as_stored(plan: Plan, number: int) -> bool:
    """Whether the inputs of a job are read straight into a block: all of one dtype, and that the one to work in."""
    job = plan.jobs[number]
    kinds = {plan.inputs[i].specs[name].dtype for i, name in job.inputs}
    return len(kinds) == 1 and ("float64" in kinds) == (plan.working[number] == "float64")


def _units(job: Job, number: int, within: int, whole: bool) -> list[Unit]:
    numel = job.spec.numel
    step = max(numel, 1) if whole else BLOCK
    return [Unit(number, within, i, first, min(step, numel - first)) for i, first in enumerate(range(0, numel, step))]


def _described(plan: Plan, number: int) -> StreamJob:
    """The job as its stream sees it; parameters under the names that the method's function has."""
    job = plan.jobs[number]
    bound = {("lambda_" if name == "lambda" else name): value for name, value in job.parameters.items()}
    bases = 1 if plan.method.space == "deltas" else 0
    if plan.method.random:
        labels = tuple(plan.inputs[i].label for i, _ in job.inputs[bases:])
        bound["rng"] = Rng(plan.seed, job.name, labels)
    bound["wide"] = plan.working[number] == "float64"
    return StreamJob(job.spec.numel, len(job.inputs) - bases, bound, job.spec.shape)


def block_bytes(plan: Plan, number: int, device: str, reference: bool) -> int:
    """Memory that one worker needs for one unit of this job: inputs, output and scratch."""
    job = plan.jobs[number]
    if job.action == "copy":
        return 2 * min(job.spec.numel, BLOCK) * dtypes.itemsize(job.spec.dtype)
    torch_form = in_torch(plan, device, reference)
    whole = torch_form and not plan.method.elementwise
    count = job.spec.numel if whole else min(job.spec.numel, BLOCK)
    stored = sum(dtypes.itemsize(plan.inputs[i].specs[name].dtype) for i, name in job.inputs)
    held = count * (stored + dtypes.itemsize(job.spec.dtype))
    if not _as_stored(plan, number):
        held += count * len(job.inputs) * dtypes.itemsize(plan.working[number])
    if torch_form:
        # Plain torch: stacked floats, a sparse copy, float64 sums.
        return held + count * (len(job.inputs) * plan.method.scratch + 40)
    # Two groups may be counting at a time, each with a histogram a model and worker.
    return held + 2 * len(job.inputs) * (1 << 17) * 8


class Loader:
    """Reads blocks and computes them, from any number of threads, each with buffers of its own."""

    def __init__(self, plan: Plan, sources: list[Source], *, count_nonfinite: bool) -> None:
        self.plan = plan
        self.sources = sources
        self._count = count_nonfinite
        self._local = threading.local()
        self._spare: deque[NDArray[np.uint8]] = deque()

    def load(self, unit: Unit) -> Block:
        """The inputs of a unit, ready for a stream. Valid until this thread loads the next one."""
        return Block(unit.within, unit.index, unit.first, self._read(unit, None))

    def make(self, group: Group, unit: Unit, held: Block | None = None) -> Made:
        """Computes a unit of a group whose reductions are done. `held` is its block if it is still in memory."""
        job = self.plan.jobs[unit.job]
        if group.stream is None:
            return self._copy(job, unit)
        seen: list[tuple[bytes, int]] = []
        if held is None:
            held = Block(unit.within, unit.index, unit.first, self._read(unit, seen))
        else:
            seen = [self._look_at(job, k, row) for k, row in enumerate(held.bits)]
        nonfinite = [bad for _, bad in seen]
        out = self._result(unit.count, STORED[job.spec.dtype])
        group.stream.combine(held, out)
        if not sum(nonfinite):
            _check_result(job, out, "choose out_dtype: bfloat16 or float32, or smaller weights")
        return Made(out, _digests(out), [digest for digest, _ in seen], nonfinite)

    def holdable(self, unit: Unit) -> int:
        """Bytes that keeping the block this thread loaded last would take; 0 if it cannot be kept (it was converted).

        The block keeps the whole of the thread's buffer, which an earlier block may have made larger.
        """
        buffer: NDArray[np.uint8] = self._local.buffer
        return buffer.nbytes if _as_stored(self.plan, unit.job) else 0

    def check_copies(self) -> None:
        """Raises `RecipeError` for every integer buffer that differs between models, before anything is written."""
        problems = []
        for number, job in enumerate(self.plan.jobs):
            if job.action != "copy" or len(job.inputs) < 2:
                continue
            for unit in _units(job, number, 0, False):
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
        row: NDArray[Any] = np.empty(unit.count, stored)
        self.sources[number].read_into(name, unit.first, unit.first + unit.count, row.view(np.uint8).data)
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
                _check_result(job, out, "choose out_dtype: bfloat16 or float32")
        digest = _digests(row)
        others = [digest] * len(job.inputs)  # equal, or refused by `check_copies`
        return Made(out, _digests(out), others, nonfinite * len(job.inputs))

    def _read(self, unit: Unit, seen: list[tuple[bytes, int]] | None) -> NDArray[Any]:
        """Bits of every input in one array; `seen` takes the digest and the count of each as it is stored."""
        job = self.plan.jobs[unit.job]
        work = self.plan.working[unit.job]
        direct = _as_stored(self.plan, unit.job)
        number, first = job.inputs[0]
        dtype = STORED[self.plan.inputs[number].specs[first].dtype] if direct else work
        bits = self._buffer(len(job.inputs), unit.count, dtype)
        for k, (row, (i, name)) in enumerate(zip(bits, job.inputs, strict=True)):
            if direct:
                stored = row
                self.sources[i].read_into(name, unit.first, unit.first + unit.count, row.view(np.uint8).data)
            else:
                stored = self._raw(i, name, unit)
                row[:] = _converted(stored, work)
            if seen is not None:
                # At once, while the row is still in the cache.
                seen.append(self._look_at(job, k, stored))
        return bits

    def _look_at(self, job: Job, k: int, row: NDArray[Any]) -> tuple[bytes, int]:
        return _digests(row), self._check_input(job, k, row)

    def _buffer(self, rows: int, count: int, dtype: Any) -> NDArray[Any]:
        """This thread's buffer, reused: fresh memory for every block would cost more than filling it."""
        nbytes = rows * count * np.dtype(dtype).itemsize
        kept: NDArray[np.uint8] | None = getattr(self._local, "buffer", None)
        if kept is None:
            with suppress(IndexError):
                kept = self._spare.pop()
        if kept is None or kept.nbytes < nbytes:
            kept = np.empty(nbytes, np.uint8)
        self._local.buffer = kept
        shaped: NDArray[Any] = kept[:nbytes].view(dtype).reshape(rows, count)
        return shaped

    def _result(self, count: int, dtype: Any) -> NDArray[Any]:
        """This thread's buffer for results, reused as well."""
        nbytes = count * np.dtype(dtype).itemsize
        kept: NDArray[np.uint8] | None = getattr(self._local, "result", None)
        if kept is None or kept.nbytes < nbytes:
            kept = self._local.result = np.empty(nbytes, np.uint8)
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
        number, name = job.inputs[k]
        item = self.plan.inputs[number]
        bad = count_nonfinite(row, item.specs[name].dtype)
        if bad and not self._count:
            raise NumericError(
                Problem(
                    "N501",
                    f"{bad} values of {item.label} are NaN or infinite",
                    name,
                    "mend the model, or pass `--nonfinite count` to go on and have them counted",
                )
            )
        return bad


def _check_result(job: Job, out: NDArray[Any], hint: str) -> None:
    """Raises `NumericError` (N502) for results of finite inputs that are not finite."""
    if bad := count_nonfinite(out, job.spec.dtype):
        raise NumericError(Problem("N502", f"{bad} values do not fit {job.spec.dtype}", job.name, hint))


def count_nonfinite(bits: NDArray[Any], dtype: str) -> int:
    """How many stored values are NaN or infinite."""
    words = bits.view(dtypes.BY_NAME[dtype].bits)
    width = 8 * words.itemsize
    exponent = EXPONENT[dtype]
    lanes = range(0, 64, width)
    whole = len(words) - len(words) % len(lanes)
    mask = sum(exponent << lane for lane in lanes)
    step = sum((1 << width - 1) - exponent << lane for lane in lanes)
    signs = sum(1 << width - 1 << lane for lane in lanes)
    found = int(fused.carries(words[:whole].view(np.uint64), np.uint64(mask), np.uint64(step)))
    rest = words[whole:] if not found & signs else words
    return int(fused.count_masked(rest, words.dtype.type(exponent)))


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
