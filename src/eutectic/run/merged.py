"""A plan as a Source: a merge computed on read. Recipes within recipes are these, so nothing is written between."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eutectic import dtypes
from eutectic.checkpoint import Source
from eutectic.kernels.digests import BLOCK, digest_of
from eutectic.plan import Plan
from eutectic.run.blocks import Loader, Made, sources_of
from eutectic.run.groups import Group, Unit, Work
from eutectic.run.measure import measured


def loader_for(plan: Plan, *, count_nonfinite: bool = False, reference: bool = False, for_gpu: bool = False) -> Loader:
    """A loader whose nested recipes are computed on read, on the CPU."""
    nested = {
        number: MergedSource(item.plan, item.label, count_nonfinite=count_nonfinite, reference=reference)
        for number, item in enumerate(plan.inputs)
        if item.plan is not None
    }
    return Loader(plan, sources_of(plan, nested), count_nonfinite=count_nonfinite, for_gpu=for_gpu)


class MergedSource(Source):
    """The merge that a plan describes, as a lazy mapping of tensors.

    Reductions over a tensor (or, under `scope: model`, over the model) run when a tensor that needs them is first
    read, and are kept. What is read equals, bit for bit, what `merge` would write.
    """

    def __init__(
        self, plan: Plan, label: str = "merge", *, count_nonfinite: bool = False, reference: bool = False
    ) -> None:
        self.label = label
        self.plan = plan
        self.specs = plan.specs
        self.ties = plan.ties
        self.metadata = {}
        self.chat_template = plan.chat_template
        self._loader = loader_for(plan, count_nonfinite=count_nonfinite, reference=reference)
        self._reference = reference
        self._number = {job.name: number for number, job in enumerate(plan.jobs)}
        self._group_of = {job: jobs for jobs in plan.groups() for job in jobs}
        self._groups: dict[int, Group] = {}
        self._lock = threading.Lock()
        self._checked = False
        self._work: Work | None = None
        self._kept: tuple[int, NDArray[np.uint8]] | None = None
        # Digests of the inputs of those blocks that have been made, until there are all of a tensor to be checked.
        self._digests: dict[int, dict[int, list[bytes]]] = {}
        self._measured = any(item.about for item in plan.inputs)

    def read_into(self, name: str, start: int, stop: int, out: memoryview) -> None:
        job = self._number[name]
        group = self._ready(job)
        itemsize = dtypes.itemsize(self.specs[name].dtype)
        blocks = range(start // BLOCK, -(-stop // BLOCK))
        for unit in group.units if group.whole else [group.unit_at[job, index] for index in blocks]:
            bits = self._bits(group, unit)
            low, high = max(start, unit.first), min(stop, unit.first + unit.count)
            out[(low - start) * itemsize : (high - start) * itemsize] = bits[
                (low - unit.first) * itemsize : (high - unit.first) * itemsize
            ].data

    def _bits(self, group: Group, unit: Unit) -> NDArray[np.uint8]:
        """The stored bytes of a unit. A tensor that can only be made whole is kept until another one is wanted."""
        if not group.whole:
            made = next(self._loader.make(group, unit))
            self._check(group, unit, made)
            return made.bits.view(np.uint8)
        with self._lock:
            if self._kept is None or self._kept[0] != unit.job:
                made = next(self._loader.make(group, unit))
                self._check(group, unit, made)
                self._kept = (unit.job, made.bits.view(np.uint8).copy())
            return self._kept[1]

    def _check(self, group: Group, unit: Unit, made: Made) -> None:
        """Compares a model's tensor with what its statistics were measured of, once all of its blocks were read."""
        if not self._measured:
            return
        parts = self._digests.setdefault(unit.job, {})
        parts[unit.index] = made.inputs
        if len(parts) == group.unit_counts[unit.job]:
            # Gone, so that what is read again is not compared at its every block.
            self._digests.pop(unit.job, None)
            of_inputs = zip(*(parts[index] for index in sorted(parts)), strict=True)
            self._loader.check_measured(unit.job, [digest_of(list(blocks)) for blocks in of_inputs])

    def _ready(self, job: int) -> Group:
        """The group of a job with its reductions done."""
        jobs = self._group_of[job]
        with self._lock:
            if not self._checked:
                self._loader.check_copies()
                self._checked = True
            if (kept := self._groups.get(jobs[0])) is not None:
                return kept
            if self._work is None:
                (self._work,) = measured([Work(self.plan, reference=self._reference)], self._loader)
            group = Group([self._work], jobs)
            while group.pending:
                for unit in group.wanted():
                    group.reduce(self._loader.load(unit))
                group.fold()
            self._groups[jobs[0]] = group
            return group

    @property
    def sources(self) -> list[Source]:
        """The inputs of the plan, in its order; recipes within the recipe as live merges."""
        return self._loader.sources

    def identity(self) -> dict[str, Any]:
        return {"label": self.label, "recipe": self.plan.recipe.to_dict(), "fingerprint": self.plan.fingerprint}

    def check_unchanged(self) -> None:
        for source in self._loader.sources:
            source.check_unchanged()

    def folder(self) -> str | None:
        return self.plan.donor.folder()

    def tokenizer_folder(self) -> str | None:
        return self.plan.tokenizer_folder()

    def beside(self, name: str) -> bytes | None:
        return self.plan.donor.beside(name)

    def close(self) -> None:
        self.plan.close()
