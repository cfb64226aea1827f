"""What the tests of connectivity share: small networks and losses that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

A = {"w": torch.tensor([1.0, 0.0]), "n": torch.tensor(3)}
B = {"w": torch.tensor([0.0, 1.0]), "n": torch.tensor(5)}
C = {"w": torch.tensor([1.0, 1.0]), "n": torch.tensor(7)}


def product(weights: Mapping[str, Tensor]) -> Any:
    """4 x y, of which the highest point between A and B is 1, in the middle; three items."""
    x, y = weights["w"].double()
    return 4 * x * y + torch.tensor([0.0, 0.1, 0.2])


def network(seed: int = 0, norm: bool = False) -> nn.Sequential:
    """Two layers, with or without batch normalisation."""
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Linear(4, 8), *middle, nn.ReLU(), nn.Linear(8, 3))


def data(seed: int = 0, count: int = 40) -> tuple[Tensor, Tensor]:
    """Inputs and classes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=generator), torch.randint(3, (count,), generator=generator)
