"""plans -> sinks: reads, computes and hands over every block, on several threads, within a memory bound.

There is no task graph. A group of jobs goes through its reductions one after the other and then through its units;
workers take whatever the oldest open group has ready, and open the next group when it has nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.digests import digest_of
from eutectic.kernels.streams import Block
from eutectic.run.blocks import Loader, Made
from eutectic.run.groups import Group, Unit, Work, is_whole

_NOTHING: NDArray[Any] = np.empty(0, np.uint8)


class Sink(Protocol):
    """Where results go. Both methods are called from any thread."""

    def write(self, job: int, first: int, bits: Any) -> None:
        """Takes stored bits of one output tensor from entry `first` on."""

    def finish(self, job: int, record: dict[str, Any]) -> None:
        """Every block of this job has been written; `record` has its digests and counts."""


@dataclass(slots=True)
class Lane:
    """One output of a run: what is done, where results go, and the jobs that need not be done again."""

    work: Work
    sink: Sink
    done: Collection[int] = ()
    parts: dict[int, dict[int, Made]] = field(default_factory=dict)


@dataclass(slots=True)
class _Active:
    """A group on its way: what is still to be handed out, and how much is still being worked on."""

    group: Group
    lanes: list[int]
    waiting: deque[Unit] = field(default_factory=deque)
    pending: int = 0


class Engine:
    """One run over the inputs of a plan, or of the plans of a sweep, which differ in parameters only.

    Args:
        lanes: one for each output.
        loader: reads and computes; has the plan of the first lane.
        threads: workers.
        hold_bytes: how much input may be kept between the reductions and the combination of a group.
        stop: set from outside to end early; `run` then returns False.
        progress: called with the output bytes of each block and lane.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        loader: Loader,
        *,
        threads: int = 2,
        hold_bytes: int = 0,
        stop: threading.Event | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._lanes, self._loader, self._plan = lanes, loader, lanes[0].work.plan
        self._threads = threads
        self._queue = deque(
            (jobs, numbers)
            for jobs in self._plan.groups()
            for numbers in self._alike(jobs)
            if any(job not in self._lanes[number].done for job in jobs for number in numbers)
        )
        self._active: list[_Active] = []
        self._change = threading.Condition()
        self._stop = stop or threading.Event()
        self._failure: BaseException | None = None
        self._hold_left = hold_bytes
        self._held: dict[tuple[int, int, int], tuple[Block, NDArray[np.uint8]]] = {}
        self._progress = progress or (lambda nbytes: None)

    def run(self) -> bool:
        """Works until all is done (True) or `stop` is set (False). Raises what a worker raised."""
        workers = [threading.Thread(target=self._work, name=f"merge-{i}", daemon=True) for i in range(self._threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            # In slices, so that the main thread still sees signals.
            while worker.is_alive():
                worker.join(0.2)
        if self._failure is not None:
            raise self._failure
        return not self._stop.is_set()

    def _work(self) -> None:
        try:
            while (taken := self._take()) is not None:
                active, unit = taken
                if active.group.pending:
                    self._reduce(active, unit)
                else:
                    self._make(active, unit)
                self._complete(active)
                # A worker that waits keeps no group alive, nor what its streams hold.
                del taken, active, unit
        except BaseException as error:
            with self._change:
                self._failure = self._failure or error
                self._stop.set()
                self._change.notify_all()

    def _take(self) -> tuple[_Active, Unit] | None:
        with self._change:
            while not self._stop.is_set():
                for active in self._active:
                    if active.waiting:
                        active.pending += 1
                        return active, active.waiting.popleft()
                if self._queue:
                    jobs, numbers = self._queue.popleft()
                    active = _Active(Group([self._lanes[number].work for number in numbers], jobs), numbers)
                    self._active.append(active)
                    self._hand_out(active)
                elif not self._active:
                    self._change.notify_all()
                    return None
                else:
                    self._change.wait(0.2)
            return None

    def _hand_out(self, active: _Active) -> None:
        """Fills the queue of the group's present step; empty tensors have no units and are finished at once."""
        group = active.group
        while True:
            if group.pending:
                active.waiting.extend(group.wanted())
                if active.waiting:
                    return
                group.fold()
                continue
            for job in group.jobs:
                if self._plan.jobs[job].spec.numel == 0:
                    for place in self._open_lanes(active, job):
                        self._record(self._lanes[active.lanes[place]], job, [])
            active.waiting.extend(unit for unit in group.units if self._open_lanes(active, unit.job))
            if not active.waiting:
                self._active.remove(active)
            return

    def _complete(self, active: _Active) -> None:
        with self._change:
            active.pending -= 1
            if active.waiting or active.pending:
                return
        # Nobody else has a unit of this group, so what ends its pass need not keep the others waiting.
        if reducing := active.group.pending:
            active.group.fold()
        with self._change:
            if reducing:
                self._hand_out(active)
            else:
                self._active.remove(active)
            self._change.notify_all()

    def _reduce(self, active: _Active, unit: Unit) -> None:
        place = (id(active), unit.job, unit.index)
        held = self._held.get(place)
        block = held[0] if held else self._loader.load(unit)
        active.group.reduce(block)
        # What steps after the method had made of it would stay with a block that is held, in no account.
        block.cache.clear()
        if held is None and self._loader.holdable(unit) and self._open_lanes(active, unit.job):
            buffer = self._loader.keep()
            with self._change:
                fits = self._hold_left >= buffer.nbytes
                self._hold_left -= buffer.nbytes if fits else 0
            if fits:
                self._held[place] = (block, buffer)
            else:
                self._loader.give_back(buffer)

    def _alike(self, jobs: list[int]) -> list[list[int]]:
        """Lanes that take these jobs in the same pieces: sums over a tensor are added block by block."""
        pieces: dict[bool, list[int]] = {}
        for number, lane in enumerate(self._lanes):
            pieces.setdefault(any(is_whole(lane.work, job) for job in jobs), []).append(number)
        return list(pieces.values())

    def _open_lanes(self, active: _Active, job: int) -> list[int]:
        """Which of the group's streams still have to make a job, in the order in which they combine."""
        return [place for place in active.group.order if job not in self._lanes[active.lanes[place]].done]

    def _make(self, active: _Active, unit: Unit) -> None:
        held = self._held.pop((id(active), unit.job, unit.index), None)
        places = self._open_lanes(active, unit.job)
        for place, made in zip(
            places, self._loader.make(active.group, unit, held[0] if held else None, places), strict=True
        ):
            lane = self._lanes[active.lanes[place]]
            lane.sink.write(unit.job, unit.first, made.bits)
            self._progress(made.bits.nbytes)
            with self._change:
                parts = lane.parts.setdefault(unit.job, {})
                # The bits themselves are written and must not stay in memory.
                parts[unit.index] = replace(made, bits=_NOTHING)
                ready = len(parts) == active.group.unit_counts[unit.job]
                finished = lane.parts.pop(unit.job) if ready else None
            if finished is not None:
                self._record(lane, unit.job, [finished[index] for index in sorted(finished)])
        if held is not None:
            self._loader.give_back(held[1])
            with self._change:
                self._hold_left += held[1].nbytes

    def _record(self, lane: Lane, job: int, parts: list[Made]) -> None:
        reads = len(self._plan.jobs[job].reads)
        inputs = [digest_of([part.inputs[k] for part in parts]) for k in range(reads)]
        self._loader.check_measured(job, inputs)
        lane.sink.finish(
            job,
            {
                "digest": digest_of([part.digest for part in parts]),
                "inputs": inputs,
                "nonfinite": [sum(part.nonfinite[k] for part in parts) for k in range(reads)],
            },
        )
