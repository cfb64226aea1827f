"""Statistics of the inputs of layers: their Gram matrices, their first and second moments."""

from __future__ import annotations

import inspect
import weakref
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from eutectic.errors import Problem, RecipeError
from eutectic.lazy import LazyModule
from eutectic.statistics.batches import Batch, Parts
from eutectic.statistics.gradients import unfolded
from eutectic.statistics.layers import Layer, Names, hooked, layers_of
from eutectic.statistics.model import Collector, Layout

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

# Columns of a Gram matrix at a time. The matrix is symmetric: only blocks on and below the diagonal are computed.
_BLOCK = 256
# Unfolded convolution inputs are this many numbers at a time, at most.
_UNFOLDED = 1 << 24
# From so many positions a sample on, a product a sample is cheaper than a copy that makes one of them all.
_LONG = 128


class InputCollector(Collector):
    """Runs a module and looks at what its linear layers and convolutions are given.

    Layers of the very same input tensor are collected once. A weight used by several layers, or several times, gets
    the rows of all uses. Padding counts nowhere: where the rows of some layer are not those of the batch (experts), a
    padded batch is gone through sample by sample with its padding cut off.
    """

    def __init__(self, module: nn.Module, names: Names, first: Batch) -> None:
        """Runs the module on the first two samples, to see which layers share an input.

        Args:
            module: in evaluation mode.
            names: of its parameters.
            first: a batch.

        Raises `RecipeError` (F107) where there is no layer to look into.
        """
        super().__init__()
        self._module = module
        layers = layers_of(module, names)
        left_out = dict.fromkeys(names.missing, "not in the checkpoint") | _elsewhere(module, names, layers)
        left_out |= _no_layers(module, names, layers, left_out)
        self._layers = [layer for layer in layers if layer.weight not in left_out]
        if not self._layers:
            kinds = "it has no linear layer or convolution whose weight is its own"
            raise RecipeError(Problem("F107", f"nothing to collect: {kinds}", type(module).__name__))
        self._bias = _biases(self._layers)
        self._parts = Parts()
        self._seen: dict[str, tuple[Callable[[], Any], int]] = {}
        self._calls: Counter[str] = Counter()
        self._brief = self._tied_head(left_out)
        shared = self._shared(first.head(2))
        self.layout = self._lay_out(shared, left_out)

    def _collect(self, batch: Batch) -> None:
        wanted = [layer for layer in self._layers if self._unit(layer) in self.counts]
        for part in self._parts.of(batch, self._is_mixed):

            def hook(layer: Layer, x: Tensor, part: Batch = part) -> None:
                self._see(layer, x, part)

            self._calls.clear()
            with torch.no_grad(), hooked(wanted, hook):
                part.run(self._module, **self._brief)
            for layer in wanted:
                if self._calls[layer.weight] != self._calls[self._unit(layer)]:
                    self._refuse_another(layer)

    def _see(self, layer: Layer, x: Tensor, batch: Batch) -> None:
        unit = self._unit(layer)
        self._calls[layer.weight] += 1
        if unit != layer.weight:
            seen = self._seen.get(unit)
            if seen is None or seen[0]() is not x or seen[1] != x._version:
                self._refuse_another(layer)
            return
        self._seen[unit] = weakref.ref(x), x._version
        if not matches(x, batch) and batch.mask is not None:
            message = f"{layer.path} gets rows of shape {tuple(x.shape)}, and which of them are padding is not known"
            raise RecipeError(Problem("F104", message, layer.path, "collect with batches of one sample"))
        self._add(layer, x, batch)

    def _refuse_another(self, layer: Layer) -> NoReturn:
        """The survey saw one input; a module that decides otherwise later must not be taken at its word."""
        message = f"{layer.path} had the input of {self._unit(layer)} at first, and now has another"
        raise RecipeError(Problem("F104", message, layer.path))

    @abstractmethod
    def _add(self, layer: Layer, x: Tensor, batch: Batch) -> None:
        """Adds the rows of one layer to its sums."""

    @abstractmethod
    def _tensors(self, layer: Layer) -> dict[str, tuple[int, ...]]:
        """The tensors of a layer."""

    def _unit(self, layer: Layer) -> str:
        return self.layout.shared.get(layer.weight, layer.weight)

    def _lay_out(self, shared: dict[str, str], left_out: dict[str, str]) -> Layout:
        own = [layer for layer in self._layers if layer.weight not in shared]
        return Layout(
            units={layer.weight: self._tensors(layer) for layer in own},
            shared=shared,
            bias={layer.weight: bias for layer in self._layers if (bias := self._bias.get(layer.weight))},
            transposed=tuple(layer.weight for layer in self._layers if layer.form == "transposed"),
            groups={layer.weight: layer.groups for layer in self._layers if layer.groups > 1},
            left_out=left_out,
        )

    def _shared(self, first: Batch) -> dict[str, str]:
        """Weight → the first weight whose layer had the same tensor for its input."""
        calls: dict[str, list[tuple[Any, ...]]] = {}
        held = []

        def hook(layer: Layer, x: Tensor) -> None:
            held.append(x)  # its id stays its own
            calls.setdefault(layer.weight, []).append((id(x), x._version, *self._like(layer)))

        with torch.no_grad(), hooked(self._layers, hook):
            first.run(self._module, **self._brief)
        once = {name: keys[0] for name, keys in calls.items() if len(keys) == 1}
        owner: dict[Any, str] = {}
        for name, key in once.items():
            owner.setdefault(key, name)
        return {name: owner[key] for name, key in once.items() if owner[key] != name}

    def _like(self, layer: Layer) -> tuple[Any, ...]:
        """What must be equal beside the input, for two layers to have the same statistics."""
        keys = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        window = [getattr(layer.module, key) for key in keys] if layer.form == "conv" else []
        return (layer.weight in self._bias, *window)

    def _is_mixed(self, batch: Batch) -> bool:
        """Whether some layer gets rows that are not the positions of the batch."""
        odd: list[str] = []

        def hook(layer: Layer, x: Tensor) -> None:
            if layer.form == "conv" or not matches(x, batch):
                odd.append(layer.path)

        with torch.no_grad(), hooked(self._layers, hook):
            batch.run(self._module, **self._brief)
        return bool(odd)

    def _tied_head(self, left_out: dict[str, str]) -> dict[str, Any]:
        """Of a language model whose head is not looked into: the logits of one position are enough."""
        head = getattr(self._module, "get_output_embeddings", lambda: None)()
        inside = {id(layer.module) for layer in self._layers}
        takes = "logits_to_keep" in inspect.signature(self._module.forward).parameters
        return {"logits_to_keep": 1} if head is not None and id(head) not in inside and takes else {}


