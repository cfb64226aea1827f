"""Networks of random operations on shapes between linear maps, for what a tracer might get wrong."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor, nn
from torch.nn import functional

KINDS = [
    "view",
    "view",
    "view",
    "permute",
    "permute",
    "act",
    "softmax",
    "centre",
    "halves",
    "gain",
    "linear",
    "repeat",
    "sum",
    "gram",
    "attend",
    "norm",
    "conv",
    "skip",
    "pick",
]


class RandomNet(nn.Module):
    """A linear map, random operations on what it makes, another linear map.

    The operations are drawn when it is made, and each is kept as a function of one tensor.
    """

    def __init__(self, seed: int, steps: int = 6) -> None:
        super().__init__()
        self.draw = random.Random(seed)
        self.first = nn.Linear(3, self.draw.choice([8, 12, 24]))
        self.parameters_made = nn.ParameterList()
        self.steps: list[tuple[str, object]] = []
        shape = (2, self.first.out_features)
        for _ in range(steps):
            shape = self._step(shape)
        self.last = nn.Linear(math.prod(shape[1:]), 2)

    def _step(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        name = self.draw.choice(KINDS)
        detail: object = None
        if name == "view":
            detail = shape = (2, *self._factors(math.prod(shape[1:])))
        elif name == "permute":
            order = list(range(1, len(shape)))
            self.draw.shuffle(order)
            detail = [0, *order]
            shape = tuple(shape[dim] for dim in [0, *order])
        elif name in {"softmax", "centre"}:
            detail = self.draw.randrange(1, len(shape))
        elif name in {"halves", "sum"}:
            detail = self.draw.randrange(1, len(shape))
            if name == "sum" and len(shape) > 2:
                shape = (*shape[:detail], *shape[detail + 1 :])
            elif name == "sum":
                name = "act"
        elif name in {"gain", "linear"}:
            made = torch.randn(shape[-1]) if name == "gain" else torch.randn(shape[-1], shape[-1]) / shape[-1]
            self.parameters_made.append(nn.Parameter(made))
            detail = len(self.parameters_made) - 1
        elif name == "repeat" and math.prod(shape) < 200:
            detail = self.draw.randrange(1, len(shape))
            shape = tuple(2 * size if dim == detail else size for dim, size in enumerate(shape))
        elif name == "gram" and len(shape) > 2 and shape[-2] ** 2 < 200:
            shape = (*shape[:-1], shape[-2])
        elif name in {"norm", "conv"}:
            groups = self.draw.choice([n for n in range(1, shape[1] + 1) if shape[1] % n == 0])
            sizes = [shape[1], shape[1] // groups, 1] if name == "conv" else [shape[1]]
            self.parameters_made.append(nn.Parameter(torch.randn(sizes)))
            detail = (len(self.parameters_made) - 1, groups)
        elif name == "pick" and shape[1] == 3 and len(shape) > 2:
            detail = True
            shape = (2, *shape[2:])
        self.steps.append((name, detail))
        return shape

    def _factors(self, size: int) -> list[int]:
        made = []
        while size > 1:
            made.append(self.draw.choice([n for n in range(2, size + 1) if size % n == 0]))
            size //= made[-1]
        return made or [1]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for name, detail in self.steps:
            x = self._done(name, detail, x)
        return self.last(x.flatten(1))

    def _done(self, name: str, detail: object, x: Tensor) -> Tensor:
        if name == "view":
            return x.reshape(detail)
        if name == "permute":
            return x.permute(detail)
        if name == "softmax":
            return x.softmax(detail) + x
        if name == "centre":
            return x - x.mean(detail, keepdim=True)
        if name == "halves" and x.shape[detail] % 2 == 0:
            one, other = x.chunk(2, detail)
            return torch.cat([torch.tanh(other), one], detail)
        if name == "sum":
            return x.sum(detail)
        if name == "gain":
            return x * self.parameters_made[detail]
        if name == "linear":
            return x @ self.parameters_made[detail]
        if name == "repeat" and detail is not None:
            return x.repeat([2 if dim == detail else 1 for dim in range(x.dim())])
        if name == "gram" and x.dim() > 2 and x.shape[-2] ** 2 < 200:
            return torch.tanh(x @ x.transpose(-1, -2)) / x.shape[-1]
        if name == "attend" and x.dim() > 2:
            return functional.scaled_dot_product_attention(x, torch.tanh(x), x) + x
        if name in {"norm", "conv"}:
            number, groups = detail
            made = self.parameters_made[number]
            if name == "norm":
                return functional.group_norm(x, groups, made) if x.numel() > 2 * groups else x
            return functional.conv1d(x.flatten(2) if x.dim() > 2 else x[..., None], made, groups=groups).reshape(
                x.shape
            )
        if name == "skip":
            return torch.cat([x, torch.sigmoid(x)], -1).unflatten(-1, (2, -1)).sum(-2)
        if name == "pick" and detail:
            one, two, three = x.unbind(1)
            return one * two.sigmoid() + three
        return torch.tanh(x)
