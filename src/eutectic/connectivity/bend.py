"""A curve between two models with a low loss all along: its bend is trained (Garipov et al., arXiv:1802.10026)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from eutectic.connectivity.barriers import POINTS, REFINE, Barrier, check_points, measured
from eutectic.connectivity.mixing import bezier, bezier_shares, mixture
from eutectic.connectivity.opening import opened, settings_for
from eutectic.connectivity.probe import Probe
from eutectic.errors import NumericError, Problem, RecipeError
from eutectic.evaluate import Settings
from eutectic.evaluate.doors import Kept
from eutectic.lazy import LazyModule
from eutectic.run.merged import MergedSource

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

Weights = Mapping[str, "Tensor"]


def train_bend(
    a: Any,
    b: Any,
    loss: Callable[[Weights], Tensor],
    *,
    steps: int,
    rate: float = 1e-3,
    seed: int = 0,
    tell: Callable[[int, float], None] | None = None,
) -> dict[str, Tensor]:
    """Trains the bend of a quadratic Bézier curve from `a` to `b`, and returns its weights.

    Each step draws one point of the curve, evenly over t, and moves the bend down the loss there, by Adam. It starts in
    the middle between the ends. Everything is held in float32, three times the model's size and Adam's two.

    Args:
        a: the first model, as for `eutectic.open`, and
        b: the last.
        loss: of tensors by name, differentiable, such as that of `torch.func.functional_call(module, weights, inputs)`
            on the next batch.
        steps: how many.
        rate: Adam's learning rate.
        seed: draws the points.
        tell: called with the number of each step from 1 on and its loss.

    Integer tensors are those of `a`. Raises `RecipeError` (L815) for a loss that torch cannot differentiate,
    `NumericError` (E908) for one that is not finite, and what `barrier` raises for models that do not fit together.
    """
    with opened([a, b], least=2, most=2) as found:
        middle = dict(MergedSource(mixture(found.sources, (0.5, 0.5)), "bend"))
        ends = [dict(source) for source in found.sources]
    moving = {name: value.float().requires_grad_() for name, value in middle.items() if value.is_floating_point()}
    first, last = ({name: end[name].float() for name in moving} for end in ends)
    optimiser = torch.optim.Adam(moving.values(), lr=rate)
    draw = random.Random(seed)
    for step in range(1, steps + 1):
        shares = bezier_shares(draw.random())
        point = {
            name: shares[0] * first[name] + shares[1] * bend + shares[2] * last[name] for name, bend in moving.items()
        }
        optimiser.zero_grad()
        value = _checked(loss({**middle, **point}), step)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if tell:
            tell(step, float(value.detach()))
    return {name: moving[name].detach() if name in moving else value for name, value in middle.items()}


def curve_barrier(
    a: Any,
    bend: Any,
    b: Any,
    loss: Any,
    *,
    points: int = POINTS,
    refine: int = REFINE,
    settings: Settings | None = None,
    batches: Iterable[Any] | None = None,
    cache: Kept = True,
) -> Barrier:
    """The barrier on the Bézier curve from `a` to `b` with a `bend`; everything else as for `barrier`."""
    check_points(points, refine)
    with opened([a, bend, b], least=3, most=3) as found:
        probe = Probe([loss], settings_for(found, settings), cache, batches)
        first, middle, last = found.sources
        ends = found.labels[0], found.labels[2]
        path = bezier(first, middle, last, " ⤳ ".join(ends))
        probe.check(path)
        return measured(path, probe, ends, points, refine)[0]


def _checked(value: Any, step: int) -> Tensor:
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
        kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        message = f"must return one number that depends on the weights, not {kind}"
        raise RecipeError(Problem("L815", message, "loss", "use torch.func.functional_call(module, weights, inputs)"))
    if not torch.isfinite(value):
        message = f"step {step} has the loss {float(value.detach())}"
        raise NumericError(Problem("E908", message, "loss", "take a smaller `rate`"))
    return value
