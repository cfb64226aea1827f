"""Plans -> folders: one merge, or the merges of a sweep in one pass over their inputs."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, Self

from eutectic import dtypes
from eutectic.checkpoint import REAL, Storage
from eutectic.checkpoint.companions import Companions, companions
from eutectic.checkpoint.existing import SWEEP
from eutectic.checkpoint.layout import INDEX, index_of, lay_out
from eutectic.checkpoint.output import AlreadyCompleteError, Output
from eutectic.errors import InterruptedMergeError, NumericError, OutputError, Problem, RecipeError, listed, several
from eutectic.kernels.digests import block_digest, digest_of
from eutectic.paths import folder_name
from eutectic.plan import Plan
from eutectic.report.manifest import manifest_of
from eutectic.run import gpu
from eutectic.run.budget import DEFAULT_MEMORY, Budget, largest, make_budget, resident_bytes
from eutectic.run.engine import Engine, Lane
from eutectic.run.groups import Work
from eutectic.run.measure import measured
from eutectic.run.merged import loader_for
from eutectic.run.refusals import check_device, refuse_overlap, refuse_reference, sources_in
from eutectic.run.signals import Stop, stop_on_signals

OnPlan = Callable[[Plan, Budget, Sequence[str]], None]

# As transformers and mergekit have it.
SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Options:
    """How to run, as opposed to what to compute. The bytes of the weights depend on none of these, but for the last
    bit of sums over a tensor, which `device` and `reference` add in another order.

    Attributes:
        threads: workers, None for all cores, or up to six beside a GPU; the memory bound may allow fewer.
        memory: bound on the process's resident memory, in bytes; None is 1 GiB beyond what it holds already.
        device: `cpu`, `cuda` or `cuda:N`.
        shard_bytes: largest output file, in bytes of tensors.
        replace: replace an existing output, and discard unfinished work of another merge.
        nonfinite: `stop` at NaN or infinity in an input, or `count` them and go on.
        reference: use the plain torch form of the method, as a cross-check (slow, whole tensors in memory).
    """

    threads: int | None = None
    memory: int | None = None
    device: str = "cpu"
    shard_bytes: int = SHARD_BYTES
    replace: bool = False
    nonfinite: str = "stop"
    reference: bool = False

    def __post_init__(self) -> None:
        """Raises `RecipeError` (M603) with every option that cannot be."""
        problems = []
        for name in ("threads", "memory", "shard_bytes"):
            value = getattr(self, name)
            if value is None and name != "shard_bytes":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                problems.append(Problem("M603", f"must be a whole number from 1 on, not {value!r}", name))
        for name in ("replace", "reference"):
            if not isinstance(getattr(self, name), bool):
                problems.append(Problem("M603", f"must be True or False, not {getattr(self, name)!r}", name))
        if self.nonfinite not in ("stop", "count"):
            problems.append(Problem("M603", f"must be 'stop' or 'count', not {self.nonfinite!r}", "nonfinite"))
        if problems:
            raise RecipeError(problems)


@dataclass(frozen=True, slots=True)
class Merge:
    """What a merge did.

    Attributes:
        path: the output folder.
        plan: what was done; its inputs are closed.
        budget: the memory it was given.
        seconds: wall time of the work.
        resumed: tensors that an interrupted run had finished.
        already_complete: the output existed and was exactly this merge; nothing was written.
        notes: what the user should know.
        nonfinite: NaN or infinite values in the inputs (with `nonfinite="count"`).
    """

    path: str
    plan: Plan
    budget: Budget
    seconds: float
    resumed: int
    already_complete: bool
    notes: tuple[str, ...]
    nonfinite: int = 0


class Run:
    """One output: its plan, its folder, and what goes beside the weights."""

    def __init__(
        self,
        planned: Plan,
        out: str,
        options: Options,
        storage: Storage,
        lanes: int = 1,
        held: dict[bytes, bytes] | None = None,
    ) -> None:
        """Reads what goes beside the weights, and writes nothing.

        `lanes` outputs are made together; what goes beside several of them is `held` once.
        """
        refuse_overlap(planned, out)
        refuse_reference(planned, options.reference)
        self.plan, self.options = planned, options
        self.beside = beside(planned, storage)
        if held is not None:
            self.beside.files = {name: held.setdefault(data, data) for name, data in self.beside.files.items()}
        self.notes = [*planned.notes, *self.beside.notes, *gpu.left_to_the_cpu(planned, options.device)]
        self.budget = budget_for(planned, options, lanes)
        self.shards = lay_out(planned.specs, {"format": "pt", **planned.ties}, options.shard_bytes)
        self.fingerprint = fingerprint_of(planned, options, self.beside)
        self.already_complete = False
        self.output = Output(
            out,
            self.shards,
            [(job.name, job.spec.numel, dtypes.itemsize(job.spec.dtype)) for job in planned.jobs],
            fingerprint=self.fingerprint,
            stamps=[source.stamp() for source in sources_in(planned)],
            replace=options.replace,
            storage=storage,
        )

    def interrupted(self, signal_number: int) -> InterruptedMergeError:
        """What was made is kept, and this says so."""
        self.output.flush()
        kept = f"{len(self.output.records)} of {several(len(self.plan.jobs), 'tensor')}"
        return InterruptedMergeError(
            Problem(
                "W407",
                f"stopped; {kept} are kept in {self.output.path}.partial",
                self.output.path,
                "the same command resumes",
            ),
            signal_number,
        )

    def complete(self) -> None:
        """Writes what stands beside the weights and lets the folder appear."""
        files = dict(self.beside.files)
        if (index := index_of(self.shards, self.plan.bytes_out)) is not None:
            files[INDEX] = index
        self.output.flush()
        manifest = manifest_of(
            self.plan,
            self.output.records,
            weights={shard.name: shard.identity() for shard in self.shards},
            fingerprint=self.fingerprint,
            shard_bytes=self.options.shard_bytes,
            files={name: digest_of([block_digest(data)]) for name, data in files.items()},
            notes=self.notes,
            out=self.output.path,
            gpu=gpu.name_of(self.options.device) if self.budget.gpu_bytes else "",
        )
        self.output.complete(files, manifest)

    def result(self, seconds: float) -> Merge:
        """What was done."""
        bad = sum(sum(record["nonfinite"]) for record in self.output.records.values())
        resumed = 0 if self.already_complete else self.output.resumed
        return Merge(
            self.output.path, self.plan, self.budget, seconds, resumed, self.already_complete, tuple(self.notes), bad
        )


def execute(
    runs: Sequence[Run], progress: Callable[[int], None] | None, on_open: Callable[[], None] = lambda: None
) -> list[Merge]:
    """Makes every output in one pass over the inputs that they share. Raises as `api.merge` does.

    `on_open` is called once every output has its place.
    """
    started = monotonic()
    first = runs[0]
    options = first.options
    counting, for_gpu = options.nonfinite == "count", any(run.budget.gpu_bytes for run in runs)
    loader = loader_for(first.plan, count_nonfinite=counting, reference=options.reference, for_gpu=for_gpu)
    with stop_on_signals() as stop:
        loader.check_copies()
        due: list[Run] = []
        try:
            for run in runs:
                try:
                    run.output.open(stop.event)
                    due.append(run)
                except AlreadyCompleteError:
                    run.already_complete = True
            on_open()
            if due:
                finished = _work(due, loader, stop, progress)
                for source in loader.sources:
                    source.check_unchanged()
                if not finished:
                    for run in due[1:]:
                        run.output.flush()
                    raise due[0].interrupted(stop.number)
            while due:
                due[0].complete()
                due.pop(0)
        except BaseException as error:
            for run in due:
                # What a broken model has made so far is of no use to any later command.
                run.output.abandon(remove=isinstance(error, NumericError))
            raise
    return [run.result(monotonic() - started) for run in runs]


def _work(runs: Sequence[Run], loader: Any, stop: Stop, progress: Callable[[int], None] | None) -> bool:
    """Runs the engine; False if it was stopped."""
    budget, options = largest([run.budget for run in runs]), runs[0].options
    if progress:
        progress(sum(run.plan.jobs[job].spec.nbytes for run in runs for job in run.output.records))
    shared: dict[str, Any] = {"threads": budget.threads, "hold_bytes": budget.hold_bytes, "stop": stop.event}
    works = [Work(run.plan, options.device, options.reference) for run in runs]
    works = measured(works, loader, **shared)
    lanes = [Lane(work, run.output, set(run.output.records)) for work, run in zip(works, runs, strict=True)]
    if stop.event.is_set():
        return False
    return Engine(lanes, loader, progress=progress, **shared).run()


def make(
    planned: Plan,
    out: str | os.PathLike[str],
    options: Options,
    on_plan: OnPlan | None,
    progress: Callable[[int], None] | None,
    storage: Storage,
) -> Merge:
    """Does what is planned, and closes the plan."""
    try:
        run = Run(planned, os.fspath(out), options, storage)
        if on_plan:
            on_plan(planned, run.budget, run.notes)
        return execute([run], progress)[0]
    finally:
        planned.close()


def checked(options: Options | None, out: str | os.PathLike[str], **functions: Any) -> Options:
    """The options, or the default ones. Raises `RecipeError` for what cannot be.

    `functions` are called meanwhile, those that are not None.
    """
    options = Options() if options is None else options
    problems = []
    if not isinstance(options, Options):
        problems.append(Problem("M603", f"must be eutectic.Options, not {type(options).__name__}", "options"))
    if folder_name(out) is None:
        problems.append(Problem("M603", f"must be the folder to make, not {out!r}", "out"))
    for name, function in functions.items():
        if function is not None and not callable(function):
            problems.append(Problem("M603", f"must be a function to call, not {function!r}", name))
    if problems:
        raise RecipeError(problems)
    check_device(options.device)
    return replace(options, device=gpu.numbered(options.device))


def changes_of(overrides: Any) -> list[Any]:
    """The changes to a recipe as a list: a text is one of them, as is what is none and will be refused as such.

    Raises `RecipeError` (R140) for a mapping, of which only the keys would be gone through.
    """
    if isinstance(overrides, Mapping):
        hint = f"write {[f'{key}={value}' for key, value in overrides.items()]}"
        raise RecipeError(Problem("R140", "must be a list of texts KEY=VALUE, not a mapping", "overrides", hint))
    several = isinstance(overrides, Iterable) and not isinstance(overrides, str)
    return list(overrides) if several else [overrides]


class SweepFolder:
    """The folder that the merges of a sweep stand in, with a table of the values that each has.

    Looked at and made on entry; where no merge got so far as to leave anything, it is gone after a failure. `notes`
    says what an earlier sweep left there.

    Raises `RecipeError` (W401) where something else stands, `OutputError` (W405) where it cannot be written.
    """

    def __init__(self, path: str, choices: Mapping[str, Mapping[str, Any]], storage: Storage) -> None:
        self._path, self._choices, self._storage = path, choices, storage
        self._table = os.path.join(path, SWEEP)
        self.notes: list[str] = []

    def __enter__(self) -> Self:
        try:
            self._earlier()
            if not self._storage.exists(self._path):
                self._storage.mkdir(self._path)
        except OSError as error:
            raise OutputError(self._unwritable(error)) from error
        return self

    def write(self) -> None:
        """Writes the table. Called when every merge has its place: a sweep that is refused changes nothing."""
        try:
            earlier = self._earlier()
            stale = {label: earlier[label] for label in earlier if self._stands(label) and label not in self._choices}
            if stale:
                self.notes.append(f"{self._path} keeps {listed(list(stale))} of an earlier sweep")
            table = json.dumps({**stale, **self._choices}, indent=1) + "\n"
            self._storage.write_file(self._table, table.encode())
        except OSError as error:
            raise OutputError(self._unwritable(error)) from error

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not None and set(self._storage.listdir(self._path)) <= {SWEEP}:
                self._storage.remove_tree(self._path)
        except OSError as error:
            raise OutputError(self._unwritable(error)) from error

    def _earlier(self) -> dict[str, Any]:
        """The table that stands there; empty for a new folder."""
        if not self._storage.exists(self._path):
            return {}
        hint = "choose another name"
        if not self._storage.is_dir(self._path):
            raise RecipeError(Problem("W401", "exists and is not a folder", self._path, hint))
        own = {name for label in self._choices for name in (label, f"{label}.partial")}
        if own.issuperset(self._storage.listdir(self._path)):
            # Nothing, or work of this sweep that was stopped before it had a table.
            return {}
        try:
            found = json.loads(self._storage.read_bytes(self._table, 1 << 24))
        except (OSError, ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not all(isinstance(values, dict) for values in found.values()):
            raise RecipeError(Problem("W401", "exists and is no folder of a sweep", self._path, hint))
        return found

    def _stands(self, label: str) -> bool:
        return os.path.basename(label) == label and self._storage.is_dir(os.path.join(self._path, label))

    def _unwritable(self, error: OSError) -> Problem:
        reason = f"cannot write {self._path}: {error.strerror or error}"
        return Problem("W405", reason, self._path, "mend the cause; the same command goes on")


def fingerprint_of(planned: Plan, options: Options, files: Companions) -> str:
    """SHA-256 of what decides every byte of the output: the weights, their division into files, the files beside."""
    digests = {name: digest_of([block_digest(data)]) for name, data in sorted(files.files.items())}
    # Forms of a method may differ in the last bit of sums over a tensor, so that none resumes the work of another.
    form = f"{'reference ' if options.reference else ''}{'' if options.device == 'cpu' else 'cuda '}"
    text = f"{form}{planned.fingerprint} {options.shard_bytes} {options.nonfinite} {json.dumps(digests)}"
    return hashlib.sha256(text.encode()).hexdigest()


def beside(planned: Plan, storage: Storage = REAL) -> Companions:
    """Config, tokenizer and other small files for the output."""
    floats = {job.spec.dtype for job in planned.jobs if dtypes.is_float(job.spec.dtype)}
    dtype = floats.pop() if len(floats) == 1 else None
    return companions(
        planned.donor.folder(),
        dtype,
        planned.tokenizer_folder(),
        storage,
        specs=planned.specs,
        chat_template=planned.chat_template,
    )


def budget_for(planned: Plan, options: Options, lanes: int = 1) -> Budget:
    """Workers and memory that a merge of this plan, or of `lanes` like it, would use. Raises as `make_budget` does."""
    on_gpu = options.device != "cpu"
    # First, as making a GPU ready takes main memory, which is then held.
    free = gpu.free_bytes(options.device) if on_gpu else 0
    default = resident_bytes() + DEFAULT_MEMORY + (gpu.LIBRARIES if on_gpu else 0)
    return make_budget(
        planned,
        lanes=lanes,
        memory=options.memory if options.memory is not None else default,
        threads=options.threads or min(os.cpu_count() or 1, gpu.WORKERS if on_gpu else sys.maxsize),
        device=options.device,
        gpu_free=free,
        reference=options.reference,
    )
