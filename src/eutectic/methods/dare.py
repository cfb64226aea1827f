"""DARE: drop entries at random and rescale the rest, then add (`dare_linear`) or elect signs (`dare_ties`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from eutectic.kernels.random import Rng, drop
from eutectic.kernels.random import rescale as rescale_by_density
from eutectic.kernels.signs import disjoint_sum, elect_sign
from eutectic.kernels.sums import one_a_model, weighted_mean
from eutectic.kernels.trim import match_l1
from eutectic.lazy import LazyModule
from eutectic.methods.registry import PerModel, Range, method

if TYPE_CHECKING:
    from torch import Tensor

    from eutectic.kernels import task_vectors
else:
    task_vectors = LazyModule("eutectic.kernels.task_vectors")

ACCEPTED = {"int8_mask": "sign masks take no memory here"}
Rescale = bool | Literal["l1"]


def _drop_and_rescale(deltas: Tensor, density: float | Sequence[float], rescale: Rescale, rng: Rng) -> Tensor:
    dropped = drop(deltas, density, rng)
    if rescale == "l1":
        return match_l1(dropped, deltas)
    return rescale_by_density(dropped, density) if rescale else dropped


@method(
    paper="arXiv:2311.03099",
    family="task vectors",
    base="required",
    mergekit_defaults={"density": 1.0},
    accepted=ACCEPTED,
)
def dare_linear(
    deltas: Tensor,
    *,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range("(0, 1]")] = 0.1,
    normalize: bool = False,
    rescale: Rescale = True,
    lambda_: float = 1.0,
    rng: Rng = Rng(),  # noqa: B008 (frozen)
) -> Tensor:
    """Drops entries of each task vector at random, rescales the rest, and adds them.

    **What it does.** Yu et al. 2024, eq. 2: δ̂ = m ⊙ δ / density with m ~ Bernoulli(density), then task arithmetic.

    **When to use it.** Small deltas (|δ| mostly below 0.005), where most entries are redundant. Large or long-trained
    deltas are destroyed at low densities. For merging, densities of 0.4 to 0.9 have done better than 0.1.

    **Parameters.** `weight`: coefficient of a task vector. `density`: probability of keeping an entry (the paper's
    1-p). `rescale`: `true` divides by the density (unbiased), `l1` restores the L1 norm, `false` does neither.
    `normalize`, `lambda`: as in task arithmetic. The mask depends on (seed, model, tensor, index) and nothing else.

    **Differs from the paper.** `density` defaults to 0.1, the drop rate of 0.9 for which the paper reports no loss; its
    own merges searched 0.1 to 0.9.

    **Differs from mergekit.** `rescale: true` divides by the density, as the paper does; mergekit's L1 match is `l1`.
    `density` defaults to 0.1 (mergekit: 1, nothing dropped). Masks come from a counter-based generator, so they do not
    depend on the order of tensors or models, on threads or on the device.

    **Cost.** One pass (two with `l1`); time is bound by memory bandwidth and a random byte an entry and model.
    """
    shares = one_a_model(weight, len(deltas))
    sparse = _drop_and_rescale(deltas, density, rescale, rng)
    return weighted_mean(sparse, shares, normalize) * lambda_


@method(
    paper="arXiv:2311.03099",
    also=("arXiv:2306.01708",),
    family="task vectors",
    base="required",
    mergekit_defaults={"density": 1.0},
    accepted=ACCEPTED,
)
def dare_ties(
    deltas: Tensor,
    *,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range("(0, 1]")] = 0.1,
    normalize: bool = False,
    rescale: Rescale = True,
    lambda_: float = 1.0,
    rng: Rng = Rng(),  # noqa: B008 (frozen)
) -> Tensor:
    """Drops entries of each task vector at random, rescales the rest, elects a sign an entry, and adds those who agree.

    **What it does.** DARE (Yu et al. 2024, eq. 2) in the place of the trim of TIES (Yadav et al. 2023, Algorithm 1).

    **When to use it.** As `dare_linear`, when the task vectors disagree in sign. At low densities an entry rarely has
    two survivors, and the election does nearly nothing.

    **Parameters.** As `dare_linear`. Under `normalize` the agreeing entries are averaged, otherwise added.

    **Differs from the paper.** The authors' code drops first and then runs TIES with its own trim as well; here, as in
    mergekit, the random drop replaces the trim.

    **Differs from mergekit.** As `dare_linear`.

    **Cost.** As `dare_linear`.
    """
    shares = one_a_model(weight, len(deltas))
    sparse = _drop_and_rescale(deltas, density, rescale, rng)
    return disjoint_sum(sparse, elect_sign(sparse, shares), shares, normalize) * lambda_


@dare_linear.stream
def _stream_linear(jobs):  # type: ignore[no-untyped-def]
    return task_vectors.TaskVectors(jobs, sparsifier="drop")


@dare_ties.stream
def _stream_ties(jobs):  # type: ignore[no-untyped-def]
    return task_vectors.TaskVectors(jobs, sparsifier="drop", elect=True)
