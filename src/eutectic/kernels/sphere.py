"""inner products -> the coefficients of points on a sphere: interpolations and means of directions.

Slerp and the means below lie in the span of their inputs, so they are weighted sums whose coefficients follow from the
inputs' Gram matrix. All of them are smooth functions of the cosines, also where the cosines are near 1: an error of one
float64 rounding in a cosine is one in a coefficient, however small the angle. So inner products are enough, and no
difference of unit vectors has to be read for the sake of small angles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from eutectic.kernels.sums import divisor

Gram = Sequence[Sequence[float]]
Norm = Literal["raw", "unit", "matched"]

# Beyond this cosine the endpoints are (nearly) antipodal: no unique geodesic, and 1/sinΩ amplifies over 30 times.
ANTIPODAL = -0.9995
# A mean of unit vectors shorter than this has lost four digits to cancellation: of its direction, float32 inputs leave
# three, and further in, float64 inner products do not even find the same length in two orders of summation.
VANISHED = 1e-4


def slerp_coefficients(aa: float, ab: float, bb: float, t: float, norm: Norm = "raw") -> tuple[float, float]:
    """(cₐ, c_b) with slerp(a, b) = cₐ a + c_b b, from ⟨a,a⟩, ⟨a,b⟩, ⟨b,b⟩ (Shoemake 1985).

    `unit` interpolates the directions by slerp and the norms linearly; `matched` is slerp with b first scaled to the
    norm of a. The angle comes from atan2, which is accurate for every angle. Linear interpolation where the sphere has
    no answer: an endpoint of norm zero has no direction, parallel endpoints no angle, antipodal ones no unique
    geodesic. At t = 0 and t = 1 the coefficients are exactly 0 and 1 (`matched`: that of the scaled endpoint).
    """
    size_a, size_b = math.sqrt(aa), math.sqrt(bb)
    norms = size_a * size_b
    directed = norms != 0.0 and math.isfinite(norms)
    scale = size_a / size_b if norm == "matched" and directed else 1.0
    if t in (0.0, 1.0) or not directed:
        return 1.0 - t, t * scale
    cosine = max(-1.0, min(1.0, ab / norms))
    sine = math.sqrt(max(0.0, (1.0 - cosine) * (1.0 + cosine)))
    if cosine < ANTIPODAL or sine < 1e-7:
        return 1.0 - t, t * scale
    angle = math.atan2(sine, cosine)
    left, right = math.sin((1.0 - t) * angle) / sine, math.sin(t * angle) / sine
    if norm == "unit":
        size = (1.0 - t) * size_a + t * size_b
        return left * (size / size_a), right * (size / size_b)
    return left, right * scale


@dataclass(slots=True)
class _Directions:
    """The models that take part in a mean of directions: those with a weight and a direction.

    `shares` has all models' weights, `places` says which take part, `norms` and `cosines` are theirs; `size` is the
    weighted mean of all norms.
    """

    shares: list[float]
    places: list[int]
    norms: list[float]
    cosines: list[list[float]]
    size: float

    @classmethod
    def of(cls, gram: Gram, weights: Sequence[float], normalize: bool) -> _Directions:
        total = divisor(weights, normalize)
        shares = [weight / total for weight in weights]
        sizes = [math.sqrt(gram[k][k]) for k in range(len(shares))]
        places = [k for k, share in enumerate(shares) if share != 0.0 and sizes[k] > 0.0]
        norms = [sizes[k] for k in places]
        cosines = [[gram[j][k] / (sizes[j] * sizes[k]) for k in places] for j in places]
        return cls(shares, places, norms, cosines, sum(shares[k] * sizes[k] for k in places))

    @property
    def weights(self) -> list[float]:
        """The weights of those that take part."""
        return [self.shares[k] for k in self.places]

    def length(self, point: Sequence[float]) -> float:
        """‖Σ pₖ uₖ‖ over the unit vectors."""
        return math.sqrt(max(0.0, _dot(point, self.products(point))))

    def products(self, point: Sequence[float]) -> list[float]:
        """⟨Σ pⱼ uⱼ, uₖ⟩ for each unit vector."""
        return [_dot(point, row) for row in self.cosines]

    def scaled(self, point: Sequence[float]) -> list[float]:
        """The coefficients of `size` times a unit vector Σ pₖ uₖ, for all models."""
        found = [0.0] * len(self.shares)
        for k, part, norm in zip(self.places, point, self.norms, strict=True):
            found[k] = part * (self.size / norm)
        return found


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def mean_direction(gram: Gram, weights: Sequence[float], normalize: bool = True) -> list[float]:
    """The coefficients of Σ wₖ‖xₖ‖ · m/‖m‖ with m = Σ wₖ xₖ/‖xₖ‖.

    A tensor of norm zero has no direction and only its weight. Where the directions cancel, m has none either, and the
    result is the weighted sum Σ wₖ xₖ. Raises `RecipeError` for weights that sum to zero under `normalize`.
    """
    models = _Directions.of(gram, weights, normalize)
    length = models.length(models.weights)
    if not length > VANISHED * sum(map(abs, models.weights)) or not math.isfinite(models.size / length):
        return models.shares
    return models.scaled([weight / length for weight in models.weights])


def karcher_mean(gram: Gram, weights: Sequence[float], max_iter: int, tol: float) -> list[float]:
    """The coefficients of Σ wₖ‖xₖ‖/Σ wₖ times the weighted Karcher mean of the directions.

    Gradient descent of step 1 from the mean direction: y ← exp_y(Σ wₖ log_y(uₖ)), until a bound on the step's length is
    below `tol`. Where the mean is not unique (directions that cancel, a direction opposite to an iterate) the result is
    the weighted mean of the tensors. Raises `RecipeError` for weights that are all zero.
    """
    models = _Directions.of(gram, weights, True)
    total = sum(models.weights)
    shares = [weight / total for weight in models.weights]
    length = models.length(shares)
    if not length > VANISHED or not math.isfinite(models.size / length):
        return models.shares
    point = [share / length for share in shares]
    for _ in range(max_iter):
        cosines = [max(-1.0, min(1.0, cosine)) for cosine in models.products(point)]
        if min(cosines) < ANTIPODAL:
            return models.shares
        pull = [share * _stretch(cosine) for share, cosine in zip(shares, cosines, strict=True)]
        radial = _dot(pull, cosines)
        tangent = [part - radial * at for part, at in zip(pull, point, strict=True)]
        # Bounded by the triangle inequality: the norm itself is lost to cancellation below 1e-8.
        step = models.length(tangent)
        along, across = math.cos(step), math.sin(step) / step if step else 1.0
        point = [along * at + across * part for at, part in zip(point, tangent, strict=True)]
        length = models.length(point)
        point = [at / length for at in point]
        if sum(map(abs, tangent)) < tol:
            break
    return models.scaled(point)


def _stretch(cosine: float) -> float:
    """θ/sinθ: by how much the logarithm is longer than the projection onto the tangent space."""
    sine = math.sqrt((1.0 - cosine) * (1.0 + cosine))
    return math.atan2(sine, cosine) / sine if sine else 1.0


def stock_ratio(gram: Gram) -> float:
    """Model Stock's t = N cosθ / (1 + (N-1) cosθ), θ from the mean cosine of all pairs; 0 where that is negative.

    A pair with a delta of norm zero counts as orthogonal: it has no cosine, and the models do not agree there.
    """
    count = len(gram)
    sizes = [math.sqrt(gram[k][k]) for k in range(count)]
    total = 0.0
    for j in range(count):
        for k in range(j + 1, count):
            if sizes[j] > 0.0 and sizes[k] > 0.0:
                total += max(-1.0, min(1.0, gram[j][k] / (sizes[j] * sizes[k])))
    cosine = max(0.0, total / (count * (count - 1) / 2))
    return count * cosine / (1.0 + (count - 1) * cosine)