class GramCollector(InputCollector):
    """Mean over positions of x xᵀ, for the inputs x of each linear layer and of each window of a convolution.

    Where the layer has a bias, x has a one behind its last entry. Source: Jin et al. 2023, arXiv:2212.09849, eq. 2.
    Differs from the paper: a mean, not a sum, so that models count alike whatever their data; padding is left out.
    """

    kind = "gram"

    def _tensors(self, layer: Layer) -> dict[str, tuple[int, ...]]:
        size = layer.inputs + (layer.weight in self._bias)
        return {layer.weight: (layer.groups, size, size) if layer.groups > 1 else (size, size)}

    def _add(self, layer: Layer, x: Tensor, batch: Batch) -> None:
        total = self.sums[layer.weight]
        matrices = total.unbind(0) if layer.groups > 1 else [total]
        for windows in _rows(layer, x, batch):
            for matrix, rows in zip(matrices, windows, strict=True):
                self._watch(layer.path, add_gram(matrix, rows.float(), augmented=layer.weight in self._bias))
            self.counts[layer.weight] += len(windows[0])

    def _whole(self, total: Tensor) -> Tensor:
        for low in range(0, total.shape[-1], _BLOCK):
            own = total[..., low : low + _BLOCK, low : low + _BLOCK]
            own.copy_(own.tril() + own.tril(-1).mT)
            total[..., low : low + _BLOCK, low + _BLOCK :] = total[..., low + _BLOCK :, low : low + _BLOCK].mT
        return total


