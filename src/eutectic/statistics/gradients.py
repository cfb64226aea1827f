"""Gradients by sample of one layer's parameters, from its input and the gradient of its output.

For a linear layer the gradient of sample n is Σ_t g_nt x_ntᵀ over its positions t. Other layers follow the same
identity: a convolution is linear in the windows of its input, an embedding in indicator vectors, a norm in its
normalised input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eutectic.lazy import LazyModule
from eutectic.statistics.batches import sliced
from eutectic.statistics.layers import form_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
    from torch.nn import grad as backward
else:
    torch = LazyModule("torch")
    nn = LazyModule("torch.nn")
    functional = LazyModule("torch.nn.functional")
    backward = LazyModule("torch.nn.grad")

# Gradients of several samples are made at once while they are this many numbers: small layers cost a call each.
_AT_ONCE = 1 << 20
_NORMS = ("LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a layer: what it got. Tensors in `args` and `kwargs` have the samples along the first axis."""

    module: Any
    rule: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    size: int

    @property
    def x(self) -> Tensor:
        """The input."""
        found: Tensor = self.args[0] if self.args else next(iter(self.kwargs.values()))
        return found


def rule_of(module: nn.Module) -> str | None:
    """How gradients of a layer's own parameters are had: a closed form, `again` (the layer by itself, sample by
    sample, for leaves of any other kind), or None for a module with parameters beside its layers."""
    if form := form_of(module):
        return form
    kind = type(module)
    if isinstance(module, nn.Embedding) and kind.forward is nn.Embedding.forward:
        return "embedding"
    if kind.__module__.startswith("torch.nn.modules") and kind.__name__ in _NORMS:
        # Without running statistics the samples of a batch depend on each other.
        return "norm" if getattr(module, "running_mean", module) is not None else None
    return None if any(True for _ in module.children()) else "again"


def gradients(call: Call, g: Tensor) -> Iterator[tuple[str, slice, Tensor]]:
    """Parameter, samples, and the gradients of these samples, (samples, *shape), float32.

    Args:
        call: what the layer got; not of an embedding.
        g: gradient of its output, the samples along the first axis.
    """
    if call.rule == "norm":
        yield from _of_norm(call, g.float())
    elif call.rule == "again":
        yield from _again(call, g)
    elif call.rule == "conv":
        yield from _of_conv(call, g.float())
    else:
        yield from _of_linear(call, g.float())


def squares(call: Call, g: Tensor) -> Tensor | None:
    """Σ of squares of the gradients of a linear layer's weight over samples of one position each: one product."""
    if call.rule not in ("linear", "transposed") or call.x.numel() != call.size * call.x.shape[-1]:
        return None
    x2, g2 = (tensor.reshape(call.size, -1).float().square() for tensor in (call.x, g))
    return x2.mT @ g2 if call.rule == "transposed" else g2.mT @ x2


