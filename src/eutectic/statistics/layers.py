"""Which layers of a module are looked into, what their tensors are called, and which of them share an input."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")
    nn = LazyModule("torch.nn")

# Of `transformers`, told by its name, which needs no import of it: weight (inputs, outputs).
_TRANSPOSED = "transformers.pytorch_utils.Conv1D"


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A layer that has a weight.

    Attributes:
        path: of the module.
        module: the layer.
        form: `linear`, `transposed` (a linear layer with weight (inputs, outputs)) or `conv`.
        weight: what the weight is called in the checkpoint, and
        bias: the bias, if there is one.
    """

    path: str
    module: Any
    form: str
    weight: str
    bias: str | None

    @property
    def groups(self) -> int:
        """Of a convolution; 1 for any other layer."""
        return int(self.module.groups) if self.form == "conv" else 1

    @property
    def inputs(self) -> int:
        """Inputs of one output; of a convolution in_channels / groups x the size of its kernel."""
        weight = self.module.weight
        return int(weight.shape[0] if self.form == "transposed" else weight[0].numel())


def form_of(module: nn.Module) -> str | None:
    """What a module computes with its weight, or None. One whose `forward` is its own is not known."""
    kind = type(module)
    if f"{kind.__module__}.{kind.__qualname__}" == _TRANSPOSED:
        return "transposed"
    for base, form in ((nn.Linear, "linear"), (nn.Conv1d, "conv"), (nn.Conv2d, "conv")):
        if isinstance(module, base) and kind.forward is base.forward:
            return form
    return None


class Names:
    """What the parameters of a module are called in its checkpoint; tied parameters have one name.

    The head of a language model has the names of the model within it, or the other way about: a prefix more or less
    is looked for too.
    """

    def __init__(self, module: nn.Module, stored: Collection[str] | None = None) -> None:
        self._names: dict[int, str] = {}
        self.missing: list[str] = []
        prefix = getattr(module, "base_model_prefix", "")
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if id(parameter) in self._names:
                continue
            forms = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
            found = name if stored is None else next((form for form in forms if form in stored), None)
            if found is not None:
                self._names[id(parameter)] = found
        for name, parameter in module.named_parameters():
            if id(parameter) not in self._names:
                self.missing.append(name)

    def __call__(self, parameter: Any) -> str | None:
        """The name of a parameter, or None for one that the checkpoint has not (or for no parameter)."""
        return self._names.get(id(parameter))


def layers_of(module: nn.Module, names: Names) -> list[Layer]:
    """The linear layers and convolutions, in the order of the module."""
    found = []
    for path, part in module.named_modules():
        form = form_of(part)
        weight = names(part._parameters.get("weight")) if form else None
        if form and weight:
            found.append(Layer(path, part, form, weight, names(part._parameters.get("bias"))))
    return found


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a layer was called with."""
    return args[0] if args else next(iter(kwargs.values()))


@contextmanager
def hooked(layers: Collection[Layer], hook: Callable[[Layer, Tensor], None]) -> Iterator[None]:
    """Calls `hook` with each layer and its input, before it computes."""
    with ExitStack() as hooks:
        for layer in layers:

            def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], layer: Layer = layer) -> None:
                hook(layer, first_input(args, kwargs))

            hooks.callback(layer.module.register_forward_pre_hook(before, with_kwargs=True).remove)
        yield


@contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode: no dropout, running statistics as they are; then as it was."""
    training = {part: part.training for part in module.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    module.eval()
    # The fast path of torch's own transformer layers calls none of the layers within.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # What is made in inference mode cannot take part in a backward pass, and does not tell when it was changed.
        with torch.inference_mode(False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for part, was in training.items():
            part.training = was