class MomentCollector(InputCollector):
    """Mean and mean of squares of each input of each linear layer, and of each input channel of each convolution."""

    kind = "activations"

    def _tensors(self, layer: Layer) -> dict[str, tuple[int, ...]]:
        stem = layer.weight.removesuffix(".weight")
        size = layer.module.in_channels if layer.form == "conv" else layer.inputs
        return {f"{stem}.mean": (size,), f"{stem}.square": (size,)}

    def _like(self, layer: Layer) -> tuple[Any, ...]:
        return (layer.form == "conv",)

    def _add(self, layer: Layer, x: Tensor, batch: Batch) -> None:
        x = x.movedim(-1 - len(layer.module.kernel_size), -1).flatten(0, -2) if layer.form == "conv" else x
        rows = unmasked(x, batch).float()
        first, second = (self.sums[name] for name in self.layout.units[layer.weight])
        added = rows.sum(0)
        first += added
        second += (rows * rows).sum(0)
        self._watch(layer.path, added.sum())
        self.counts[layer.weight] += len(rows)


def add_gram(total: Tensor, rows: Tensor, *, augmented: bool = False) -> Tensor:
    """Adds rowsᵀ rows to the lower triangle of `total`; returns a number that is finite if all rows are.

    Args:
        total: (n, n), or (n + 1, n + 1) with `augmented`. Above the diagonal it is left undefined.
        rows: (m, n), of the same dtype.
        augmented: whether each row is to have a one behind its last entry.
    """
    size = rows.shape[1]
    for low in range(0, size, _BLOCK):
        high = min(low + _BLOCK, size)
        total[low:size, low:high].addmm_(rows[:, low:].mT, rows[:, low:high])
    added = rows.sum(0)
    if augmented:
        total[size, :size] += added
        total[size, size] += len(rows)
    return added.sum()


def _rows(layer: Layer, x: Tensor, batch: Batch) -> Any:
    """Inputs as rows: for each piece of the batch one (positions, inputs) a group."""
    if layer.form != "conv":
        yield [unmasked(x, batch)]
        return
    part = layer.module
    x = x if x.dim() == len(part.kernel_size) + 2 else x[None]
    step = max(1, _UNFOLDED // max(1, x[0].numel() * part.kernel_size[0] * part.kernel_size[-1]))
    for piece in torch.chunk(x, -(-len(x) // step)):
        windows = unfolded(part, piece)
        if windows.shape[-1] >= _LONG:
            for sample in windows:
                yield list(sample.mT)
        else:
            yield [group.mT.flatten(0, 1) for group in windows.unbind(1)]


def unmasked(x: Tensor, batch: Batch) -> Tensor:
    """The rows of what a linear layer is given or returns, those of padding left out."""
    if batch.mask is not None and x.shape[:2] == batch.mask.shape and x.dim() > 2:
        x = x[batch.mask]
    return x.reshape(-1, x.shape[-1])


def matches(x: Tensor, batch: Batch) -> bool:
    """Whether the rows of a linear layer's input are the positions, or the samples, of a padded batch."""
    if batch.mask is None:
        return True
    return (x.dim() > 2 and x.shape[:2] == batch.mask.shape) or (x.dim() == 2 and len(x) == batch.size)


def _elsewhere(module: nn.Module, names: Names, layers: Sequence[Layer]) -> dict[str, str]:
    """Weights that are parameters of another kind of layer too: the head that is tied to the embeddings."""
    inside = {id(layer.module) for layer in layers}
    weights = {layer.weight for layer in layers}
    found = {}
    for path, part in module.named_modules():
        for parameter in part._parameters.values() if id(part) not in inside else ():
            if (name := names(parameter)) in weights and name is not None:
                found[name] = f"a parameter of {path} too, which is no linear layer"
    return found


def _no_layers(module: nn.Module, names: Names, layers: Sequence[Layer], known: Collection[str]) -> dict[str, str]:
    """Weights of two axes or more that are of no linear layer or convolution: embeddings, experts held as one tensor.

    Vectors are not listed: nobody expects a matrix for a norm, and a bias stands with its weight.
    """
    known = {*known, *(layer.weight for layer in layers)}
    found = {}
    for part in module.modules():
        for parameter in part._parameters.values():
            name = names(parameter)
            if parameter is not None and name and name not in known and parameter.dim() > 1:
                found[name] = f"a parameter of {type(part).__name__}, whose inputs are not measured"
    return found


def _biases(layers: Sequence[Layer]) -> dict[str, str]:
    """Weight → bias, where one belongs to the other alone."""
    pairs = {(layer.weight, layer.bias) for layer in layers}
    weights = Counter(weight for weight, _ in pairs)
    biases = Counter(bias for _, bias in pairs)
    return {weight: bias for weight, bias in pairs if bias and weights[weight] == biases[bias] == 1}
