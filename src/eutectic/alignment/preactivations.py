"""What the layers of a module make before the nonlinearity, and its mean and variance over data, channel by channel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from eutectic.averaging.statistics import statistics_layers
from eutectic.kernels.comoments import Moments
from eutectic.lazy import LazyModule
from eutectic.statistics.batches import Batch, Parts
from eutectic.statistics.doors import place_of
from eutectic.statistics.inputs import matches, unmasked
from eutectic.statistics.layers import Names, first_input, layers_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

# Forms of layers whose channels are the last axis; of others they are the second.
_ROWS = ("linear", "transposed")


class _Enough(Exception):  # noqa: N818 (no error)
    """Ends a forward pass of which no more is wanted."""


@dataclass(frozen=True, slots=True)
class Sites:
    """The layers of an architecture whose outputs are hidden and can be rescaled by the layer's own tensors.

    Attributes:
        layers: path of a linear layer or convolution → its form (see `Layer`), in the order of the forward pass.
        norms: paths of batch normalisation with statistics, in the order of the forward pass.
        left: path of any other module with a matrix or more of its own → why it stays.
        late: whether a norm is called after one of `layers`.
    """

    layers: Mapping[str, str]
    norms: tuple[str, ...]
    left: Mapping[str, str]
    late: bool


def sites_of(module: nn.Module, batch: Batch) -> Sites:
    """Runs the module on a batch, to see what is called in which order and where outputs go."""
    layers = {layer.path: layer for layer in layers_of(module, Names(module))}
    with_statistics = set(statistics_layers(module))
    norms = {path for path, part in module.named_modules() if part in with_statistics}
    order: list[str] = []
    made: dict[tuple[int, int], str] = {}
    held, normalised = [], set()

    def note(path: str, given: Tensor, output: Tensor) -> None:
        order.append(path)
        if path in norms:
            normalised.add(made.get(_state(given), ""))
        held.append(output)  # its id stays its own
        made[_state(output)] = path

    with torch.no_grad(), watched(module, [*layers, *norms], note):
        returned = {made.get(_state(tensor)) for tensor in _tensors(batch.run(module))}
    calls = Counter(order)
    uses = Counter(id(parameter) for part in module.modules() for parameter in _own(part))
    last = next((path for path in reversed(order) if path in layers), None)
    left = {}
    for path, layer in layers.items():
        reasons = {
            "no batch reached it": path not in calls,
            "its output is the model's": path in returned,
            "it is the last layer": path == last,
            "its output is normalised over the batch": path in normalised,
            f"called {calls[path]} times in a forward pass": calls[path] > 1,
            "its weight or bias is another layer's too": max(uses[id(one)] for one in _own(layer.module)) > 1,
        }
        if reason := next((reason for reason, holds in reasons.items() if holds), None):
            left[path] = reason
    for path, part in module.named_modules():
        if path not in layers and any(one.dim() > 1 for one in _own(part)):
            left[path] = f"{type(part).__name__} is no linear layer, and no convolution of one or two dimensions"
    kept = {path: layers[path].form for path in calls if path in layers and path not in left}
    late = any(path in norms for path in order[order.index(next(iter(kept))) :]) if kept else False
    return Sites(kept, tuple(path for path in calls if path in norms), left, late)


def _own(part: nn.Module) -> list[Any]:
    """Parameters of a module that are of none within it."""
    return [one for one in part._parameters.values() if one is not None]


def _state(tensor: Tensor) -> tuple[int, int]:
    """What tells a tensor, as it is now, from itself once it was changed in place."""
    return id(tensor), tensor._version


@contextmanager
def watched(module: nn.Module, paths: Iterable[str], note: Callable[[str, Any, Any], None]) -> Iterator[None]:
    """Calls `note` with path, input and output of each of these parts after it computed."""
    with ExitStack() as hooks:
        for path in paths:

            def after(_: Any, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
                note(path, first_input(args, kwargs), output)

            hooks.callback(module.get_submodule(path).register_forward_hook(after, with_kwargs=True).remove)
        yield


class Watch:
    """Measures outputs of the same layers in modules of one architecture.

    Args:
        forms: path → form of the layer, `norm` for batch normalisation.
        channels: path → number of channels.
    """

    def __init__(self, forms: Mapping[str, str], channels: Mapping[str, int]) -> None:
        self._forms, self._channels = forms, channels
        self._known = Parts()

    def moments(self, module: nn.Module, batches: Iterable[Any], paths: Collection[str]) -> dict[str, Moments]:
        """Mean and variance of each channel over all samples and positions; a pass ends behind the last of them."""
        found = self._empty(paths, module)
        for part in self._parts(module, batches):
            for path, rows in self._rows(module, part, paths).items():
                found[path].add(rows)
        return found

    def mixed(
        self, modules: Sequence[nn.Module], weights: Sequence[float], batches: Iterable[Any]
    ) -> tuple[list[dict[str, Moments]], dict[str, Moments]]:
        """Those of each module, and those of Σ weight · output: a layer not in it saw other rows in each module."""
        paths = list(self._forms)
        each = [self._empty(paths, module) for module in modules]
        mixture = self._empty(paths, modules[0])
        for part in self._parts(modules[0], batches):
            rows = [self._rows(module, part.to(place_of(module)), paths) for module in modules]
            for path in list(mixture):
                made = [one[path] for one in rows if path in one]
                for moments, one in zip(each, made, strict=False):
                    moments[path].add(one)
                if len(made) != len(modules) or len({len(one) for one in made}) > 1:
                    del mixture[path]
                elif made:
                    rows_of_all = torch.stack([one.to(made[0]) for one in made]).double()
                    mixture[path].add(torch.tensordot(rows_of_all.new_tensor(weights), rows_of_all, 1))
        return each, mixture

    def _empty(self, paths: Collection[str], module: nn.Module) -> dict[str, Moments]:
        return {path: Moments(self._channels[path], place_of(module)) for path in paths}

    def _parts(self, module: nn.Module, batches: Iterable[Any]) -> Iterator[Batch]:
        """Batches, or their samples where it is not known which rows of a batch are padding."""
        for value in batches:
            yield from self._known.of(Batch.of(value, place_of(module)), partial(self._is_mixed, module))

    def _is_mixed(self, module: nn.Module, batch: Batch) -> bool:
        odd: list[str] = []

        def note(path: str, _: Any, output: Tensor) -> None:
            if self._forms[path] not in _ROWS or not matches(output, batch):
                odd.append(path)

        with torch.no_grad(), watched(module, self._forms, note):
            batch.run(module)
        return bool(odd)

    def _rows(self, module: nn.Module, batch: Batch, paths: Collection[str]) -> dict[str, Tensor]:
        """Path → (samples, channels) of its output."""
        found: dict[str, Tensor] = {}
        left = set(paths)

        def note(path: str, _: Any, output: Tensor) -> None:
            found[path] = self._channels_last(path, output, batch)
            left.discard(path)
            if not left:
                raise _Enough

        with torch.no_grad(), watched(module, paths, note), suppress(_Enough):
            batch.run(module)
        return found

    def _channels_last(self, path: str, output: Tensor, batch: Batch) -> Tensor:
        if self._forms[path] in _ROWS:
            return unmasked(output, batch).clone()
        return output.movedim(1, -1).flatten(0, -2).clone()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for item in items:
        yield from _tensors(item)
