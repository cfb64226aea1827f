"""Stored weights and biases -> matrices of outputs × inputs, as the Gram matrices of the inputs go with, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


@dataclass(frozen=True, slots=True)
class Layer:
    """How a stored weight is a matrix with a row for each output.

    Attributes:
        transposed: stored as inputs × outputs.
        groups: of a convolution whose outputs see a part of the inputs each; 1 for all else.
        bias: the bias is the weight of one more input, the last, that is always one.
        part: which of the two is wanted.
    """

    transposed: bool = False
    groups: int = 1
    bias: bool = False
    part: Literal["weight", "bias"] = "weight"

    def outputs(self, weight: Sequence[int]) -> int:
        """Outputs of a layer whose weight has this shape: the length of its bias."""
        return weight[1 if self.transposed else 0]

    def fits(self, weight: Sequence[int], gram: Sequence[int]) -> bool:
        """Whether a weight and a Gram matrix of these shapes belong together."""
        if len(weight) < 2 or weight[0] % self.groups:
            return False
        inputs = (weight[0] if self.transposed else math.prod(weight[1:])) + self.bias
        stack = (self.groups,) if self.groups > 1 else ()
        return tuple(gram) == (*stack, inputs, inputs) and not (self.transposed and len(weight) != 2)

    def matrices(self, weights: Tensor, biases: Tensor | None = None) -> Tensor:
        """Stacked weights `(K, *shape)` and biases `(K, outputs)` → `(K, outputs, inputs)`, a bias being the last.

        Of several groups: `(K, groups, outputs of a group, inputs of a group)`.
        """
        flat = weights.mT if self.transposed else weights.flatten(2)
        if biases is not None:
            flat = torch.cat([flat, biases[..., None]], dim=-1)
        return flat.reshape(len(flat), self.groups, -1, flat.shape[-1]) if self.groups > 1 else flat

    def stored(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """The wanted part of one `(outputs, inputs)` matrix, or of a stack of groups, in its stored shape."""
        flat = matrix.flatten(0, 1) if self.groups > 1 else matrix
        if self.part == "bias":
            return flat[:, -1]
        weight = flat[:, :-1] if self.bias else flat
        return (weight.mT if self.transposed else weight).reshape(*shape)
