"""plan × memory bound -> how many workers there may be and how much they may hold, or what is missing."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from eutectic.errors import Problem, ResourceError, several
from eutectic.kernels.digests import BLOCK
from eutectic.plan import Plan
from eutectic.run.gpu import LIBRARIES
from eutectic.run.groups import HISTOGRAM_BYTES, Work, block_bytes, gpu_bytes, in_torch, is_whole

MIB = 1 << 20
DEFAULT_MEMORY = 1 << 30

# What an interpreter with numpy and the compiled kernels takes, and with torch on top.
_BARE = 170 * MIB
_TORCH = 260 * MIB
# Journal records, Python objects and allocator slack beyond the buffers that are counted.
_SLACK = 48 * MIB

# Blocks held between passes save reading them again, but touching fresh memory costs more than reading it once from the
# page cache: what is held is used for several tensors, and is no more than the largest but `LARGER` of them take.
HOLD_BYTES, LARGER = 256 * MIB, 2

CODES: dict[str, tuple[str, str]] = {
    "M601": (
        "the memory bound is too small",
        "The merge needs at least this much resident memory at a time: the interpreter, and one block (or, for a "
        "method that needs whole tensors, one tensor) of every model. Raise `--memory`. Spectral methods and the step "
        "`svc` take one matrix of every model at a time: leave embeddings and heads out by filters on `spectral`. For "
        "other methods that need whole tensors, `leave_out` copies the large ones from one model.",
    ),
    "M603": (
        "an option that cannot be",
        "Threads, memory and shard size are whole numbers from 1 on, in Python as in the command; `nonfinite` is "
        "`stop` or `count`; the output is the name of a folder. The command takes sizes with a unit: 2GiB, 500MB, 5G.",
    ),
    "M604": (
        "the GPU's memory is too small",
        "A method that is not elementwise needs the whole of a tensor on the GPU: the stored bits of every model, and "
        "what the method makes of them. The CPU does the same merge, most methods in blocks.",
    ),
    "M602": (
        "the device cannot be used",
        "`--device cuda` needs a build of torch with CUDA and a visible GPU. Without one the CPU does the same merge.",
    ),
}


@dataclass(frozen=True, slots=True)
class Budget:
    """Workers, bytes that blocks may be held in between two passes, the peak that follows, and the least bound.

    `gpu_bytes` is what the merge takes of a GPU's memory.
    """

    threads: int
    hold_bytes: int
    peak_bytes: int
    least_bytes: int
    gpu_bytes: int = 0


def in_mib(nbytes: int) -> str:
    """Bytes in words, those of less than one MiB as they are."""
    return f"{nbytes // MIB} MiB" if nbytes >= MIB else several(nbytes, "byte")


def enough(nbytes: int) -> str:
    """The least bound that holds so many bytes, as `--memory` takes it: `420kB`, `37MiB`."""
    return f"{-(-nbytes // 1000)}kB" if nbytes < 10 * MIB else f"{-(-nbytes // MIB)}MiB"


def largest(budgets: Sequence[Budget]) -> Budget:
    """The budget of several plans that are done at once: that of the one which needs most."""
    return max(budgets, key=lambda budget: budget.least_bytes)


def resident_bytes() -> int:
    """Resident memory of this process now."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def plans_in(plan: Plan) -> Iterator[Plan]:
    """The plan and those of the recipes within it."""
    yield plan
    for item in plan.inputs:
        if item.plan is not None:
            yield from plans_in(item.plan)


def worker_bytes(plan: Plan, device: str = "cpu", reference: bool = False) -> int:
    """Memory one worker needs at most, nested recipes included: each level has a block in work at the same time."""
    return sum(
        max((block_bytes(work, number) for number in range(len(work.plan.jobs))), default=0)
        + max(_reading(work.plan), default=0)
        for work in _works(plan, device, reference)
    )


def _works(plan: Plan, device: str, reference: bool) -> Iterator[Work]:
    """The plan and those of the recipes within it, which are computed on the CPU."""
    for level in plans_in(plan):
        yield Work(level, device if level is plan else "cpu", reference)


def _reading(plan: Plan) -> Iterator[int]:
    """What reading takes beside the blocks, of each model that is computed as it is read."""
    return (item.source.working_bytes() for item in plan.inputs if item.source is not None)


