"""A step of bounded size from one model towards another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from eutectic.lazy import LazyModule
from eutectic.methods.registry import Range, method

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from eutectic.kernels import gram_streams
else:
    torch = LazyModule("torch")
    gram_streams = LazyModule("eutectic.kernels.gram_streams")


@method(
    paper="arXiv:2403.13257",
    family="averages",
    base="first",
    models=(2, 2),
    elementwise=True,
    symmetric=False,
    example={"t": 0.001},
    accepted={"int8_mask": "no sign masks are made"},
)
def nearswap(weights: Tensor, *, t: Annotated[float, Range("[0, inf)")]) -> Tensor:
    """Moves each entry of the base towards the other model by at most `t`.

    **What it does.** θ = θ₀ + clip(θ₁ - θ₀, -t, t), entry by entry: where the models differ by no more than t the
    other's entry is taken, elsewhere the base moves by t. It is mergekit's w θ₁ + (1-w) θ₀ with w = min(1, t/|θ₁ - θ₀|)
    (after alchemonaut's QuartetAnemoi-70B, which used t = 0.0001).

    **When to use it.** To take from another model only what is near to the base, and bound every entry's change.

    **Parameters.** `t`: the largest change, in units of the weights and not a share: 0 is the base, and from the
    largest difference on it is the other model.

    **Differs from the paper.** There is no paper of its own.

    **Differs from mergekit.** Differences below 1e-6 are no special case: mergekit divides by 1e-6 there, so a smaller
    `t` moves such entries by less than `t`. Exactly the base at t = 0, exactly the other's entry within t.

    **Cost.** One pass over both models; time is bound by memory bandwidth.
    """
    a, b = weights.double()
    distance = b - a
    moved = torch.where(distance > 0, a + t, a - t)
    return torch.where(distance.abs() <= t, weights[1], moved.to(weights.dtype))


@nearswap.stream
def _stream(jobs):  # type: ignore[no-untyped-def]
    return gram_streams.NearSwap(jobs)
