"""The tensors that are merged: a base and three fine-tunes of each kind, drawn once from a fixed seed in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STORED = ("float64", "float32", "bfloat16")


def _drawn(seed: int) -> Callable[..., Tensor]:
    made = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=made, dtype=torch.float64)


def _distinct(noise: Callable[..., Tensor], top: int, *shape: int) -> Tensor:
    """±1 … ±top in random order: distinct magnitudes, exact in every dtype up to 256."""
    draw = noise(top)
    return ((draw.abs().argsort() + 1).double() * torch.sign(draw)).reshape(shape)


def families() -> dict[str, list[Tensor]]:
    """Kind → the base and three fine-tunes."""
    noise = _drawn(7)

    def tuned(base: Tensor, deviation: float) -> list[Tensor]:
        return [base, *(base + noise(*base.shape) * deviation for _ in range(3))]

    base, coarse = noise(48, 64), torch.round(noise(48, 64) * 8) / 8
    grid = torch.round(noise(8, 12) * 20).clamp(-100, 100)
    shared = noise(48, 64) * 0.1
    square, half = noise(16, 16), tuned(noise(16, 24), 0.1)
    return {
        "random": tuned(base, 0.1),
        # Fine-tunes that went the same way, so that no cosine between them is near zero.
        "related": [base, *(base + shared + noise(48, 64) * 0.1 for _ in range(3))],
        # A light fine-tune of a small tensor: what absolute thresholds make of it.
        "light": tuned(noise(8, 16) * 0.02, 5e-5),
        # Distinct deltas that bfloat16 holds exactly, so that no trim of it depends on how equals are ordered.
        "grid": [grid, *(grid + _distinct(noise, 96, 8, 12) for _ in range(3))],
        "tied": [coarse, *(coarse + torch.round(noise(48, 64) * 4) / 16 for _ in range(3))],
        "hundred": tuned(noise(10, 10), 1.0),
        "zeros": [torch.zeros(16, 16, dtype=torch.float64)] * 4,
        "untouched": [square] * 4,
        "one untouched": [half[0], half[1], half[0], half[2]],
        "one entry": tuned(noise(1), 0.5),
        "scalar": tuned(noise(), 0.5),
        "vector": tuned(noise(64), 0.1),
        "packed": tuned(noise(4, 12, 16), 0.1),
        "huge": tuned(noise(12, 16) * 1e30, 1e29),
        "denormal": [tensor * 1e-39 for tensor in tuned(noise(12, 16), 0.5)],
        "parallel": tuned(base, 0.01),
        "antipodal": [base, -base, base * 0.5, -base * 2],
        "zero base": [torch.zeros(16, 16, dtype=torch.float64), *(noise(16, 16) for _ in range(3))],
        # Entry magnitudes grow along each row and are all different: ranks are known.
        "ramp": [torch.zeros(256, 512, dtype=torch.float64), *[torch.arange(1.0, 513.0).double().repeat(256, 1)] * 3],
    }


# For every method; the others are named by the cases that want them.
COMMON = (
    "random",
    "related",
    "light",
    "grid",
    "tied",
    "zeros",
    "untouched",
    "one untouched",
    "one entry",
    "scalar",
    "vector",
    "packed",
    "huge",
    "denormal",
)
