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
        about: the formula, when to use it, how it differs from the paper.
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
    "LiNeS (Wang et al. 2025): layer ℓ of L gets α + β ℓ/(L-1); tensors outside of the layers get α. With α < 1 the "
    "shallow layers, which hold what all tasks share, keep more of the base. `alpha: auto` is the paper's choice for "
    "several tasks, ‖Σ τᵢ‖ / ‖τ‖ / K over the whole model, and needs one more pass over the inputs. For one model "
    "and against forgetting the paper takes β = 1 - α.",
    ("arXiv:2410.17146",),
    {"alpha": _number("alpha", AUTO, "[0, 10]", auto=True), "beta": _number("beta", None, "[-10, 10]")},
)

SVC = PostProcessor(
    "svc",
    "Calibrates the singular values of the merged change: damps directions that several models share.",
    "Singular value calibration (arXiv:2602.05536): γ = K / Σ max(α, sᵢ) for each left singular vector, where sᵢ says "
    "how many times the merged change holds what model i asked for along it. `alpha: auto` is 1/K, the paper's; 1 "
    "only damps. A matrix is a tensor of two axes, each matrix of a packed three, a convolution as (out, rest); other "
    "tensors, and those with `spectral: false`, stay. Exclude embeddings and heads by filters: they are large, and "
    "the experiments of the paper leave them out.",
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
    "The change of a tensor (`scope: tensor`) or of the whole model (`scope: model`, one more pass over the inputs) is "
    "scaled down to `factor` times the longest of its parents'. Sums of task vectors that leave the region where "
    "their parents were good are the usual way in which a merge goes wrong.",
    (),
    {"factor": _number("factor", 1.0, "(0, 100]")},
    scopes=("tensor", "model"),
)

POSTS: Mapping[str, PostProcessor] = {post.name: post for post in (LINES, NORM_GUARD, SVC)}


def steps() -> Mapping[str, PostProcessor]:
    """Every step by name."""
    return POSTS
