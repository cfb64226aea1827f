"""inner products -> the coefficients of a spherical interpolation."""

from __future__ import annotations

import math

# Beyond this cosine the endpoints are (nearly) antipodal: no unique geodesic, and 1/sinΩ amplifies over 30 times.
ANTIPODAL = -0.9995


def slerp_coefficients(aa: float, ab: float, bb: float, t: float) -> tuple[float, float]:
    """(cₐ, c_b) with slerp(a, b) = cₐ a + c_b b, from ⟨a,a⟩, ⟨a,b⟩, ⟨b,b⟩ (Shoemake 1985).

    The angle comes from atan2, which is accurate for every angle. Linear interpolation where the sphere has no answer:
    an endpoint of norm zero has no direction, parallel endpoints no angle, antipodal ones no unique geodesic.
    At t = 0 and t = 1 the coefficients are exactly 0 and 1.
    """
    if t in (0.0, 1.0):
        return 1.0 - t, t
    norms = math.sqrt(aa) * math.sqrt(bb)
    if norms == 0.0 or not math.isfinite(norms):
        return 1.0 - t, t
    cosine = max(-1.0, min(1.0, ab / norms))
    sine = math.sqrt(max(0.0, (1.0 - cosine) * (1.0 + cosine)))
    if cosine < ANTIPODAL or sine < 1e-7:
        return 1.0 - t, t
    angle = math.atan2(sine, cosine)
    return math.sin((1.0 - t) * angle) / sine, math.sin(t * angle) / sine
