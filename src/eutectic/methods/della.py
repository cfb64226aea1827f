"""DELLA: drop entries at random by their rank in the row, then elect signs (`della`) or add (`della_linear`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from eutectic.kernels.random import Rng
from eutectic.kernels.ranked import keep_by_rank, width_of
from eutectic.kernels.signs import disjoint_sum, elect_sign
from eutectic.kernels.sums import one_a_model, weighted_mean
from eutectic.lazy import LazyModule
from eutectic.methods.registry import PerModel, Range, method

if TYPE_CHECKING:
    from torch import Tensor

    from eutectic.kernels import ranked
else:
    ranked = LazyModule("eutectic.kernels.ranked")

ACCEPTED = {"int8_mask": "sign masks take no memory here"}
Rescale = bool | Literal["l1"]


@method(
    paper="arXiv:2406.11617",
    also=("arXiv:2306.01708",),
    family="task vectors",
    base="required",
    by_row=True,
    mergekit_defaults={"density": 1.0, "epsilon": 0.15},
    accepted=ACCEPTED,
    scratch=48,
)
def della(
    deltas: Tensor,
    *,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range("(0, 1]")] = 0.7,
    epsilon: Annotated[PerModel, Range("[0, 1)")] = 0.07,
    normalize: bool = True,
    rescale: Rescale = True,
    lambda_: float = 1.0,
    rng: Rng = Rng(),  # noqa: B008 (frozen)
) -> Tensor:
    """Drops entries at random, small ones more often than large ones, rescales the rest, and merges them by sign.

    **What it does.** Deep et al. 2024. *Drop* (MagPrune): within each row the smallest |δ| is kept with probability
    `density` - `epsilon`, the largest with `density` + `epsilon`, those between in equal steps of rank; what is kept is
    divided by its probability. *Elect* and *fuse*: as TIES, the mean of the entries whose sign is that of Σ wᵢ δ̂ᵢ.

    **When to use it.** Where DARE is: many small changes of which most are redundant. The authors find it ahead of DARE
    and TIES for three experts of 13 B parameters.

    **Parameters.** `weight`: share of a model in vote and mean. `density`: mean probability of keeping an entry.
    `epsilon`: half the width of the window of probabilities; 0 is DARE. `rescale`: `true` divides by the probability
    (unbiased), `l1` restores the L1 norm, `false` does neither. `normalize`: divide by the weights of those who agree.
    `lambda`: scale of the whole. The mask depends on (seed, model, tensor, index) and the ranks, and nothing else.

    **Differs from the paper.** Its ε is the whole width of the window, `epsilon` is half of it, as in mergekit. Ranks
    go from 0 to n-1 of n, so that the mean probability is exactly `density`. A window that does not fit between 0 and 1
    is narrowed around the density until it does, so `density: 1` drops nothing. Rows run along the last axis; a vector
    is one row, and a row of one entry has the density itself. Equal magnitudes, of which a bfloat16 fine-tune has many,
    share the mean of their ranks, so the order of columns favours none; a row of equal ones has the density throughout.
    Probabilities are whole multiples of 2⁻¹⁶, and the inverse taken is theirs. Defaults are those of the authors' code:
    a drop rate of 0.3 and a window of 0.14; its λ of 1.1 is not taken over.

    **Differs from mergekit.** `rescale: true` divides by each entry's probability, as in the paper; mergekit's L1 match
    is `l1`. Defaults are 0.7 and 0.07 (mergekit: density 1, which drops nothing, and 0.15). Windows that do not fit are
    refused there, and rows of one entry fail. Packed experts and convolutions are ranked along their last axis, not the
    second. Ranks are exact, and equal magnitudes have one; in bfloat16 mergekit has about 700 different ones in a row
    of 4,096. Masks come from a counter-based generator.

    **Cost.** One pass, or two with `l1`; ranking each row of every model is half of the arithmetic for 16-bit floats,
    and most of it for others, whose rows are sorted.
    """
    shares = one_a_model(weight, len(deltas))
    kept = keep_by_rank(deltas, density, epsilon, rescale, rng)
    return disjoint_sum(kept, elect_sign(kept, shares), shares, normalize) * lambda_


@method(
    paper="arXiv:2406.11617",
    family="task vectors",
    base="required",
    by_row=True,
    mergekit_defaults={"density": 1.0, "epsilon": 0.15},
    accepted=ACCEPTED,
    scratch=48,
)
def della_linear(
    deltas: Tensor,
    *,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range("(0, 1]")] = 0.7,
    epsilon: Annotated[PerModel, Range("[0, 1)")] = 0.07,
    normalize: bool = False,
    rescale: Rescale = True,
    lambda_: float = 1.0,
    rng: Rng = Rng(),  # noqa: B008 (frozen)
) -> Tensor:
    """Drops entries at random, small ones more often than large ones, rescales the rest, and adds them.

    **What it does.** The first step of DELLA (Deep et al. 2024, MagPrune), then task arithmetic.

    **When to use it.** As `della`, when the task vectors hardly disagree in sign.

    **Parameters.** As `della`; `normalize`: divide by the sum of weights.

    **Differs from the paper.** As `della`; without its election of signs.

    **Differs from mergekit.** As `della`.

    **Cost.** As `della`.
    """
    shares = one_a_model(weight, len(deltas))
    kept = keep_by_rank(deltas, density, epsilon, rescale, rng)
    return weighted_mean(kept, shares, normalize) * lambda_


def _narrowed(given: dict[str, Any], models: int) -> str | None:
    """Says so where the window is narrowed; at a density of 1, where there is none, nothing is dropped as asked."""
    for density, epsilon in zip(*(one_a_model(given[name], models) for name in ("density", "epsilon")), strict=True):
        if density < 1 and epsilon - (width := width_of(density, epsilon)) > 1e-9:
            return f"epsilon {epsilon:g} does not fit between 0 and 1 around density {density:g}: {width:g} is used"
    return None


della.remarks(_narrowed)
della_linear.remarks(_narrowed)


@della.stream
def _stream(jobs):  # type: ignore[no-untyped-def]
    return ranked.Della(jobs, elect=True)


@della_linear.stream
def _stream_linear(jobs):  # type: ignore[no-untyped-def]
    return ranked.Della(jobs, elect=False)
