"""Statistics of a model on the disk, or a live one, into a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from eutectic import dtypes
from eutectic.checkpoint import Source
from eutectic.errors import Problem, RecipeError, did_you_mean, several
from eutectic.evaluate.data import DataTask
from eutectic.evaluate.language import Language
from eutectic.evaluate.loading import Loader
from eutectic.evaluate.model import Settings
from eutectic.evaluate.opening import opened, refuse_several
from eutectic.evaluate.taskfile import task_data
from eutectic.run.refusals import check_device, refuse_overlap_of
from eutectic.statistics.batches import AGAIN, Batch, no_batches
from eutectic.statistics.collecting import Going, collect_into
from eutectic.statistics.fisher import FisherCollector
from eutectic.statistics.folder import SHARD_BYTES, Folder
from eutectic.statistics.inputs import GramCollector, MomentCollector
from eutectic.statistics.labels import Labels, likelihood, own_loss
from eutectic.statistics.layers import Names, still
from eutectic.statistics.model import KINDS, Collector, Kind
from eutectic.statistics.passes import Passes, plan_passes
from eutectic.statistics.result import MEANS, identity_of
from eutectic.statistics.text import Text, batches_of

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Options:
    """How to collect.

    Attributes:
        samples: this many sequences, drawn by `seed`; of a loader, the first. None: all.
        labels: of the Fisher information: `model` or `data`.
        field: of `.jsonl` text, its key.
        length: tokens a sequence at most; None: 512, or what the model takes if that is less.
        pack: whether documents are joined into full sequences.
        batch: sequences a forward pass.
        seed: draws the samples, and labels from the model.
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: of the arithmetic; None: as stored. Sums are float32.
        memory: bytes for the model and the sums of one pass, the activations of a batch and the gradient of
            a layer not counted; None: one pass.
        replace: whether the folder may be replaced.
        shard_bytes: largest file.
    """

    samples: int | None = None
    labels: Labels = "model"
    field: str = "text"
    length: int | None = None
    pack: bool = False
    batch: int = 8
    seed: int = 0
    device: str = "cpu"
    dtype: str | None = None
    memory: int | None = None
    replace: bool = False
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        problems = []
        if self.labels not in ("model", "data"):
            problems.append(Problem("F108", f"must be model or data, not {self.labels!r}", "labels"))
        if self.dtype is not None and self.dtype not in dtypes.FLOATS:
            message = f"must be one of {', '.join(dtypes.FLOATS)}, not {self.dtype!r}"
            problems.append(Problem("F108", message, "dtype", did_you_mean(str(self.dtype), dtypes.FLOATS)))
        for name, least in (("samples", 1), ("batch", 1), ("seed", 0), ("memory", 1), ("shard_bytes", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            if not whole and not (value is None and name in ("samples", "memory")):
                problems.append(Problem("F108", f"must be a whole number from {least} on, not {value!r}", name))
        if problems:
            raise RecipeError(problems)


@dataclass(frozen=True, slots=True)
class Planned:
    """What a collection will do, told before it goes through the data.

    Attributes:
        kind: of statistics.
        model: label.
        samples: that are gone through in each pass; None where a loader does not tell.
        tensors: their number.
        passes: which of them are collected together, and what that takes.
        shared: how many weights have their statistics under another one's name.
        left_out: parameter → why nothing is collected for it.
        notes: how it is done, where that is not the usual way.
    """

    kind: Kind
    model: str
    samples: int | None
    tensors: int
    passes: Passes
    shared: int
    left_out: dict[str, str]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        counts = f"{several(self.tensors, 'tensor')}, {len(self.left_out)} left out"
        counts += f", {several(len(self.passes.units), 'pass')} over the data"
        return f"<Planned {self.kind} of {self.model!r}: {counts}; see .left_out>"


@dataclass(frozen=True, slots=True)
class Collected:
    """What was collected.

    Attributes:
        path: the folder.
        planned: what was to be done.
        already_complete: whether it was there before.
        samples: that were gone through.
        unseen: tensors of layers that saw nothing, which are zeros.
    """

    path: str
    planned: Planned
    already_complete: bool
    samples: int | None
    unseen: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Given:
    """Data as batches, which can be gone through again and again.

    Attributes:
        kind: of module that they are for, as for `Loader.module`.
        batches: gives them, as often as wanted.
        first: of them; None where there is none.
        samples: their number, where it is known.
        identity: plain data that tells them from others.
        notes: what was left out.
    """

    kind: Literal["causal", "any"]
    batches: Callable[[], Iterable[Any]]
    first: Any
    samples: int | None
    identity: dict[str, Any]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches())


def collect(
    kind: Kind,
    model: Any,
    data: Any,
    out: str | os.PathLike[str],
    *,
    options: Options | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    module: Callable[[], nn.Module] | None = None,
    tokenizer: Any = None,
    on_plan: Callable[[Planned], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Collected:
    """Collects statistics of a model into a folder, in as many passes over the data as the memory bound asks for.

    Stopped between two batches, the same call goes on; the tensors are those of an uninterrupted run.

    Args:
        kind: `fisher`, `gram` or `activations`.
        model: a model as for `eutectic.open`, a live module, or a recipe, whose merge is not written.
        data: a file of text for a causal language model (`.txt`, `.jsonl`, `.tsv`), or a loader as for `gram` that
            gives the same batches each time it is gone through. It is told from another by its first batch alone.
        out: the folder to make.
        options: how.
        loss: see `fisher`.
        module: makes the module that the weights are loaded into, where they are no model of `transformers`.
        tokenizer: as for `eutectic.evaluate`.
        on_plan: called before the first pass.
        progress: called with the number of samples after each batch.

    Raises `EutecticError` with every problem before long work; later F101, F102 and F104, and `InterruptedMergeError`.
    """
    how = options or Options()
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS) or f"there are {', '.join(KINDS)}"
        raise RecipeError(Problem("F108", f"{kind!r} is no kind of statistics", "kind", hint))
    check_device(how.device)
    run = Settings(how.device, how.batch, how.samples, how.seed, Loader(module, tokenizer))
    with opened([model], live=module is None) as sources:
        source = refuse_several(sources)
        refuse_overlap_of(sources, os.fspath(out))
        given = given_data(data, how, source, run)
        if loss is not None:
            name = getattr(loss, "__qualname__", type(loss).__name__)
            given = replace(given, identity={**given.identity, "loss": name})
        with (
            run.loader.module(source, given.kind, device=how.device, dtype=how.dtype) as made,
            still(made),
        ):
            collector = _collector(kind, made, source, given, how, loss)
            passes = plan_passes(collector.layout, made, how.memory)
            planned = _planned(source, given, collector, passes)
            folder = _folder(os.fspath(out), source, given, how, collector)
            return _collected(folder, planned, collector, given, how, source, on_plan, progress)


def _collected(
    folder: Folder,
    planned: Planned,
    collector: Collector,
    given: Given,
    how: Options,
    source: Source,
    on_plan: Callable[[Planned], None] | None,
    progress: Callable[[int], None] | None,
) -> Collected:
    with folder:
        if folder.complete:
            return Collected(folder.path, planned, True, planned.samples, ())
        if on_plan:
            on_plan(planned)
        going = Going(how.device, progress or (lambda samples: None))
        collect_into(folder, collector, planned.passes, given.batches, going)
        folder.flush()
        samples, positions = (folder.recorded(key) for key in ("samples", "positions"))
        about = {"kind": collector.kind, "mean": MEANS[collector.kind], "samples": samples, "tokens": positions}
        chosen = {"labels": "data" if "loss" in given.identity else how.labels} if collector.kind == "fisher" else {}
        settings = {"seed": how.seed, **chosen, "settings": given.identity}
        folder.finish({**about, **settings, **identity_of(source), **collector.layout.as_json()})
    return Collected(folder.path, planned, False, samples, tuple(folder.unseen()))


def _collector(
    kind: Kind, module: nn.Module, source: Source, given: Given, how: Options, loss: Callable[[Any, Any], Tensor] | None
) -> Collector:
    names = Names(module, source)
    if given.first is None:
        raise RecipeError(Problem("F101", "the loader gave no batch", "loader", "was it used up before?"))
    first = Batch.of(given.first, next(module.parameters()).device)
    if kind == "fisher":
        return FisherCollector(module, names, first, own_loss(loss) if loss else likelihood(how.labels, how.seed))
    return (GramCollector if kind == "gram" else MomentCollector)(module, names, first)


def _planned(source: Source, given: Given, collector: Collector, passes: Passes) -> Planned:
    layout = collector.layout
    return Planned(
        collector.kind,
        source.label,
        given.samples,
        len(layout.shapes),
        passes,
        len(layout.shared),
        dict(layout.left_out),
        (*given.notes, *collector.notes),
    )


def _folder(out: str, source: Source, given: Given, how: Options, collector: Collector) -> Folder:
    chosen = {key: value for key, value in asdict(how).items() if key not in ("memory", "replace", "device")}
    return Folder(
        out,
        collector.layout.shapes,
        identity=[collector.kind, given.identity, chosen, how.device.partition(":")[0]],
        stamps=[source.stamp() if source.files() is not None else identity_of(source)],
        replace=how.replace,
        shard_bytes=how.shard_bytes,
    )


def given_data(data: Any, how: Options, source: Source, run: Settings) -> Given:
    """Text in a file, as a causal language model is given it, or a loader's batches.

    Args:
        data: as for `collect`.
        how: `samples`, `batch` and the options of text.
        source: of the model, with its tokenizer.
        run: as `how` has it, with what makes modules.

    Raises `EutecticError` (E904, E906, E907, F101, F108).
    """
    return (_text if isinstance(data, str | os.PathLike) else _loader)(data, how, source, run)


def _text(data: Any, how: Options, source: Source, run: Settings) -> Given:
    """Sequences of a file, those that are wanted."""
    if (inside := task_data(os.fspath(data))) is not None:
        hint = f"name its data, {inside}" if inside else "name a file of text"
        raise RecipeError(Problem("F108", "this is a task file and no text", "data", hint, os.fspath(data)))
    task = Text(os.fspath(data), field=how.field, length=how.length, pack=how.pack)
    rows = task.sequences(Language(source, run))
    chosen = [rows[i] for i in run.chosen(len(rows))]
    identity = {**DataTask.identity(task), "samples": how.samples, "batch": how.batch, "dtype": how.dtype}
    first = next(batches_of(chosen, how.batch))
    notes = [f"left out: {several(task.empty, 'document')} without text"] if task.empty else []
    if how.samples is not None and how.samples > len(rows):
        notes.append(f"the data have {several(len(rows), 'sequence')}, not {how.samples:,}: all are taken")
    return Given("causal", lambda: batches_of(chosen, how.batch), first, len(chosen), identity, tuple(notes))


def _loader(loader: Any, how: Options, source: Source, run: Settings) -> Given:
    """Batches of a loader, the first `samples` samples of them."""
    if why := no_batches(loader):
        raise RecipeError(Problem("F108", why, "data", f"{AGAIN}, or a file of text"))
    run.loader.check_module(source)

    def batches() -> Iterator[Any]:
        left = how.samples
        for value in loader:
            batch = Batch.of(value)
            yield (batch if left is None else batch.head(left)).value
            if left is not None:
                left -= batch.size
                if left <= 0:
                    return

    first = next(batches(), None)
    # All that tells one loader from another without going through it.
    digest = None if first is None else Batch.of(first).digest()
    return Given("any", batches, first, None, {"samples": how.samples, "dtype": how.dtype, "first_batch": digest})
