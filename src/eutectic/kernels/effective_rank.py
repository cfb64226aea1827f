"""a sketch of δᵀδ -> how many directions a matrix δ uses, without ever holding the matrix.

The measure is the participation ratio (Σσ²)² / Σσ⁴: r equal singular values give r, and a tail of small ones counts for
little. Σσ² is the squared norm. Σσ⁴ is the trace of B² with B = δᵀδ, estimated from Y = BX for sixteen random sign
vectors X, in one pass over the rows of δ: eight of them span a low-rank approximation of B (Nyström) whose share is
exact, the other eight sample what is left of the trace (after Hutch++, Meyer et al. 2021, arXiv:2010.09649). Exact up
to rounding for rank eight and less; for a flat spectrum of rank r the relative error is about √(1 / 4r).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SPAN = 8
# Directions whose share of the sketch is below the rounding of its float32 sums are noise.
_NOISE = 1e-5


def signs(columns: int, probes: int) -> NDArray[np.float32]:
    """Random ±1 as `(columns, probes)`, always the same: the bits of Philox under key 0."""
    words = np.random.Philox(key=0).random_raw(-(-columns * probes // 64))
    bits = np.unpackbits(words.view(np.uint8))[: columns * probes]
    return (2.0 * bits - 1.0).astype(np.float32).reshape(columns, probes)


def participation(sketch: NDArray[Any], probes: NDArray[Any], square: float, most: int) -> float | None:
    """The effective rank from `sketch` = δᵀδ · probes and `square` = ‖δ‖², within 1 and `most`.

    None for a matrix of zeros, and where the squares left float32.
    """
    scale = float(np.abs(sketch).max(initial=0.0))
    if not math.isfinite(scale) or scale == 0.0:
        return None
    images, vectors = sketch / scale, probes.astype(np.float64)
    # `einsum` and not a product of matrices: BLAS may add in an order that depends on the number of threads.
    core = np.einsum("np,nq->pq", vectors[:, :_SPAN], images[:, :_SPAN])
    values, turns = np.linalg.eigh((core + core.T) / 2)
    kept = values > _NOISE * values.max(initial=0.0)
    factor = np.einsum("np,pq->nq", images[:, :_SPAN], turns[:, kept] / np.sqrt(values[kept]))
    inner = np.einsum("np,nq->pq", factor, factor)
    spanned = np.einsum("np,nq->pq", factor, vectors[:, _SPAN:])
    rest = (images[:, _SPAN:] ** 2).sum() - np.einsum("pq,pr,rq->", spanned, inner, spanned)
    fourth = (inner**2).sum() + max(0.0, float(rest)) / (probes.shape[1] - _SPAN)
    ratio = (square / scale) ** 2 / float(fourth) if fourth > 0 else math.nan
    return min(max(ratio, 1.0), float(most)) if math.isfinite(ratio) else None
