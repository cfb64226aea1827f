"""plans -> groups of jobs with their streams: what is reduced together, in which pieces, and what memory that takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from eutectic import dtypes
from eutectic.kernels.digests import BLOCK
from eutectic.kernels.random import Rng
from eutectic.kernels.ranked import row_length
from eutectic.kernels.streams import Block, Stream, StreamJob
from eutectic.methods import POSTS
from eutectic.plan import Job, Plan
from eutectic.run.gpu import WORKSPACE, pinned_size
from eutectic.run.on_gpu import OnGpu
from eutectic.run.post import PostProcessed, Tally
from eutectic.run.reference import Reference

# Bytes that singular value calibration takes an entry and model: float64 copies and the singular vectors.
SVC_SCRATCH = 24
# Bytes that solving with Gram matrices takes an entry of one of them: float64 sums, their factor, or eigenvectors.
GRAM_SCRATCH = 56
# Bytes that the random words of an entry take while they are made on a GPU.
RANDOM_SCRATCH = 96
# What counting the magnitudes of one model takes.
HISTOGRAM_BYTES = (1 << 17) * 8


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of work: entries `first : first + count` of one job. Streams number their jobs within the group.

    `before` and `after` are how many more entries are read on either side, so that rows are whole.
    """

    job: int
    within: int
    index: int
    first: int
    count: int
    before: int = 0
    after: int = 0

    @property
    def start(self) -> int:
        """The first entry that is read."""
        return self.first - self.before

    @property
    def stop(self) -> int:
        """The entry after the last that is read."""
        return self.first + self.count + self.after


@dataclass(frozen=True)
class Work:
    """A plan and how its streams are made.

    Attributes:
        plan: what is done.
        device, reference: where, and whether in the plain torch form.
        factors: of the steps after the method, those factors that were measured over the whole model, by position.
        tally: while such a factor is measured: takes the norms of what the earlier steps leave.
    """

    plan: Plan
    device: str = "cpu"
    reference: bool = False
    factors: Mapping[int, float] = field(default_factory=dict)
    tally: Tally | None = None


class Group:
    """Jobs that share their streams, one stream for each plan, or jobs that are copied.

    The plans of a sweep differ in parameters only; their streams read the same blocks. Units can be made once nothing
    is `pending`.
    """

    def __init__(self, works: Sequence[Work], jobs: list[int]) -> None:
        self.jobs = jobs
        # Whether what is made is thrown away: then it need not fit the output's dtype.
        self.measures = works[0].tally is not None
        plan = works[0].plan
        merged = plan.jobs[jobs[0]].action == "merge"
        self.streams = [_stream(work, jobs) for work in works] if merged else []
        # A stream whose reductions are those of an earlier one takes them from there.
        self._leader = [
            next(i for i, other in enumerate(self.streams[: k + 1]) if i == k or stream.shares(other))
            for k, stream in enumerate(self.streams)
        ]
        self._leading = [stream for k, stream in enumerate(self.streams) if self._leader[k] == k]
        # The order in which the streams combine a block.
        self.order = sorted(range(len(works)), key=lambda k: self.streams[k].affinity if merged else "")
        # Whether each tensor is one unit, as a method or step cannot be computed in parts.
        self.whole = merged and any(is_whole(work, number) for work in works for number in jobs)
        self.units = [
            unit
            for within, job in enumerate(jobs)
            for unit in units_of(plan.jobs[job], job, within, self.whole, _row(plan, job))
        ]
        self.unit_at = {(unit.job, unit.index): unit for unit in self.units}
        self.unit_counts = Counter(unit.job for unit in self.units)

    @property
    def pending(self) -> bool:
        """True while reductions are due."""
        return any(stream.pending for stream in self._leading)

    def wanted(self) -> list[Unit]:
        """The units that the present reductions need."""
        due = [stream for stream in self._leading if stream.pending]
        return [unit for unit in self.units if any(stream.wants(unit.index) for stream in due)]

    def reduce(self, block: Block) -> None:
        """Takes one block into every reduction that needs it."""
        for stream in self._leading:
            if stream.pending and stream.wants(block.index):
                stream.reduce(block)

    def fold(self) -> None:
        """Ends the present reductions."""
        for stream in self._leading:
            if stream.pending:
                stream.fold()
        if not self.pending:
            for stream, leader in zip(self.streams, self._leader, strict=True):
                if stream is not self.streams[leader]:
                    stream.take(self.streams[leader])