def _for_whole_tensors(plan: Plan, device: str, reference: bool) -> tuple[str, str]:
    """What to say where one tensor, which must be whole in memory, is what needs it: which one, and a way out."""
    work = Work(plan, device, reference)
    sizes = {number: block_bytes(work, number) for number in range(len(plan.jobs))}
    largest = max(sizes, key=lambda number: sizes[number], default=0)
    if not sizes or not is_whole(work, largest):
        return "", ""
    job = plan.jobs[largest]
    switch = "solve" if "solve" in job.parameters else "spectral"
    steps = [step.name for step in job.post if switch in step.parameters]
    owner = plan.method.name if switch in job.parameters else steps[0] if steps else ""
    exclude = f"copy it from one model by `leave_out: {job.name}`"
    if owner:
        exclude = f"leave large tensors out of {owner} by filters on `{switch}`"
    return f" for the whole of {job.name} {list(job.spec.shape)}", f", or {exclude}"


def lane_bytes(plan: Plan) -> int:
    """Memory that each further merge of a sweep needs in one worker: what its reductions count."""
    return 2 * len(plan.inputs) * HISTOGRAM_BYTES


def make_budget(
    plan: Plan,
    *,
    memory: int,
    threads: int,
    device: str = "cpu",
    gpu_free: int = 0,
    reference: bool = False,
    lanes: int = 1,
) -> Budget:
    """Divides the bound; `lanes` plans like this one are done at once, `gpu_free` is what a GPU has for them.

    Raises `ResourceError` (M601, on a GPU M604) when not even one worker fits.
    """
    uses_torch = any(in_torch(work) or any(_reading(work.plan)) for work in _works(plan, device, reference))
    floor = max(resident_bytes(), _BARE + (_TORCH if uses_torch else 0)) + _SLACK
    floor += LIBRARIES if device != "cpu" else 0
    each = worker_bytes(plan, device, reference) + (lanes - 1) * lane_bytes(plan)
    left = memory - floor
    workers = min(threads, left // each if each else threads)
    if workers < 1:
        least = -(-(floor + each) // MIB)
        why, instead = _for_whole_tensors(plan, device, reference)
        message = f"the merge needs {least} MiB at least{why}, the bound is {in_mib(memory)}"
        raise ResourceError(Problem("M601", message, "memory", f"pass `memory={least} << 20` or more{instead}"))
    hold = min(_worth_holding(plan, workers), max(0, left - workers * each))
    workers, there = _on_gpu(Work(plan, device, reference), gpu_free, workers, lanes)
    return Budget(workers, hold, floor + workers * each + hold, floor + each, there)


def _on_gpu(work: Work, free: int, workers: int, lanes: int) -> tuple[int, int]:
    """How many workers a GPU has room for, and what they take of it. Raises `ResourceError` (M604) if none."""
    while True:
        needs = [gpu_bytes(work, number, workers, lanes) for number in range(len(work.plan.jobs))]
        most = max(needs, default=0)
        if most <= free:
            return workers, most
        if workers == 1:
            job = work.plan.jobs[needs.index(most)]
            message = (
                f"{job.name} {list(job.spec.shape)} takes {most >> 20} MiB of {work.device}, which has {free >> 20}"
            )
            hint = "use `device='cpu'`, or a GPU with more memory"
            raise ResourceError(Problem("M604", f"{message} MiB free", "device", hint))
        workers //= 2


def _worth_holding(plan: Plan, workers: int) -> int:
    """Bytes of input that are held between passes, where there is more than one."""
    if all(level.method.streamed is None for level in plans_in(plan)):
        return 0
    read = [sum(plan.inputs[i].specs[name].nbytes for i, name in job.reads) for job in plan.jobs]
    sizes = sorted(sum(read[job] for job in jobs) for jobs in plan.groups())
    # Models that are computed as they are read, recipes and views, are not in the page cache.
    computed = any(_reading(plan)) or any(item.plan is not None for item in plan.inputs)
    size = sizes[-1 if computed else max(-1 - LARGER, -len(sizes))] if sizes else 0
    # Whole blocks are held, and those of the next tensor before the last of this one are given up.
    block = max(
        (nbytes // -(-job.spec.numel // BLOCK) for nbytes, job in zip(read, plan.jobs, strict=True) if nbytes),
        default=0,
    )
    return min(HOLD_BYTES, size + (workers + 1) * min(block, size))
