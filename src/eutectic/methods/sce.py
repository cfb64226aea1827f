"""SCE: select where models differ, calculate coefficients from what is selected, erase minority signs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from eutectic.kernels.signs import disjoint_sum, elect_sign
from eutectic.kernels.spread import energies, energy_shares, keep_most_spread
from eutectic.lazy import LazyModule
from eutectic.methods.registry import Range, method

if TYPE_CHECKING:
    from torch import Tensor

    from eutectic.kernels import spread
else:
    spread = LazyModule("eutectic.kernels.spread")


@method(
    paper="arXiv:2408.07990",
    family="task vectors",
    base="required",
    accepted={"int8_mask": "sign masks take no memory here"},
    scratch=24,
)
def sce(deltas: Tensor, *, select_topk: Annotated[float, Range("(0, 1]")] = 1.0) -> Tensor:
    """Keeps the entries on which the models differ most, weighs models by their energy there, and drops minority signs.

    **What it does.** Wan et al. 2024 (FuseChat): *select* the share `select_topk` of entries whose variance over the
    models is largest; *calculate* a coefficient a model and tensor, ηᵢ = Σ τ̂ᵢ² / Σⱼ Σ τ̂ⱼ²; *erase* the entries whose
    sign is not that of Σ τ̂ᵢ; Δ = Σ ηᵢ τ̂ᵢ / Σ ηᵢ over what remains.

    **When to use it.** Few strong models of one base, above all reasoning and chat models; there are no weights to
    choose. A model that moved little has little say.

    **Parameters.** `select_topk`: share of the entries that differ between the models which is selected, tensor by
    tensor; 1 selects all.

    **Differs from the paper.** The share is one of the entries that differ at all, as in mergekit, where the paper
    takes it of all entries; exactly so many, at least one, of equal variances the first by flat index. Where the models
    differ nowhere in a tensor there is nothing to select by, and all of it stays. `select_topk` defaults to mergekit's
    1.

    **Differs from mergekit.** Coefficients are ratios at any scale: mergekit makes them equal where mean squares sum to
    less than 1e-6, as they do in most fine-tunes, and takes 1e-6 as the least sum of agreeing coefficients. Small
    tensors keep at least one entry, and one on which all models agree keeps everything (mergekit: the base). Float32
    deltas and float64 sums; the variance is taken of float32 deltas in float64.

    **Cost.** With `select_topk` of 1 two passes over a tensor (energies, the combination), else five.
    """
    selected = keep_most_spread(deltas, select_topk)
    return disjoint_sum(selected, elect_sign(selected, [1.0] * len(deltas)), energy_shares(energies(selected)))


@sce.stream
def _stream(jobs):  # type: ignore[no-untyped-def]
    return spread.Sce(jobs)
