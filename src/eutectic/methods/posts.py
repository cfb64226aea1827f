"""What a recipe may do with the merged change under `post`, after any method: names, parameters, papers.

The arithmetic is in `kernels.calibration`; `run.post` applies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from eutectic.methods.registry import Param, Range

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class PostProcessor:
    """One step that rescales the merged change θ - θ₀ of a tensor.

    Attributes:
        name: what a recipe says under `post`.
        title: what it does, in one sentence.
        about: its page, with the sections of a method's.
        papers: where it is from; may be empty.
        params: its parameters, each one value, a gradient or filters.
        scopes: over what it takes norms.
        matrix: needs whole tensors.
    """

    name: str
    title: str
    about: str
    papers: tuple[str, ...]
    params: Mapping[str, Param]
    scopes: tuple[str, ...] = ("tensor",)
    matrix: bool = False


def _number(name: str, default: float | str | None, allowed: str, *, auto: bool = False) -> Param:
    return Param(name, "float", False, default is None, default, Range(allowed), (AUTO,) if auto else ())


LINES = PostProcessor(
    "lines",
    "Scales the merged change by a factor that grows with the layer.",
    """**What it does.** Wang et al. 2025 (LiNeS): the change of layer ℓ of L is multiplied by α + β ℓ/(L-1), that of
tensors outside of the layers by α.

**When to use it.** With α < 1 the shallow layers, which hold what all tasks share, keep more of the base: for a merge
of several tasks, and for one fine-tune that forgot.

**Parameters.** `alpha`: factor of the first layer. `auto`, the default, is the paper's choice for several tasks,
‖Σ τᵢ‖ / ‖τ‖ / K over the whole model, where τ is what the method made and every model listed counts. `beta`: what is
added up to the last layer; the paper sweeps 0 to 1 with `alpha: auto`. For one model it sweeps α and takes β = 1 - α.

**Differs from the paper.** Layers are the numbers in the tensors' names, counted in each stack (encoder, decoder) by
itself; of a single layer the factor is α.

**Cost.** That of the method; with `alpha: auto` one more pass over the inputs first.""",
    ("arXiv:2410.17146",),
    {"alpha": _number("alpha", AUTO, "[0, 10]", auto=True), "beta": _number("beta", None, "[-10, 10]")},
)

SVC = PostProcessor(
    "svc",
    "Calibrates the singular values of the merged change: damps directions that several models share.",
    """**What it does.** Singular value calibration (Li et al. 2026). For each left singular vector u of the merged
change Δ the model's part is aᵢ = uᵀτᵢ and the merge's a = uᵀΔ; sᵢ = ⟨a, aᵢ⟩ / ‖aᵢ‖² says how many times the merge
holds what model i asked for, and the singular value is multiplied by γ = K / Σ max(α, sᵢ).

**When to use it.** After a method that adds task vectors, whose common directions are then counted several times. What
it strengthens undoes a small `lambda`: choose that again with the step in place.

**Parameters.** `alpha`: the least sᵢ that counts, which bounds γ. `auto`, the default, is the paper's 1/K (the authors'
code has 0.1); 1 only damps. `spectral`: `false` leaves a tensor as it is. A matrix is a tensor of two axes, each matrix
of a packed three, a convolution as (out, rest); other tensors stay. Leave out embeddings and heads by filters: they are
large, and the paper's experiments leave them out.

**Differs from the paper.** A model without a response along u, where sᵢ is 0/0, is left out of that direction's K and
sum; a direction that none responds to, or that is rounding noise, stays.

**Cost.** One eigendecomposition of the smaller side of a matrix, in float64, and two products with every model's
change; whole tensors in memory.""",
    ("arXiv:2602.05536",),
    {
        "alpha": _number("alpha", AUTO, "(0, 1]", auto=True),
        "spectral": Param("spectral", "bool", False, False, True),
    },
    matrix=True,
)

NORM_GUARD = PostProcessor(
    "norm_guard",
    "Shortens the merged change where it is longer than that of every parent.",
    """**What it does.** A change that is longer than `factor` times the longest of its parents' is scaled down to that;
a shorter one stays bit for bit.

**When to use it.** After any sum. Sums of task vectors that leave the region where their parents were good are the
usual way in which a merge goes wrong. It does not replace choosing `lambda`.

**Parameters.** `factor`: of the longest parent's norm. `scope`: `tensor` guards each tensor by itself, `model` scales
the whole change by one factor, which keeps its direction. Every model listed is a parent, whatever its weight.

**Differs from the paper.** There is no paper of its own.

**Cost.** Norms of each tensor beforehand, read once while it fits the memory bound; with `scope: model` one more pass
over the inputs first.""",
    (),
    {"factor": _number("factor", 1.0, "(0, 100]")},
    scopes=("tensor", "model"),
)

POSTS: Mapping[str, PostProcessor] = {post.name: post for post in (LINES, NORM_GUARD, SVC)}


def steps() -> Mapping[str, PostProcessor]:
    """Every step by name."""
    return POSTS