def rows_of_embedding(call: Call, g: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each sample the rows that it looked up, each once, and their gradients."""
    ids = call.x.reshape(call.size, -1)
    g = g.reshape(call.size, ids.shape[1], -1).float()
    for own, gradient in zip(ids, g, strict=True):
        rows, place = own.unique(return_inverse=True)
        found = torch.zeros((len(rows), g.shape[-1]), device=g.device).index_add_(0, place, gradient)
        if call.module.padding_idx is not None:
            found[rows == call.module.padding_idx] = 0
        yield rows, found


def unfolded(module: Any, x: Tensor) -> Tensor:
    """The windows of a convolution's input: (samples, groups, inputs of an output, positions)."""
    spatial = len(module.kernel_size)
    x = _padded(module, x)
    x = x[:, :, None] if spatial == 1 else x
    lead = (1,) * (2 - spatial)
    kernel, stride, dilation = (lead + tuple(v) for v in (module.kernel_size, module.stride, module.dilation))
    if kernel == (1, 1) and stride == (1, 1):
        windows = x.flatten(2)
    else:
        windows = functional.unfold(x, kernel, dilation=dilation, stride=stride)
    return windows.reshape(len(windows), module.groups, -1, windows.shape[-1])


def _of_linear(call: Call, g: Tensor) -> Iterator[tuple[str, slice, Tensor]]:
    x, size = call.x.reshape(call.size, -1, call.x.shape[-1]), call.size
    g = g.reshape(size, -1, g.shape[-1])
    step = max(1, _AT_ONCE // (x.shape[-1] * g.shape[-1]))
    for low in range(0, size, step):
        part = slice(low, min(low + step, size))
        left, right = (x, g) if call.rule == "transposed" else (g, x)
        yield "weight", part, left[part].float().mT @ right[part].float()
    if call.module.bias is not None:
        yield "bias", slice(0, size), g.sum(1)


def _of_conv(call: Call, g: Tensor) -> Iterator[tuple[str, slice, Tensor]]:
    module, x, size = call.module, call.x.float(), call.size
    spatial = len(module.kernel_size)
    weight_of: Any = backward.conv1d_weight if spatial == 1 else backward.conv2d_weight
    x = x if x.dim() == spatial + 2 else x[None]
    g = g if g.dim() == spatial + 2 else g[None]
    plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    padding = module.padding if plain else (0,) * spatial
    for number in range(size):
        own = x[number : number + 1] if plain else _padded(module, x[number : number + 1])
        shape, gradient = module.weight.shape, g[number : number + 1]
        found = weight_of(own, shape, gradient, module.stride, padding, module.dilation, module.groups)
        yield "weight", slice(number, number + 1), found[None]
    if module.bias is not None:
        yield "bias", slice(0, size), g.flatten(2).sum(2)


def _padded(module: Any, x: Tensor) -> Tensor:
    mode = module.padding_mode if module.padding_mode != "zeros" else "constant"
    amounts = module._reversed_padding_repeated_twice
    return functional.pad(x, amounts, mode=mode) if any(amounts) else x


def _of_norm(call: Call, g: Tensor) -> Iterator[tuple[str, slice, Tensor]]:
    module, x, size = call.module, call.x.float(), call.size
    name = type(module).__name__
    if name.startswith("BatchNorm"):
        x = functional.batch_norm(x, module.running_mean, module.running_var, eps=module.eps)
    elif name == "GroupNorm":
        x = functional.group_norm(x, module.num_groups, eps=module.eps)
    elif name == "LayerNorm":
        x = functional.layer_norm(x, module.normalized_shape, eps=module.eps)
    else:
        x = functional.rms_norm(x, module.normalized_shape, eps=module.eps)
    own = {key: getattr(module, key, None) for key in ("weight", "bias")}
    if name.startswith(("Batch", "Group")):
        x, g = (tensor.reshape(size, x.shape[1], -1) for tensor in (x, g))
        found = {"weight": lambda: torch.einsum("scp,scp->sc", g, x), "bias": lambda: g.sum(2)}
    else:
        x, g = (tensor.reshape(size, -1, *module.normalized_shape) for tensor in (x, g))
        found = {"weight": lambda: (g * x).sum(1), "bias": lambda: g.sum(1)}
    for key, parameter in own.items():
        if parameter is not None:
            yield key, slice(0, size), found[key]()


def _again(call: Call, g: Tensor) -> Iterator[tuple[str, slice, Tensor]]:
    own = {name: p for name, p in call.module._parameters.items() if p is not None and p.is_floating_point()}
    for number in range(call.size):
        args, kwargs = sliced((call.args, call.kwargs), number, call.size)
        leaves = {name: parameter.detach().requires_grad_() for name, parameter in own.items()}
        with torch.enable_grad():
            output = torch.func.functional_call(call.module, leaves, tuple(args), dict(kwargs))
        found = torch.autograd.grad(output, list(leaves.values()), g[number : number + 1], allow_unused=True)
        for name, gradient in zip(leaves, found, strict=True):
            if gradient is not None:
                yield name, slice(number, number + 1), gradient[None].float()
