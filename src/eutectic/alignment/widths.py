"""A model of other widths, brought to the widths of another: each unit a mixture of units (optimal transport).

A research option: with equal widths it is weight matching; with others it changes what a model computes, but for
cases that are named at `fit_widths`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from eutectic import dtypes
from eutectic.alignment.places import votes
from eutectic.alignment.zipit.trunk import groups_of, whole
from eutectic.checkpoint import Source, Spec
from eutectic.checkpoint.symmetry import Axis, Part, Symmetries
from eutectic.errors import NumericError, Problem, RecipeError, listed
from eutectic.kernels.axes import mixed
from eutectic.kernels.transport import transport
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

# Pairs of units, n·m, up to which a linear program is tried.
LARGEST = 1 << 20
# A sweep that gains less than this part of the objective is the last.
_ROUNDING = 1e-9

# Group → (n, m) float64, what of each unit of A is which of B: rows of sum 1 / n, columns of sum 1 / m.
Plans = Mapping[str, "Tensor"]


class Resized(Source):
    """A model in the widths of another, computed on read: a tensor at a time.

    Attributes:
        plans: of each group.
        objective: Σ over tensors of the inner product with A's, after the first pass and after each sweep.
    """

    def __init__(
        self, a: Source, b: Source, symmetries: Symmetries, plans: Plans, objective: tuple[float, ...] = ()
    ) -> None:
        """Of `b`, whose table `symmetries` is, in the shapes of `a`. Floats are float32, or float64 as stored."""
        self.label, self.metadata, self.ties = b.label, b.metadata, dict(b.ties)
        self.specs = {name: Spec(_dtype(spec.dtype), a.specs[name].shape) for name, spec in b.specs.items()}
        self.plans, self.objective = plans, objective
        self._b, self._symmetries = b, symmetries
        self._last: tuple[str, Tensor] | None = None
        self._lock = threading.Lock()

    def read_into(self, name: str, start: int, stop: int, out: memoryview) -> None:
        """See `Source.read_into`. The tensor that was read last is kept."""
        with self._lock:
            if self._last is None or self._last[0] != name:
                made = transported(self._b[name], self._symmetries.axes[name], self.plans)
                dtype = getattr(torch, self.specs[name].dtype)
                self._last = name, made.to(dtype).contiguous().reshape(-1)
            values = self._last[1]
        out[:] = values[start:stop].view(torch.uint8).numpy().data

    def close(self) -> None:
        """Closes the model."""
        self._b.close()


def fit_widths(a: Source, b: Source, of_a: Symmetries, of_b: Symmetries, *, sweeps: int = 20) -> Resized:
    """Brings a model to the widths of another by optimal transport of its units, matched by weights.

    Of each group, plan T says how much of unit v of B unit u of A gets. Rows that make units become P W with P = n T,
    so that each is a mean; columns that read them W Qᵀ with Q = m T, so that each unit's columns are shared out. The
    plans are those of the largest Σ ⟨A, P W Qᵀ⟩ over the tensors, group by group: first in the table's order by the
    tensors whose other groups have plans, then all again until nothing is gained.

    Source: Singh & Jaggi 2020, "Model Fusion via Optimal Transport", arXiv:1910.05653. Differs from the paper: any
    table of symmetries in place of a chain of layers; several sweeps, and layers behind a group have a say too; inner
    products in place of distances; columns are shared out (m T) and not averaged (n T), so that copies of a unit add up
    to it.

    What a model computes is kept exactly where B has n / m units and that is a whole number (each unit is copied and
    its columns divided among the copies), and where B's units are such copies. Otherwise units are mixed: a
    nonlinearity of a mean is not the mean of it, and norms over units see other variances. Calibrate (`repair`), or do
    not use it. Scales and gauges do not move.

    Args:
        a: whose widths are taken. It is not changed.
        b: what is brought to them.
        of_a: the symmetries of A.
        of_b: of B: the same table with other sizes of groups.
        sweeps: at most so many after the first pass.

    Returns B in A's shapes, with the plans. Of equal widths it is B with its units in A's order.

    Raises `RecipeError`: G250 where the models differ in more than the sizes of groups, or in the number of heads or
    experts; G251 where a linear program would be too large (neither width divides the other). `NumericError` (G252) for
    NaN or infinity.
    """
    _check(a, b, of_a, of_b)
    fit = _Fit(a, b, of_a, of_b)
    trace = [fit.begin()]
    for _ in range(sweeps):
        trace.append(trace[-1] + fit.sweep())
        if trace[-1] - trace[-2] <= _ROUNDING * abs(trace[-1]):
            break
    return Resized(a, b, of_b, fit.plans, tuple(trace))


def _dtype(stored: str) -> str:
    return "float32" if dtypes.is_float(stored) and stored != "float64" else stored


def transported(tensor: Tensor, axes: Sequence[Axis], plans: Plans) -> Tensor:
    """A tensor of B in A's widths: float64 where a group lies in it, else as it is."""
    for number, parts in enumerate(axes):
        if any(factor.group in plans for part in parts for factor in part.factors):
            pieces = torch.split(tensor, [part.size for part in parts], number)
            made = [_along(piece.double(), number, part, plans) for piece, part in zip(pieces, parts, strict=True)]
            tensor = torch.cat(made, number)
    return tensor


def _along(piece: Tensor, axis: int, part: Part, plans: Plans, but: int | None = None) -> Tensor:
    """One part, all of the axis, with each of its factors but one."""
    sizes = [factor.size for factor in part.factors]
    for place, factor in enumerate(part.factors):
        if place != but and (plan := plans.get(factor.group or "")) is not None:
            n, m = plan.shape
            piece = mixed(piece, axis, sizes, place, (m if part.role == "in" else n) * plan[None])
            sizes[place] = n
    return piece


