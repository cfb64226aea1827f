"""WiSE-FT and PAINT: interpolation between a base and its fine-tunes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from eutectic.kernels.sums import weighted_sum
from eutectic.lazy import LazyModule
from eutectic.methods.registry import Range, method

if TYPE_CHECKING:
    from torch import Tensor

    from eutectic.kernels import gram_streams
else:
    gram_streams = LazyModule("eutectic.kernels.gram_streams")


def _coefficients(alpha: float, models: int) -> list[float]:
    return [alpha / models] * models


@method(
    paper="arXiv:2109.01903",
    also=("arXiv:2208.05592",),
    family="averages",
    base="required",
    elementwise=True,
    neutral={"alpha": 1.0},
)
def wise_ft(deltas: Tensor, *, alpha: Annotated[float, Range("[0, 1]")] = 0.5) -> Tensor:
    """Interpolates between the base and the mean of its fine-tunes, to keep what the base could do.

    **What it does.** θ = (1-α) θ₀ + α θ₁ (Wortsman et al. 2022, WiSE-FT), with several fine-tunes
    θ₀ + α/K Σ τᵢ.

    **When to use it.** A fine-tune that forgot: an α between 0 and 1 often keeps the target task and regains much of
    the rest, and may beat both ends on the target itself. Sweep α in steps of 0.1 on held-out data of both.

    **Parameters.** `alpha`: 0 is the base, 1 the mean of the fine-tunes; a gradient or filters give each layer its
    own, which the papers did not try.

    **Differs from the paper.** The default of 0.5 is what WiSE-FT recommends where no data are at hand. PAINT (Ilharco
    et al. 2022) is the same interpolation, α chosen on held-out data of the target and of supported tasks; for several
    tasks at once it adds their task vectors, which with one coefficient for all is this, α being K times theirs. Heads
    are merged like any other tensor.

    **Differs from mergekit.** mergekit does not have it under a name; it is its `task_arithmetic` with `weight` = α/K.

    **Cost.** One pass over the base and every model; time is bound by memory bandwidth.
    """
    return weighted_sum(deltas, _coefficients(alpha, len(deltas)))


@wise_ft.stream
def _stream(jobs):  # type: ignore[no-untyped-def]
    return gram_streams.Combination(jobs, lambda job: _coefficients(job.parameters["alpha"], job.models))