def _stream(work: Work, jobs: list[int]) -> Stream:
    plan, method = work.plan, work.plan.method
    described = [stream_job(plan, number) for number in jobs]
    if any(on_gpu(work, number) for number in jobs):
        stream: Stream = OnGpu(method, described, work.device)
    elif method.streamed is None or any(_in_torch(work, number) for number in jobs):
        stream = Reference(method, described)
    else:
        stream = method.streamed(described)
    if not plan.recipe.post:
        return stream
    posts = [plan.jobs[number].post for number in jobs]
    return PostProcessed(stream, described, jobs, posts, work.factors, work.tally)


def is_whole(work: Work, number: int) -> bool:
    """Whether a tensor must be computed in one piece."""
    if _calibrated(work.plan.jobs[number]):
        return True
    method = work.plan.method
    # A GPU has room for a whole tensor of its own, but not for statistics of other forms.
    gathered = on_gpu(work, number) and not method.statistics
    return _in_torch(work, number) and not method.elementwise and not gathered


def in_torch(work: Work) -> bool:
    """Whether torch is used for any tensor."""
    jobs = work.plan.jobs
    return any(_in_torch(work, number) or _calibrated(job) for number, job in enumerate(jobs))


def _calibrated(job: Job) -> bool:
    """Whether a step after the method looks at the tensor's singular values."""
    return any(POSTS[step.name].matrix and step.parameters["spectral"] for step in job.post)


def on_gpu(work: Work, number: int) -> bool:
    """Whether a job is done by a GPU, which has no form that ranks a whole model."""
    merged = work.plan.jobs[number].action == "merge"
    return merged and work.device != "cpu" and work.plan.recipe.scope != "model"


def _in_torch(work: Work, number: int) -> bool:
    """Whether a job is done by the plain torch form."""
    plan, job = work.plan, work.plan.jobs[number]
    merged = job.action == "merge"
    return merged and (work.reference or on_gpu(work, number) or not plan.method.streams(job.parameters))


def as_stored(plan: Plan, number: int) -> bool:
    """Whether the inputs of a job are read straight into a block: all of one dtype, and that the one to work in."""
    job = plan.jobs[number]
    kinds = {plan.inputs[i].specs[name].dtype for i, name in job.inputs}
    return len(kinds) == 1 and ("float64" in kinds) == (plan.working[number] == "float64")


def _entry_bytes(plan: Plan, number: int) -> int:
    """Bytes that one entry of every input takes in a block: as it is stored, or as it is worked with."""
    job = plan.jobs[number]
    if not as_stored(plan, number):
        return len(job.inputs) * dtypes.itemsize(plan.working[number])
    return sum(dtypes.itemsize(plan.inputs[i].specs[name].dtype) for i, name in job.inputs)


def units_of(job: Job, number: int, within: int, whole: bool, row: int = 1) -> list[Unit]:
    """The units of a job, each to be read with the whole rows of `row` entries that it touches."""
    numel = job.spec.numel
    step = max(numel, 1) if whole else BLOCK
    counts = [(first, min(step, numel - first)) for first in range(0, numel, step)]
    return [
        Unit(number, within, i, first, count, first % row, -(first + count) % row)
        for i, (first, count) in enumerate(counts)
    ]


def _row(plan: Plan, number: int) -> int:
    """Entries in a row, for a method that works by rows."""
    by_row = plan.method.by_row or plan.recipe.scope == "row"
    return row_length(plan.jobs[number].spec.shape) if by_row else 1


def stream_job(plan: Plan, number: int) -> StreamJob:
    """The job as its stream sees it; parameters under the names that the method's function has."""
    job = plan.jobs[number]
    bound = {plan.method.keywords[name]: value for name, value in job.parameters.items()}
    bases = 1 if plan.method.space == "deltas" else 0
    if plan.method.random:
        labels = tuple(plan.inputs[i].label for i, _ in job.inputs[bases:])
        bound["rng"] = Rng(plan.seed, job.name, labels)
    bound["wide"] = plan.working[number] == "float64"
    beside = tuple(plan.inputs[i].specs[name].shape for i, name in job.beside)
    return StreamJob(job.spec.numel, len(job.inputs) - bases, bound, job.spec.shape, beside, job.layer)


