"""Batches → a folder of statistics, pass by pass; stopped between two batches, the same call goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from time import monotonic
from typing import Any

from eutectic.errors import InterruptedMergeError, Problem, RecipeError, several
from eutectic.run.signals import Stop, stop_on_signals
from eutectic.statistics.batches import Batch
from eutectic.statistics.folder import Folder
from eutectic.statistics.model import Collector
from eutectic.statistics.passes import Passes

# Running sums are kept so often, in seconds: a write of all of them must not be felt.
KEPT_EVERY = 60.0
Loading = Callable[[], Iterable[Any]]


@dataclass(frozen=True, slots=True)
class Going:
    """What goes on while statistics are collected.

    Attributes:
        device: where sums are, and batches are moved.
        progress: called with the number of samples after each batch.
    """

    device: Any
    progress: Callable[[int], None]


def collect_into(folder: Folder, collector: Collector, passes: Passes, batches: Loading, going: Going) -> None:
    """Does every pass that is not done yet. Raises `InterruptedMergeError` (W407) after SIGINT or SIGTERM."""
    with stop_on_signals() as stop:
        for number, units in enumerate(passes.units):
            tensors = {name: unit for unit in units for name in collector.layout.units[unit]}
            if folder.has(tensors):
                continue
            collector.start(units, going.device)
            _one_pass(folder, collector, batches, going, stop, f"pass {number + 1} of {len(passes.units)}")
            about = {
                "count": {name: collector.counts[unit] for name, unit in tensors.items()},
                "samples": dict.fromkeys(tensors, collector.samples),
                "positions": dict.fromkeys(tensors, collector.positions),
            }
            folder.write(collector.means(), **about)


def _one_pass(folder: Folder, collector: Collector, batches: Loading, going: Going, stop: Stop, where: str) -> None:
    done = folder.recall(collector)
    going.progress(collector.samples)
    kept = monotonic()
    for batch in islice(iter(batches()), done, None):
        ready = Batch.of(batch, going.device)
        collector.add(ready)
        done += 1
        going.progress(ready.size)
        if stop.event.is_set():
            folder.keep(collector, done)
            folder.flush()
            message = f"stopped in {where} after {several(done, 'batch')}, kept in {folder.path}.partial"
            hint = "the same command resumes"
            raise InterruptedMergeError(Problem("W407", message, folder.path, hint), stop.number)
        if monotonic() - kept > KEPT_EVERY:
            folder.keep(collector, done)
            kept = monotonic()
    refuse_nothing(collector)


def collect_all(collector: Collector, batches: Iterable[Any], device: Any, samples: int | None = None) -> None:
    """Collects all units in one pass, in memory; the first `samples` samples, if that is given."""
    collector.start(collector.layout.units, device)
    for value in batches:
        batch = Batch.of(value, device)
        collector.add(batch if samples is None else batch.head(samples - collector.samples))
        if samples is not None and collector.samples >= samples:
            break
    refuse_nothing(collector)


def refuse_nothing(collector: Collector) -> None:
    """Raises `RecipeError` (F101) where there was no sample, or nothing in the samples but padding."""
    if not collector.samples:
        raise RecipeError(Problem("F101", "the loader gave no batch", "loader", "was it used up before?"))
    if not any(collector.counts.values()):
        message = "no layer saw a position: all of them are masked, or none was called"
        raise RecipeError(Problem("F101", message, "loader"))
