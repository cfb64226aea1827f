"""A merged delta -> the same delta rescaled: by spectral direction, by depth, or as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eutectic.kernels.matrices import RESOLVED, matrices_in, singular
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


def svc(merged: Tensor, deltas: Tensor, alpha: float) -> Tensor:
    """Singular value calibration (arXiv:2602.05536): damps directions that the merge counts more than once.

    Along a left singular vector u of the merged delta, the response of model i is aᵢ = uᵀτᵢ and the merge's a = uᵀΔ;
    sᵢ = ⟨a, aᵢ⟩ / ‖aᵢ‖² says how often the merge has what the model asked for. The singular value is multiplied by
    γ = K / Σ max(alpha, sᵢ). With `alpha` = 1 nothing is amplified; the paper takes 1/K.

    A model without a response along u is left out of that direction's mean, and a direction that none responds to
    stays: there sᵢ is 0/0, or rounding noise over less of it, which would be anything. None is a response of at most
    `RESOLVED` of the model's norm. Matrices are those of `matrices_in`: a tensor of two axes, the last two of
    three (packed experts), the first against the rest of more (a convolution). Anything else comes back unchanged.

    `merged (*shape)` and `deltas (K, *shape)`; the result has the dtype of `merged` and is computed in float64.
    Directions of the merge too weak to be resolved (see `matrices.RESOLVED`) keep their singular values. `alpha` must
    be positive. Deltas with NaN or infinity have no singular vectors: `merged` comes back unchanged.
    """
    found = matrices_in(merged.shape)
    if found is None or not (merged.isfinite().all() and deltas.isfinite().all()):
        return merged
    targets = merged.reshape(found)
    stacks = deltas.reshape(len(deltas), *found)
    calibrated = [_calibrated(target, stacks[:, number], alpha) for number, target in enumerate(targets)]
    return torch.stack(calibrated).reshape(merged.shape).to(merged.dtype)


def _calibrated(merged: Tensor, deltas: Tensor, alpha: float) -> Tensor:
    target = merged.double()
    left = singular(target)[0]
    response = left.T @ target
    total = response.new_zeros(len(response))
    models = response.new_zeros(len(response))
    for delta in deltas:
        own = left.T @ delta.double()
        size = own.square().sum(1)
        responds = size > (RESOLVED * delta.double().norm()) ** 2
        share = (response * own).sum(1) / torch.where(responds, size, 1.0)
        total += torch.where(responds, share.clamp(min=alpha), 0.0)
        models += responds
    gamma = torch.where(models > 0, models / total, 1.0)
    # A difference, so that what `singular` leaves out stays, and a γ of one changes nothing.
    return target + left @ (response * (gamma - 1.0)[:, None])


def lines_scale(layer: int | None, layers: int, alpha: float, beta: float) -> float:
    """LiNeS (arXiv:2410.17146): the factor of a task vector in layer 0 … `layers` - 1, growing linearly with depth.

    alpha in the first layer and in tensors of no layer (None), alpha + beta in the last. A single layer is the first.
    """
    if layer is None or layers < 2:
        return alpha
    return alpha + beta * layer / (layers - 1)


def lines_alpha(summed_norm: float, merged_norm: float, models: int) -> float:
    """LiNeS's α without data: ‖Σ τᵢ‖ / ‖τ‖ / K, which gives shallow layers the length of the mean task vector.

    `summed_norm` is that of the sum of task vectors and `merged_norm` that of the merged one, over the whole model. A
    merged delta of norm zero has nothing to scale: 1.
    """
    return summed_norm / merged_norm / models if merged_norm else 1.0


def norm_guard_factor(merged_norm: float, parent_norms: Sequence[float]) -> float:
    """What shortens a merged delta to the longest of its parents', and leaves a shorter one alone: at most 1."""
    longest = max(parent_norms)
    return longest / merged_norm if merged_norm > longest else 1.0