def _beside_bytes(plan: Plan, job: Job, count: int) -> int:
    """What is read besides the models' tensors, of which a unit has `count` entries."""
    specs = [plan.inputs[i].specs[name] for i, name in job.beside]
    counts = [count if spec.shape == job.spec.shape else spec.numel for spec in specs]
    return sum(size * dtypes.itemsize(spec.dtype) + 64 for size, spec in zip(counts, specs, strict=True))


def block_bytes(work: Work, number: int) -> int:
    """Memory that one worker needs for one unit of this job: inputs, output and scratch."""
    plan = work.plan
    job = plan.jobs[number]
    if job.action == "copy":
        return 2 * min(job.spec.numel, BLOCK) * dtypes.itemsize(job.spec.dtype)
    whole = is_whole(work, number)
    # Rows that begin before a block or end after it are read as a whole.
    count = job.spec.numel if whole else min(job.spec.numel, BLOCK + 2 * (_row(plan, number) - 1))
    beside, made = _beside_bytes(plan, job, count), count * dtypes.itemsize(job.spec.dtype)
    if on_gpu(work, number):
        held = pinned_size(count * _entry_bytes(plan, number) + beside) + pinned_size(made)
    else:
        stored = sum(dtypes.itemsize(plan.inputs[i].specs[name].dtype) for i, name in job.inputs)
        held = count * stored + made + beside
    if not as_stored(plan, number):
        held += count * len(job.inputs) * dtypes.itemsize(plan.working[number])
    # The change before and after the steps, the base and the deltas as floats.
    held += count * (2 + len(job.inputs)) * 8 if job.post else 0
    held += count * len(job.inputs) * SVC_SCRATCH if _calibrated(job) else 0
    if _in_torch(work, number):
        return held if on_gpu(work, number) else held + _torch_bytes(plan, job, count)
    held += count * len(job.inputs) * plan.method.working * dtypes.itemsize(plan.working[number])
    if plan.method.elementwise:
        return held
    # What ranking a row takes: its keys, their order, and a factor a model.
    held += _row(plan, number) * (len(job.inputs) + 5) * 8
    # Two groups may be counting at a time, each with a histogram a model and worker.
    return held + 2 * len(job.inputs) * HISTOGRAM_BYTES


def _torch_bytes(plan: Plan, job: Job, count: int) -> int:
    """What the plain torch form of a method takes for so many entries: floats, a sparse copy, float64 sums."""
    specs = [plan.inputs[i].specs[name] for i, name in job.beside]
    grams = max((spec.numel for spec in specs[: len(job.inputs)]), default=0) if job.layer else 0
    # A bias is solved with the whole of its weight.
    count += max((spec.numel for spec in specs[len(job.inputs) :]), default=0)
    return count * (len(job.inputs) * plan.method.scratch + 40) + grams * GRAM_SCRATCH


def gpu_bytes(work: Work, number: int, workers: int, lanes: int) -> int:
    """Memory that a job takes of the GPU it is done on: that of every worker's block, or that of the whole tensor.

    While one tensor is computed, the next is on its way up, and the result of the last on its way down. Between two
    merges of a sweep, which share what one tensor is made into, another tensor may be computed.
    """
    plan, job = work.plan, work.plan.jobs[number]
    if not on_gpu(work, number):
        return 0
    read = _entry_bytes(plan, number)
    gathered = not plan.method.elementwise and not plan.method.statistics
    count = min(job.spec.numel, BLOCK) if plan.method.elementwise else job.spec.numel
    # Random words are made as 64-bit integers.
    computing = _torch_bytes(plan, job, count) * 5 // 4 + (count * RANDOM_SCRATCH if plan.method.random else 0)
    computing += WORKSPACE if not plan.method.elementwise else 0
    if gathered:
        # Merges of a sweep that measure what they make of a tensor have reductions of their own.
        apart = any(step.name == "norm_guard" and not step.measures_model for step in job.post)
        held = 2 * read * (lanes if apart else 1) + 2 * lanes * dtypes.itemsize(plan.working[number])
        return count * held + min(lanes, 2) * computing
    return workers * (count * read + _beside_bytes(plan, job, count) + computing)
