"""A small network with two layers of units, its symmetries, and the loss half way between two of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from eutectic.checkpoint.symmetry import Axis, Factor, Group, Moves, Symmetries, axis, fixed


def units(name: str, size: int, role: Any = "out") -> Axis:
    return axis(Factor(size, group=name), role=role)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))


_NORM = {f"1.{name}": (units("0", 10),) for name in ("weight", "bias", "running_mean", "running_var")}
TABLE = Symmetries(
    {"0": Group(10), "3": Group(8)},
    {
        "0.weight": (units("0", 10), fixed(4)),
        "0.bias": (units("0", 10),),
        **_NORM,
        "1.num_batches_tracked": (),
        "3.weight": (units("3", 8), units("0", 10, "in")),
        "3.bias": (units("3", 8),),
        "5.weight": (fixed(3), units("3", 8, "in")),
        "5.bias": (fixed(3),),
    },
)
DRAW = torch.Generator().manual_seed(3)
X = torch.randn(64, 4, generator=DRAW)
Y = (X[:, :3] + 0.5 * X[:, 1:].square()).argmax(1)
BATCHES = list(zip(X.split(16), Y.split(16), strict=True))


def loss(output: Tensor, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(output, batch[1], reduction="none")


def trained(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    made = net()
    optimiser = torch.optim.Adam(made.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(made(X), Y).backward()
        optimiser.step()
    return made.eval()


def at_midpoint(a: nn.Module, b: nn.Module, moves: Moves) -> float:
    """The loss of ½ (A + π(B)), normalised by the statistics of each batch."""
    middle = copy.deepcopy(a)
    mine, theirs = a.state_dict(), b.state_dict()
    mixed = {name: (one + TABLE.moved(name, theirs[name], moves)) / 2 for name, one in mine.items()}
    middle.load_state_dict({**mixed, "1.num_batches_tracked": mine["1.num_batches_tracked"]})
    middle[1].train()
    with torch.no_grad():
        return float(torch.stack([loss(middle(x), (x, y)).mean() for x, y in BATCHES]).mean())
