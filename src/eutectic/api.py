"""The doors: merge, plan, open, merged, verify, explain. The one place where the layers are joined."""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from eutectic import checkpoint, dtypes, methods, recipe
from eutectic.checkpoint import REAL, Source, Storage, torchfile
from eutectic.checkpoint import codes as checkpoint_codes
from eutectic.checkpoint.companions import Companions, companions
from eutectic.checkpoint.layout import INDEX, index_of, lay_out
from eutectic.checkpoint.output import AlreadyCompleteError, Output
from eutectic.errors import InterruptedMergeError, NumericError, Problem, RecipeError, did_you_mean
from eutectic.kernels.digests import block_digest, digest_of
from eutectic.plan import CODES as PLAN_CODES
from eutectic.plan import Plan, make_plan
from eutectic.recipe import Recipe
from eutectic.report import pages
from eutectic.report import verify as verifying
from eutectic.report.manifest import manifest_of
from eutectic.report.pages import example as example
from eutectic.report.pages import first_line as first_line
from eutectic.report.pages import method_named as method_named
from eutectic.report.pages import method_page as method_page
from eutectic.report.verify import Verification as Verification
from eutectic.report.verify import read_manifest
from eutectic.report.verify import verify as verify
from eutectic.run import blocks
from eutectic.run import budget as budgeting
from eutectic.run.budget import DEFAULT_MEMORY, Budget, make_budget, resident_bytes
from eutectic.run.engine import Engine
from eutectic.run.merged import MergedSource, loader_for
from eutectic.run.refusals import check_device as check_device
from eutectic.run.refusals import refuse_overlap, refuse_reference, sources_in
from eutectic.run.signals import stop_on_signals

RecipeLike = str | os.PathLike[str] | Mapping[str, Any] | Recipe

# Every problem's code: title and explanation.
CODES: dict[str, tuple[str, str]] = {
    **recipe.CODES,
    **checkpoint_codes.CODES,
    **torchfile.CODES,
    **PLAN_CODES,
    **blocks.CODES,
    **budgeting.CODES,
    **verifying.CODES,
    **pages.CODES,
}