class _Fit:
    """Plans on their way."""

    def __init__(self, a: Source, b: Source, of_a: Symmetries, of_b: Symmetries) -> None:
        self._a, self._b, self._of_a, self._of_b = a, b, of_a, of_b
        self._names = [name for name in of_a.axes if votes(name, a.specs[name].dtype)]
        self._standing = whole(of_a)
        self._moving = [name for name in of_a.groups if name not in self._standing]
        self.plans = {name: torch.eye(of_a.groups[name].size).double() for name in self._standing}
        for plan in self.plans.values():
            plan /= len(plan)
        for name in self._moving:
            n, m = of_a.groups[name].size, of_b.groups[name].size
            self.plans[name] = torch.full((n, m), 1 / (n * m), dtype=torch.float64)

    def begin(self) -> float:
        """A first plan for each group; returns the objective."""
        settled = set(self._standing)
        for group in self._moving:
            self.plans[group] = self._best(group, settled)
            settled.add(group)
        return sum(map(self._product, self._names))

    def sweep(self) -> float:
        """Every group once more; returns what was gained."""
        gained = 0.0
        for group in self._moving:
            names, old = self._of(group), self.plans[group]
            before = sum(map(self._product, names))
            self.plans[group] = self._best(group, set(self.plans))
            gain = sum(map(self._product, names)) - before
            if gain > _ROUNDING * abs(before):
                gained += gain
            else:
                self.plans[group] = old
        return gained

    def _of(self, group: str) -> list[str]:
        return [name for name in self._names if group in groups_of(self._of_a, self._of_a.axes[name])]

    def _best(self, group: str, settled: set[str]) -> Tensor:
        """The plan that is best by the tensors whose other groups are settled, if there are any; else by all."""
        names = self._of(group)
        sure = [name for name in names if groups_of(self._of_a, self._of_a.axes[name]) <= settled | {group}]
        similarity = torch.zeros_like(self.plans[group])
        for name in sure or names:
            for seen in self._similarities(name, group):
                similarity += seen
        if not similarity.isfinite().all():
            message = "similarities of its units are NaN or infinite"
            raise NumericError(Problem("G252", message, group, "mend the weights"))
        return torch.from_numpy(np.ascontiguousarray(transport(similarity.numpy())))

    def _similarities(self, name: str, group: str) -> Iterator[Tensor]:
        """For each place of the group in a tensor: what the objective gains by a plan, entry by entry."""
        own, other = self._a[name].double(), self._b[name].double()
        of_b = self._of_b.axes[name]
        for axis, parts in enumerate(zip(self._of_a.axes[name], of_b, strict=True)):
            moved = transported(other, [() if number == axis else one for number, one in enumerate(of_b)], self.plans)
            first_a, first_b = 0, 0
            for part_a, part_b in zip(*parts, strict=True):
                sizes = [factor.size for factor in part_a.factors]
                for place, factor in enumerate(part_b.factors):
                    if factor.group == group:
                        x = own.narrow(axis, first_a, part_a.size)
                        y = _along(moved.narrow(axis, first_b, part_b.size), axis, part_b, self.plans, place)
                        mine, theirs = sizes, [*sizes[:place], factor.size, *sizes[place + 1 :]]
                        times = factor.size if part_b.role == "in" else sizes[place]
                        yield times * _units(x, axis, mine, place) @ _units(y, axis, theirs, place).T
                first_a, first_b = first_a + part_a.size, first_b + part_b.size

    def _product(self, name: str) -> float:
        moved = transported(self._b[name].double(), self._of_b.axes[name], self.plans)
        return float((self._a[name].double() * moved).sum())


def _units(piece: Tensor, axis: int, sizes: Sequence[int], place: int) -> Tensor:
    """A part, all of the axis, as (units of a factor, all else)."""
    apart = piece.reshape(*piece.shape[:axis], *sizes, *piece.shape[axis + 1 :])
    return apart.movedim(axis + place, 0).flatten(1) if apart.dim() > 1 else apart[:, None]


def _check(a: Source, b: Source, of_a: Symmetries, of_b: Symmetries) -> None:
    problems = [*of_a.problems(a.specs), *of_b.problems(b.specs)]
    odd = [name for name in {**of_a.axes, **of_b.axes} if _form(of_a.axes.get(name)) != _form(of_b.axes.get(name))]
    if odd:
        message = f"the models differ in more than the sizes of groups: {listed(sorted(odd))}"
        problems.append(Problem("G250", message, b.label, "fit models of one architecture"))
    if of_a.stacks or of_b.stacks:
        problems.append(Problem("G250", "experts have no widths to fit", b.label))
    for name in of_a.groups.keys() & of_b.groups.keys():
        n, m = of_a.groups[name].size, of_b.groups[name].size
        if n != m and name in whole(of_a):
            message = f"has {m} heads where the other has {n}, and heads are not mixed"
            problems.append(Problem("G250", message, name, "fit models with the same heads"))
        elif n * m > LARGEST and max(n, m) % min(n, m):
            message = f"has {m} units for {n}, a linear program of {n * m:,} variables"
            problems.append(Problem("G251", message, name, "take widths of which one divides the other"))
    if problems:
        raise RecipeError(problems)


def _form(axes: Sequence[Axis] | None) -> object:
    """A tensor's axes without the sizes of groups."""
    if axes is None:
        return None
    return [
        [
            (part.role, [(one.group, one.gauge, None if one.group else one.size) for one in part.factors])
            for part in parts
        ]
        for parts in axes
    ]
