"""A stream with steps after it: the change that the method makes is rescaled before it is rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.calibration import lines_alpha, lines_scale, norm_guard_factor, svc
from eutectic.kernels.streams import Bits, Block, Stream, StreamJob
from eutectic.lazy import LazyModule
from eutectic.plan import BoundStep
from eutectic.run.reference import one_torch_thread

if TYPE_CHECKING:
    import torch

    from eutectic.kernels import fused, fused_geometry
else:
    torch = LazyModule("torch")
    fused = LazyModule("eutectic.kernels.fused")
    fused_geometry = LazyModule("eutectic.kernels.fused_geometry")

Floats = NDArray[Any]
# Results that are not finite are refused or counted where they are written; numpy would warn of them besides.
_quiet = partial(np.errstate, over="ignore", invalid="ignore")


class Tally:
    """Squared norms, block by block: of the merged change, of the sum of the models' changes, of each of them."""

    def __init__(self) -> None:
        self._parts: dict[tuple[int, int], NDArray[np.float64]] = {}
        self._models = 1

    def add(self, place: tuple[int, int], change: Floats, deltas: Sequence[Floats]) -> None:
        """Takes one block; called from any thread."""
        total = sum(deltas[1:], deltas[0])
        found = np.zeros((2 + len(deltas), 1, 1))
        for vector, square in zip((change, total, *deltas), found, strict=True):
            fused_geometry.gram_of_weights((vector,), square)
        self._parts[place], self._models = found.reshape(-1), len(deltas)

    def norms(self) -> dict[int, NDArray[np.float64]]:
        """The norms by job, added in the order of the blocks."""
        sums: dict[int, NDArray[np.float64]] = {}
        for job, index in sorted(self._parts):
            part = self._parts[job, index]
            sums[job] = sums[job] + part if job in sums else part
        return {job: np.sqrt(total) for job, total in sums.items()}

    def model_norms(self) -> NDArray[np.float64]:
        """The norms over all jobs but those with NaN or infinity, which would spoil the factor of every tensor."""
        finite = [norms for _, norms in sorted(self.norms().items()) if np.isfinite(norms).all()]
        return np.sqrt(sum((norms**2 for norms in finite), np.zeros(2 + self._models)))


def factor_of(step: BoundStep, norms: NDArray[np.float64]) -> float:
    """The factor that a step takes from norms: of the merged change, of the sum, of each model."""
    merged, total, *parents = (float(norm) for norm in norms)
    if step.name == "lines":
        return lines_alpha(total, merged, len(parents))
    return norm_guard_factor(merged, [step.parameters["factor"] * parent for parent in parents])


class PostProcessed(Stream):
    """θ₀ + steps(θ - θ₀), where θ is what the inner stream makes.

    Args:
        inner: the method.
        jobs: as the inner stream has them.
        numbers: of the same jobs in the plan.
        posts: the steps of each job.
        factors: those measured over the model, by the step's position.
        tally: takes the norms of the change after the steps before the first that has no factor yet; nothing of use is
            written then.
    """

    def __init__(
        self,
        inner: Stream,
        jobs: Sequence[StreamJob],
        numbers: Sequence[int],
        posts: Sequence[Sequence[BoundStep]],
        factors: Mapping[int, float],
        tally: Tally | None,
    ) -> None:
        self._inner, self._jobs, self._numbers, self._posts = inner, jobs, numbers, posts
        self._model, self._tally = factors, tally
        self._own: list[dict[int, float]] = [{} for _ in jobs]
        steps = posts[0]
        self._end = next((i for i, step in enumerate(steps) if step.measures_model and i not in factors), len(steps))
        self._due = [i for i, s in enumerate(steps[: self._end]) if s.name == "norm_guard" and not s.measures_model]
        self._parts = Tally()

    @property
    def pending(self) -> bool:
        return self._inner.pending or bool(self._due)

    def wants(self, index: int) -> bool:
        return self._inner.wants(index) if self._inner.pending else True

    def reduce(self, block: Block) -> None:
        if self._inner.pending:
            self._inner.reduce(block)
        else:
            with _quiet():
                _, change, deltas = self._changed(block, self._due[0])
                self._parts.add((block.job, block.index), change, deltas)

    def fold(self) -> None:
        if self._inner.pending:
            self._inner.fold()
            return
        norms = self._parts.norms()
        for job, own in enumerate(self._own):
            own[self._due[0]] = factor_of(self._posts[job][self._due[0]], norms[job]) if job in norms else 1.0
        self._due, self._parts = self._due[1:], Tally()

    @property
    def affinity(self) -> str:
        return self._inner.affinity

    def shares(self, other: Stream) -> bool:
        return isinstance(other, PostProcessed) and not self._due and self._inner.shares(other._inner)

    def take(self, other: Stream) -> None:
        assert isinstance(other, PostProcessed)
        self._inner.take(other._inner)

    def combine(self, block: Block, out: Bits) -> None:
        with _quiet():
            if self._tally is not None:
                _, change, deltas = self._changed(block, self._end)
                self._tally.add((self._numbers[block.job], block.index), change, deltas)
            elif not self._acts(block.job):
                self._inner.combine(block, out)
            else:
                base, change, _ = self._changed(block, self._end)
                # Where nothing changes the base stays bit for bit: adding zero would turn -0.0 into 0.0.
                fused.convert(np.where(change == 0, base, base + change), out)

    def _acts(self, job: int) -> bool:
        """Whether any step does anything to this tensor. If none does, no bit may change."""
        return any(
            bool(step.parameters["spectral"]) if step.name == "svc" else self._factor(job, number, step) != 1.0
            for number, step in enumerate(self._posts[job])
        )

    def _changed(self, block: Block, end: int) -> tuple[Floats, Floats, list[Floats]]:
        """The base, the change after the steps before `end`, and the models' own changes."""
        rows = [np.empty(len(row), block.floats) for row in block.rows]
        for row, floats in zip(block.rows, rows, strict=True):
            fused.convert(row, floats)
        base = rows[0]
        merged = np.empty_like(base)
        self._inner.combine(block, merged)
        change, deltas = merged - base, [row - base for row in rows[1:]]
        for number, step in enumerate(self._posts[block.job][:end]):
            if step.name == "svc":
                change = self._calibrated(change, deltas, step, self._jobs[block.job].shape)
            else:
                factor = self._factor(block.job, number, step)
                change = change if factor == 1.0 else change * block.floats(factor)
        return base, change, deltas

    def _factor(self, job: int, number: int, step: BoundStep) -> float:
        if step.name == "norm_guard":
            return self._model[number] if step.measures_model else self._own[job][number]
        given = step.parameters
        alpha = self._model[number] if step.measures_model else given["alpha"]
        return lines_scale(given["layer"], given["layers"], alpha, given["beta"])

    def _calibrated(
        self, change: Floats, deltas: Sequence[Floats], step: BoundStep, shape: tuple[int, ...] | None
    ) -> Floats:
        alpha = step.parameters["alpha"]
        if not step.parameters["spectral"]:
            return change
        with one_torch_thread():
            merged = torch.from_numpy(change).reshape(shape or (-1,))
            stacked = torch.stack([torch.from_numpy(delta) for delta in deltas]).reshape(-1, *merged.shape)
            found: Floats = svc(merged, stacked, 1 / len(deltas) if alpha == "auto" else alpha).reshape(-1).numpy()
        return found