# As transformers and mergekit have it.
SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Options:
    """How to run, as opposed to what to compute. The bytes of the weights do not depend on any but `shard_bytes`.

    Attributes:
        threads: workers, None for all cores; the memory bound may allow fewer.
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


def load_recipe(
    source: RecipeLike, *, overrides: Sequence[str] = (), seed: int | None = None, dtype: str | None = None
) -> Recipe:
    """A checked recipe from a path, YAML text, a dict or a `Recipe`. Raises `RecipeError` with every problem.

    `overrides` are changes such as `parameters.t=0.4`; `seed` and `dtype` (of the output) override the recipe's own.
    """
    changes = [overrides] if isinstance(overrides, str) else list(overrides)
    changes += [f"seed={seed}"] if seed is not None else []
    changes += [f"out_dtype={dtype}"] if dtype is not None else []
    return recipe.load(source, overrides=changes, methods=methods)


def plan(
    source: RecipeLike, *, overrides: Sequence[str] = (), seed: int | None = None, dtype: str | None = None
) -> Plan:
    """What a merge would do, tensor by tensor; opens headers, reads no weight.

    Args:
        source: path of a recipe, YAML text, dict or `Recipe`.
        overrides: changes such as `parameters.t=0.4`.
        seed: for random masks; overrides the recipe's.
        dtype: of the output; overrides the recipe's.

    Raises `RecipeError` (every problem of the recipe and of the models' shapes) or `CheckpointError`.
    """
    return make_plan(load_recipe(source, overrides=overrides, seed=seed, dtype=dtype), open_model)


def open_model(model: Any, folder: str | None = None) -> Source:
    """A checkpoint as a lazy mapping of tensors: a folder, a file, a hub id, a live module or a state dict.

    `folder` is where relative paths start that are not found from the current folder. Public as `eutectic.open`.
    Raises `CheckpointError` if it is missing, broken or unsafe to read.
    """
    return checkpoint.open_source(model, folder=folder)


def merged(
    source: RecipeLike, *, overrides: Sequence[str] = (), seed: int | None = None, dtype: str | None = None
) -> MergedSource:
    """A merge as a lazy mapping of tensors, computed on read and never written.

    `module.load_state_dict(dict(eutectic.merged(recipe)))` loads it into a live module. Arguments as for `plan`.
    """
    return MergedSource(plan(source, overrides=overrides, seed=seed, dtype=dtype))


def merge(
    source: RecipeLike,
    out: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    dtype: str | None = None,
    options: Options | None = None,
    on_plan: Callable[[Plan, Budget, Sequence[str]], None] | None = None,
    progress: Callable[[int], None] | None = None,
    storage: Storage = REAL,
) -> Merge:
    """Merges models into the folder `out`, which appears complete or not at all.

    The same call resumes after an interruption; the bytes are those of an uninterrupted run.

    Args:
        source: the recipe, and
        overrides: changes to it, and
        seed: for random masks, and
        dtype: of the output, all as for `plan`.
        out: the folder to make. It must not exist, or be empty, or be this very merge; see `Options.replace`.
        options: threads, memory bound, device, shard size, and so on.
        on_plan: called with the plan, the memory budget and the notes before any weight is read.
        progress: called with the number of output bytes after each block.
        storage: the file system.

    Raises `RecipeError`, `CheckpointError`, `OutputError`, `NumericError`, `ResourceError`, or `InterruptedMergeError`
    after SIGINT or SIGTERM (when called from the main thread).
    """
    options = options or Options()
    if not isinstance(options, Options):
        raise RecipeError(Problem("M603", f"must be eutectic.Options, not {type(options).__name__}", "options"))
    if not isinstance(out, str | os.PathLike) or not os.fspath(out):
        raise RecipeError(Problem("M603", f"must be the folder to make, not {out!r}", "out"))
    check_device(options.device)
    loaded = load_recipe(source, overrides=overrides, seed=seed, dtype=dtype)
    planned = make_plan(loaded, lambda model, folder: checkpoint.open_source(model, folder=folder, storage=storage))
    try:
        return _Run(planned, os.fspath(out), options, storage).merge(on_plan, progress)
    finally:
        planned.close()


class _Run:
    """One merge from plan to folder."""

    def __init__(self, planned: Plan, out: str, options: Options, storage: Storage) -> None:
        refuse_overlap(planned, out)
        refuse_reference(planned, options.reference)
        self.plan, self.options = planned, options
        self.beside = beside(planned, storage)
        self.notes = [*planned.notes, *self.beside.notes]
        self.budget = budget_for(planned, options)
        self.shards = lay_out(planned.specs, {"format": "pt", **planned.ties}, options.shard_bytes)
        self.fingerprint = fingerprint_of(planned, options, self.beside)
        self.output = Output(
            out,
            self.shards,
            [(job.name, job.spec.numel, dtypes.itemsize(job.spec.dtype)) for job in planned.jobs],
            fingerprint=self.fingerprint,
            stamps=[source.stamp() for source in sources_in(planned)],
            replace=options.replace,
            storage=storage,
        )

    def merge(
        self,
        on_plan: Callable[[Plan, Budget, Sequence[str]], None] | None,
        progress: Callable[[int], None] | None,
    ) -> Merge:
        if on_plan:
            on_plan(self.plan, self.budget, self.notes)
        started = monotonic()
        loader = loader_for(
            self.plan, count_nonfinite=self.options.nonfinite == "count", reference=self.options.reference
        )
        with stop_on_signals() as stop:
            loader.check_copies()
            try:
                self.output.open(stop.event)
            except AlreadyCompleteError:
                return self._result(started, already_complete=True)
            try:
                finished = self._engine(loader, stop.event, progress).run()
                for source in loader.sources:
                    source.check_unchanged()
                if not finished:
                    raise self._interrupted(stop.number)
                self._complete()
            except BaseException as error:
                # What a broken model has made so far is of no use to any later command.
                self.output.abandon(remove=isinstance(error, NumericError))
                raise
        return self._result(started, already_complete=False)

    def _engine(self, loader: Any, stop: threading.Event, progress: Callable[[int], None] | None) -> Engine:
        if progress:
            progress(sum(self.plan.jobs[job].spec.nbytes for job in self.output.records))
        return Engine(
            self.plan,
            loader,
            self.output,
            done=set(self.output.records),
            threads=self.budget.threads,
            hold_bytes=self.budget.hold_bytes,
            device=self.options.device,
            reference=self.options.reference,
            stop=stop,
            progress=progress,
        )

    def _interrupted(self, signal_number: int) -> InterruptedMergeError:
        self.output.flush()
        kept = f"{len(self.output.records)} of {len(self.plan.jobs)} tensors are kept in {self.output.path}.partial"
        return InterruptedMergeError(
            Problem("W407", f"stopped; {kept}", self.output.path, "the same command resumes"), signal_number
        )

    def _complete(self) -> None:
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
        )
        self.output.complete(files, manifest)

    def _result(self, started: float, *, already_complete: bool) -> Merge:
        bad = sum(sum(record["nonfinite"]) for record in self.output.records.values())
        resumed = 0 if already_complete else self.output.resumed
        seconds = monotonic() - started
        return Merge(
            self.output.path, self.plan, self.budget, seconds, resumed, already_complete, tuple(self.notes), bad
        )


def fingerprint_of(planned: Plan, options: Options, files: Companions) -> str:
    """SHA-256 of what decides every byte of the output: the weights, their division into files, the files beside."""
    digests = {name: digest_of([block_digest(data)]) for name, data in sorted(files.files.items())}
    text = f"{planned.fingerprint} {options.shard_bytes} {options.nonfinite} {json.dumps(digests)}"
    return hashlib.sha256(text.encode()).hexdigest()


def beside(planned: Plan, storage: Storage = REAL) -> Companions:
    """Config, tokenizer and other small files for the output."""
    floats = {job.spec.dtype for job in planned.jobs if dtypes.is_float(job.spec.dtype)}
    dtype = floats.pop() if len(floats) == 1 else None
    return companions(planned.donor.folder(), dtype, planned.tokenizer_folder(), storage, specs=planned.specs)


def budget_for(planned: Plan, options: Options) -> Budget:
    """Workers and memory that a merge of this plan would use. Raises `ResourceError` (M601)."""
    return make_budget(
        planned,
        memory=options.memory if options.memory is not None else resident_bytes() + DEFAULT_MEMORY,
        threads=options.threads or os.cpu_count() or 1,
        device=options.device,
        reference=options.reference,
    )


def method_names() -> list[str]:
    """Every method, built in or installed."""
    return methods.names()


def verify_bytes(out: str | os.PathLike[str], *, stored_only: bool = False) -> int:
    """Bytes that `verify` will go through, for a progress bar."""
    tensors = read_manifest(os.fspath(out))["tensors"].values()
    total: int = sum(math.prod(t["shape"]) * dtypes.itemsize(t["dtype"]) for t in tensors)
    return total if stored_only else 2 * total


def explain(code: str) -> tuple[str, str]:
    """Title and explanation of a problem's code. Raises `RecipeError` (X902) for an unknown one."""
    if (found := CODES.get(code.upper())) is None:
        raise RecipeError(Problem("X902", f"there is no code {code!r}", hint=did_you_mean(code.upper(), CODES)))
    return found
