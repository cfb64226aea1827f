"""Model Breadcrumbs: drop the largest and the smallest entries, then add (`breadcrumbs`) or elect signs too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from eutectic.kernels.signs import disjoint_sum, elect_sign
from eutectic.kernels.sums import one_a_model, weighted_mean
from eutectic.kernels.trim import keep_band, keep_band_of_rows, match_l1
from eutectic.lazy import LazyModule
from eutectic.methods.registry import PerModel, Range, method

if TYPE_CHECKING:
    from torch import Tensor

    from eutectic.kernels import bands, task_vectors
    from eutectic.kernels.streams import Stream, StreamJob
else:
    bands = LazyModule("eutectic.kernels.bands")
    task_vectors = LazyModule("eutectic.kernels.task_vectors")

Scope = Literal["tensor", "row", "model"]
ACCEPTED = {"int8_mask": "sign masks take no memory here"}


@method(
    paper="arXiv:2312.06795",
    family="task vectors",
    base="required",
    scopes=("tensor", "row", "model"),
    mergekit_defaults={"density": 1.0},
    accepted=ACCEPTED,
)
def breadcrumbs(
    deltas: Tensor,
    *,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range("(0, 1]")] = 0.15,
    gamma: Annotated[PerModel, Range("[0, 1)")] = 0.01,
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    scope: Scope = "tensor",
) -> Tensor:
    """Removes the largest and the smallest entries of each task vector, and adds what is left between.

    **What it does.** Davari & Belilovsky 2024: of each τᵢ mask both tails of |τᵢ|, then θ = θ₀ + λ Σ wᵢ mᵢ ⊙ τᵢ. The
    share `gamma` of largest magnitude goes; of the rest the share `density` (of all entries) of largest magnitude
    stays.

    **When to use it.** Many fine-tunes of one base added up, without tuning for each: the authors keep one setting as
    tasks are added, with λ of 0.2 to 0.4. Where the largest changes carry the skill, as in embeddings of new tokens,
    use `gamma: 0`, which is a plain trim, or TIES.

    **Parameters.** `weight`: coefficient of a task vector. `density`: share of entries kept. `gamma`: share of largest
    entries removed first. `normalize`: divide by the sum of weights. `rescale`: scale each sparse delta to its L1 norm
    before. `lambda`: scale of the whole. In a recipe, `scope: tensor` ranks each tensor by itself, `scope: row` each
    row of a tensor (along its last axis) and `scope: model` the whole model.

    **Differs from the paper.** The paper gives the two thresholds β and γ; here β is 1 - `density` - `gamma`. `density`
    defaults to the 0.15 of the authors' code, `gamma` to mergekit's 0.01, in the range of 0.001 to 0.01 that they
    search. The paper masks a layer at a time, which is `scope: tensor`; the authors' code ranks each row of a matrix by
    itself, which is `scope: row`, and so empties a 3 × 3 convolution: here at least one entry of a row stays.
    `scope: model`, weights, `normalize` and `rescale` are extensions. Exactly ⌊density · n⌋ entries (at least one)
    stay; of equal magnitudes the first by flat index count as larger.

    **Differs from mergekit.** `density` defaults to 0.15 (mergekit: 1, nothing removed, whatever `gamma` is). As there,
    `density` comes first: at most what it leaves is removed, so at 1 everything stays. Tensors of less than 1/`gamma`
    entries keep their largest ones, where earlier releases of mergekit zero the whole delta. At least one entry stays.
    Float32 throughout, rounded once; equal magnitudes are broken by index, not by an unstable sort.

    **Cost.** As `ties`, with a second threshold counted in the same passes. `scope: row` is one pass, or two with
    `rescale`, in which every row of each model is partitioned.
    """
    shares = one_a_model(weight, len(deltas))
    band = (keep_band_of_rows if scope == "row" else keep_band)(deltas, density, gamma)
    if rescale:
        band = match_l1(band, deltas)
    return weighted_mean(band, shares, normalize) * lambda_


@method(
    paper="arXiv:2312.06795",
    also=("arXiv:2306.01708",),
    family="task vectors",
    base="required",
    scopes=("tensor", "row", "model"),
    mergekit_defaults={"density": 1.0},
    accepted=ACCEPTED,
)
def breadcrumbs_ties(
    deltas: Tensor,
    *,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range("(0, 1]")] = 0.15,
    gamma: Annotated[PerModel, Range("[0, 1)")] = 0.01,
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    scope: Scope = "tensor",
) -> Tensor:
    """Removes the largest and smallest entries of each task vector, elects a sign an entry, and adds those who agree.

    **What it does.** The mask of Model Breadcrumbs (Davari & Belilovsky 2024) in the place of the trim of TIES (Yadav
    et al. 2023, Algorithm 1).

    **When to use it.** As `breadcrumbs`, when the task vectors disagree in sign.

    **Parameters.** As `breadcrumbs`. Under `normalize` the agreeing entries are averaged, otherwise added.

    **Differs from the paper.** As `breadcrumbs`. The sign election is TIES's; a vote of exactly zero elects +.

    **Differs from mergekit.** As `breadcrumbs`.

    **Cost.** As `breadcrumbs`.
    """
    shares = one_a_model(weight, len(deltas))
    band = (keep_band_of_rows if scope == "row" else keep_band)(deltas, density, gamma)
    if rescale:
        band = match_l1(band, deltas)
    return disjoint_sum(band, elect_sign(band, shares), shares, normalize) * lambda_


@breadcrumbs.stream
def _stream(jobs):  # type: ignore[no-untyped-def]
    return _bands(jobs, elect=False)


@breadcrumbs_ties.stream
def _stream_ties(jobs):  # type: ignore[no-untyped-def]
    return _bands(jobs, elect=True)


def _bands(jobs: Sequence[StreamJob], elect: bool) -> Stream:
    if jobs[0].parameters["scope"] == "row":
        return bands.BandsOfRows(jobs, elect=elect)
    return task_vectors.TaskVectors(jobs, sparsifier="band", elect=elect)


def _fewer_outliers(given: dict[str, Any], models: int) -> str | None:
    """Says so where less than `gamma` is removed; at a density of 1 everything stays, as asked."""
    for density, gamma in zip(*(one_a_model(given[name], models) for name in ("density", "gamma")), strict=True):
        if density < 1 and gamma + density - 1 > 1e-9:
            return f"gamma {gamma:g} is more than density {density:g} leaves: at most {1 - density:g} is removed"
    return None


breadcrumbs.remarks(_fewer_outliers)
breadcrumbs_ties.remarks(_fewer_outliers)
