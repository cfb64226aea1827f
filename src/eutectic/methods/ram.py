"""Reinforced agent merging: what one model changed is kept whole, what several changed is averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from eutectic.kernels.consensus import changed, mean_of_changed, position_counts, uniqueness_factor
from eutectic.lazy import LazyModule
from eutectic.methods.registry import Range, method

if TYPE_CHECKING:
    from torch import Tensor

    from eutectic.kernels import consensus_streams
else:
    consensus_streams = LazyModule("eutectic.kernels.consensus_streams")

Epsilon = Annotated[float, Range("[0, inf)")]


@method(paper="arXiv:2601.13572", family="task vectors", base="required", elementwise=True, scratch=16)
def ram(deltas: Tensor, *, epsilon: Epsilon = 1e-5) -> Tensor:
    """Averages each entry over the models that changed it, so that what only one changed is not diluted.

    **What it does.** Yuan et al. 2026 (RAM). An entry is changed by model i where |τᵢ| > ε; its delta is the mean over
    the models that changed it, and zero if none did. Where one model alone did, that is its own delta.

    **When to use it.** Agents trained from one base by reinforcement learning, whose task vectors are sparse and
    overlap little. For dense fine-tunes nearly every entry is shared, and it is the mean of the task vectors.

    **Parameters.** `epsilon`: changes up to this magnitude count as none, 1e-5 as in the authors' code. All models
    count alike.

    **Differs from the paper.** It does not.

    **Differs from mergekit.** Float32 deltas and one rounding, where mergekit computes in the checkpoint's dtype and
    rounds at every step.

    **Cost.** One pass over the base and every model; time is bound by memory bandwidth.
    """
    return mean_of_changed(deltas, changed(deltas, epsilon), [1.0] * len(deltas))


@method(
    paper="arXiv:2601.13572",
    family="task vectors",
    base="required",
    scopes=("tensor", "model"),
    scratch=16,
)
def ramplus_tl(deltas: Tensor, *, r: float = 0.1, alpha: Epsilon = 0.2, epsilon: Epsilon = 1e-5) -> Tensor:
    """Averages entries that several models changed, and strengthens those that one alone changed.

    **What it does.** RAM+ (Yuan et al. 2026): as `ram`, but where only model i changed an entry its delta is multiplied
    by 1 + r · min(ρᵢ, α), ρᵢ being the entries it shares with others over those it has alone. Averaging weakens a model
    where it overlaps; this makes up for it where it does not.

    **When to use it.** As `ram`.

    **Parameters.** `r`: strength. `alpha`: bound of the ratio. `epsilon`: as in `ram`. In a recipe, `scope: tensor`
    takes the ratio in each tensor by itself and `scope: model` over the whole model. The defaults are mergekit's (the
    authors' script: 0.05 and a bound of 1).

    **Differs from the paper.** The paper takes one ratio a model: that is `scope: model` (exact, streamed). The default
    is the tensor-local ratio that gave the method its name in mergekit.

    **Differs from mergekit.** As `ram`. The factor is float64 (mergekit: float32, also in a float64 merge). `scope:
    model` is not there. A model without entries of its own has no ratio; mergekit divides by `epsilon`, which changes
    nothing, as there is nothing to multiply.

    **Cost.** Two passes over a tensor (the counts, the combination), one from the disk while the tensor fits the memory
    bound.
    """
    active = changed(deltas, epsilon)
    factors = [uniqueness_factor(shared, unique, r, alpha) for shared, unique in position_counts(active)]
    return mean_of_changed(deltas, active, factors)


@ram.stream
def _stream(jobs):  # type: ignore[no-untyped-def]
    return consensus_streams.EntryByEntry(jobs, consensus_streams.changed)


@ramplus_tl.stream
def _stream_plus(jobs):  # type: ignore[no-untyped-def]
    return consensus_streams.Positions(jobs)
