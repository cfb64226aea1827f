"""Arcee Fusion: take over only the entries whose change matters most."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eutectic.kernels.importance import are_important
from eutectic.lazy import LazyModule
from eutectic.methods.registry import method

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from eutectic.kernels import importance
else:
    torch = LazyModule("torch")
    importance = LazyModule("eutectic.kernels.importance")


@method(
    paper="arXiv:2403.13257",
    family="task vectors",
    base="first",
    models=(2, 2),
    by_row=True,
    symmetric=False,
    accepted={"int8_mask": "no sign masks are made"},
)
def arcee_fusion(weights: Tensor) -> Tensor:
    """Takes from a fine-tune only the entries whose change is an outlier in importance.

    **What it does.** By mergekit's definition (Goddard et al. 2024): the importance of an entry
    is |θ₁ - θ₀| · KL(softmax(θ₁) ‖ softmax(θ₀)), the softmax over its row (the last axis). Entries of importance at
    least median + 1.5 · (Q₃ - Q₁) of their tensor are the fine-tune's, the others the base's.

    **When to use it.** To move a few strong changes to the base, two models only. It has no parameter. Where more than
    three quarters of a tensor are unchanged the threshold is 0 and every change is taken.

    **Parameters.** None.

    **Differs from the paper.** There is no paper of its own. A row whose entries all change by the same amount has no
    divergence; a tensor of one entry a row is taken over whole, its threshold being 0. What is NaN or infinite counts
    as most important, where `--nonfinite count` lets it through.

    **Differs from mergekit.** Quartiles are exact and interpolated (mergekit sorts a random million of larger tensors,
    so its result depends on a seed, and takes the entry below). The divergence is taken in float64: in float32,
    mergekit's is off by 8 % for changes of 1e-3 in rows of 256, and from 1e-4 down it is rounding noise, half of it
    negative. Only the importances are rounded to float32 (float64 in a float64 merge). Chosen entries are the
    fine-tune's exactly.

    **Cost.** Two passes and a sample: importances and their quartiles, the combination. Some 6 ns an entry, a third of
    it for the softmaxes, which are computed once for rows of 64 entries and more. They take 4 ns more in a row with a
    weight beyond 0.34 or a change beyond 1/64.
    """
    if weights.numel() == 0:
        return weights[0]
    return torch.where(are_important(weights), weights[1], weights[0])


# Six order statistics are counted where others count two models.
arcee_fusion.stream(lambda jobs: importance.ArceeFusion(jobs), working=1)
