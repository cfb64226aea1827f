"""A running average of a model's weights, for any training loop: SWA and EMA."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from eutectic.averaging.statistics import Forward, statistics_layers, update_bn
from eutectic.errors import Problem, RecipeError, did_you_mean, listed, several
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

BUFFERS = ("average", "copy", "recompute")
STALE = (
    "the batch normalisation statistics are not those of the averaged weights, and accuracy may be far below what it "
    "could be: call update_bn(loader) on the average"
)


class WeightAverage:
    """The average of a model's weights along its training.

        average = WeightAverage(model, start=1000, period=100)   # SWA: equal weights from step 1000 on
        average = WeightAverage(model, decay=0.999)              # EMA: weights that fall with age
        for batch in loader:
            ...
            optimizer.step()
            average.step()
        with average.swapped():                                  # the model has the average's weights in here
            validate(model)
        average.apply()                                          # and now for good

    The first collection takes the weights as they are; each later one moves the average towards them, by 1/n for the
    n-th (SWA) or by 1 - decay (EMA). Sums are kept in float32 for models in half precision, in their own precision for
    wider ones. Tensors that are tied in the model are averaged once and stay tied. Integer buffers are copied.

    Args:
        model: the module that is trained. Not a wrapper of it, which would rename its tensors.
        decay: None for equal weights (arXiv:1803.05407), else that of an exponential moving average.
        warmup: with `decay`, use min(decay, (1 + n) / (10 + n)) after n collections, so that the first weights do not
            stay in the average for 1 / (1 - decay) steps.
        start: number of the step, counted from 1, from which on `step` collects.
        period: `step` collects at `start` and at each `period`-th step after it.
        buffers: `average` floating-point buffers like weights; `copy` them from the model; or `recompute`: copy, but
            those of batch normalisation are changed by `update_bn` alone.
        dtype: float64 to keep wider sums than by default.
        device: where the average is kept, such as `cpu` to save memory on a GPU; by default beside each tensor.

    Raises `RecipeError`: T701 for arguments that cannot be, T707 for a model that is sharded over several processes.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        decay: float | None = None,
        warmup: bool = True,
        start: int = 0,
        period: int = 1,
        buffers: str = "average",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        _check(model, decay, start, period, buffers, dtype)
        self.model = model
        self.decay, self.warmup, self.start, self.period, self.buffers = decay, warmup, start, period, buffers
        self.steps = self.collected = 0
        self._dtype = dtype or torch.float32
        self._device = None if device is None else torch.device(device)
        self._values: dict[str, Tensor] = {}
        self._held: dict[str, Tensor] | None = None
        # The number of collections when update_bn last ran; -1 for never.
        self._statistics_at = -1
        self._warned = False

    def __repr__(self) -> str:
        kind = "equal weights" if self.decay is None else f"decay {self.decay:g}"
        counts = f"{several(self.collected, 'collection')} in {several(self.steps, 'step')}"
        return f"<WeightAverage of {type(self.model).__name__}, {kind}: {counts}>"

    def step(self) -> bool:
        """Counts a step, and collects if one is due. Call it after each step of the optimiser; True if it collected."""
        self._refuse_inside("step")
        self.steps += 1
        due = self.steps >= self.start and (self.steps - self.start) % self.period == 0
        if due:
            self.collect()
        return due

    def collect(self) -> None:
        """Takes the model's present weights into the average, whatever `start` and `period` say.

        Raises `RecipeError`: T702 if the model's tensors are not those of the average, T703 while swapped in.
        """
        self._refuse_inside("collect")
        live, share = self._live(), self._share()
        parameters = dict(self.model.named_parameters())
        statistics = self._statistics()
        with torch.no_grad():
            for name, tensor in live.items():
                own = self.buffers == "recompute" and name in statistics
                averaged = _is_averaged(tensor) and (name in parameters or self.buffers == "average")
                if name not in self._values:
                    self._values[name] = self._copied(tensor)
                elif averaged:
                    _move(self._values[name], tensor, share, exact=name not in parameters)
                elif not own:
                    self._values[name].copy_(tensor)
        self.collected += 1

    def averaged(self) -> dict[str, Tensor]:
        """A state dict for the model with the average in it, in the model's dtypes; tied names share a tensor.

        Raises `RecipeError` (T703) before the first collection.
        """
        if not self.is_swapped_in:
            with self.swapped():
                return self.averaged()
        # The model makes its own state dict, which need not be a list of its tensors.
        made: dict[int, Any] = {}
        state: dict[str, Any] = {}
        for key, item in self.model.state_dict(keep_vars=True).items():
            if not isinstance(item, torch.Tensor):
                state[key] = item
                continue
            if id(item) not in made:
                # What is copied is kept beside the copy, so that no other item gets its id.
                made[id(item)] = (item, self._on_device(item.detach()).clone())
            state[key] = made[id(item)][1]
        return state

    def apply(self) -> None:
        """Puts the average into the model, for good. Raises `RecipeError` (T703) if there is none."""
        self._refuse_inside("apply")
        self._refuse_empty()
        self._warn_of_statistics()
        self._put(self._values)

    def finish(self, bn_loader: Iterable[Any] | None = None) -> None:
        """`update_bn` if there is a loader, then `apply`; without an average it warns and leaves the model alone.

        For the end of a training whose result must not be lost because the average was to start too late.
        """
        if not self.collected:
            warnings.warn(
                f"no weights were collected in {several(self.steps, 'step')}: the model keeps its own", stacklevel=2
            )
            return
        if bn_loader is not None:
            self.update_bn(bn_loader)
        self.apply()

    @contextmanager
    def swapped(self) -> Iterator[nn.Module]:
        """The model with the average's weights inside the block, and with its own after it.

        Raises `RecipeError` (T703) before the first collection, and inside another such block.
        """
        self.swap_in()
        try:
            yield self.model
        finally:
            self.swap_out()

    def swap_in(self) -> None:
        """Puts the average into the model and keeps the model's weights for `swap_out`. See `swapped`."""
        self._refuse_inside("swap_in")
        self._refuse_empty()
        self._warn_of_statistics()
        held = {name: self._on_device(tensor.detach()).clone() for name, tensor in self._live().items()}
        self._held = held
        try:
            self._put(self._values)
        except BaseException:
            self.swap_out()
            raise

    def swap_out(self) -> None:
        """Gives the model its own weights back. Without effect if they are there."""
        if self._held is not None:
            self._put(self._held)
            self._held = None

    @property
    def first(self) -> int:
        """The number of the first step that `step` collects at."""
        return self.start or self.period

    @property
    def is_swapped_in(self) -> bool:
        """Whether the model has the average's weights at the moment."""
        return self._held is not None

    def update_bn(
        self,
        loader: Iterable[Any],
        *,
        device: torch.device | str | None = None,
        forward: Forward | None = None,
    ) -> None:
        """Computes the average's own batch normalisation statistics from data; the model keeps its own.

        They hold until the next collection, with `buffers="recompute"` until the next call of this method. Arguments
        and errors as for `eutectic.averaging.update_bn`.
        """
        self._refuse_empty()
        inside = self.is_swapped_in
        self._warned = True  # of what is being mended
        if not inside:
            self.swap_in()
        try:
            update_bn(loader, self.model, device=device, forward=forward)
            live = self._live()
            for name in self._statistics():
                self._values[name].copy_(live[name])
            self._statistics_at = self.collected
        finally:
            self._warned = False
            if not inside:
                self.swap_out()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: numbers and tensors. The arguments are those of the new object."""
        return {
            "steps": self.steps,
            "collected": self.collected,
            "statistics_at": self._statistics_at,
            "values": {name: value.clone() for name, value in self._values.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave. Raises `RecipeError` (T702) if it is none, or not of this model."""
        self._refuse_inside("load_state_dict")
        _refuse_no_state(state)
        live, values = self._live(), state["values"]
        if values:
            _compare(live, values, "the saved average")
        self._values = {name: self._copied(values[name], live[name]) for name in values}
        self.steps, self.collected = int(state["steps"]), int(state["collected"])
        self._statistics_at = int(state["statistics_at"])

    # Inside

    def _live(self) -> dict[str, Tensor]:
        """The model's tensors, tied ones once."""
        live: dict[str, Tensor] = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        if self._values:
            _compare(self._values, live, "the model")
        return live

    def _statistics(self) -> set[str]:
        """Names of the buffers that batch normalisation keeps."""
        kept = {id(buffer) for layer in statistics_layers(self.model) for buffer in layer.buffers(recurse=False)}
        return {name for name, buffer in self.model.named_buffers() if id(buffer) in kept}

    def _share(self) -> float:
        """How far the average moves towards the weights."""
        if self.decay is None:
            return 1 / (self.collected + 1)
        ramp = (1 + self.collected) / (10 + self.collected)
        return 1 - (min(self.decay, ramp) if self.warmup else self.decay)

    def _copied(self, tensor: Tensor, like: Tensor | None = None) -> Tensor:
        """A copy where and as wide as the average of `like` is kept."""
        like = tensor if like is None else like
        dtype = torch.promote_types(like.dtype, self._dtype) if _is_averaged(like) else like.dtype
        return tensor.detach().to(self._device or like.device, dtype, copy=True)

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor if self._device is None else tensor.to(self._device)

    def _put(self, values: Mapping[str, Tensor]) -> None:
        live = self._live()
        with torch.no_grad():
            for name, value in values.items():
                live[name].copy_(value)

    def _warn_of_statistics(self) -> None:
        """Says once that `update_bn` is due. In an EMA, whose weights are alike, averaged statistics serve."""
        stale = self._statistics_at != self.collected
        if self.buffers == "recompute":
            stale = self._statistics_at < 0
        serves = self.decay is not None and self.buffers == "average"
        if not self._warned and stale and not serves and statistics_layers(self.model):
            self._warned = True
            warnings.warn(STALE, stacklevel=3)

    def _refuse_inside(self, what: str) -> None:
        if self.is_swapped_in:
            hint = "leave the `with average.swapped():` block first"
            raise RecipeError(Problem("T703", f"{what}: the average stands in the model", hint=hint))

    def _refuse_empty(self) -> None:
        if not self.collected:
            message = (
                f"no weights were collected in {several(self.steps, 'step')}; the first are due at step {self.first}"
            )
            raise RecipeError(Problem("T703", message, hint="call step() after each step of the optimiser"))


def _is_averaged(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _move(average: Tensor, tensor: Tensor, share: float, *, exact: bool) -> None:
    """Moves the average by `share` of the way. With `exact`, entries that are equal stay, infinite ones too."""
    now = tensor.detach().to(average.device, average.dtype)
    if exact:
        average.copy_(torch.where(now == average, average, torch.lerp(average, now, share)))
    else:
        average.lerp_(now, share)


def _refuse_no_state(state: Any) -> None:
    """Raises `RecipeError` (T702) for what `state_dict` cannot have given."""
    message = f"a {type(state).__name__} is no state of an average"
    if isinstance(state, Mapping):
        lacks = [name for name in ("steps", "collected", "statistics_at", "values") if name not in state]
        if not lacks and isinstance(state["values"], Mapping) and bool(state["values"]) == bool(state["collected"]):
            return
        message = "the saved state is none of an average: " + (f"it lacks {listed(lacks)}" if lacks else "its values")
        message += "" if lacks else " are not those of its collections"
    raise RecipeError(Problem("T702", message, "state", "give what `average.state_dict()` gave"))


def _compare(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], whose: str) -> None:
    """Raises `RecipeError` (T702) unless both have the same names and shapes."""
    both = wanted.keys() & found.keys()
    reshaped = [name for name in wanted if name in both and wanted[name].shape != found[name].shape]
    other = sorted(wanted.keys() ^ found.keys()) or reshaped
    if other:
        hint = "give the module inside `torch.compile` or a distributed wrapper" if len(both) < len(wanted) else ""
        message = f"{whose} has other tensors than what is averaged: {listed(other)}"
        raise RecipeError(Problem("T702", message, hint=hint))


def _sharded_by(model: nn.Module) -> str | None:
    """What has divided the model's parameters among processes, by the marks that it leaves on them."""
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return "DeepSpeed ZeRO-3"
    if any(hasattr(module, "_is_fsdp_managed_module") for module in model.modules()):
        return "FSDP"
    return "DTensor" if any(hasattr(parameter, "placements") for parameter in model.parameters()) else None


def _check(model: Any, decay: float | None, start: int, period: int, buffers: str, dtype: torch.dtype | None) -> None:
    """Raises `RecipeError` (T701, T707) with every argument that cannot be."""
    problems = []
    if not isinstance(model, torch.nn.Module):
        problems.append(Problem("T701", f"must be a torch module, not a {type(model).__name__}", "model"))
    elif by := _sharded_by(model):
        hint = "average its checkpoints with `eutectic average`"
        problems.append(Problem("T707", f"is sharded by {by}: no process holds all values to average", "model", hint))
    if decay is not None and (isinstance(decay, bool) or not isinstance(decay, Real) or not 0 < decay < 1):
        hint = "" if decay != 1 else "leave it out for equal weights"
        problems.append(Problem("T701", f"must lie between 0 and 1, both excluded, not {decay!r}", "decay", hint))
    for name, value, least in (("start", start, 0), ("period", period, 1)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            problems.append(Problem("T701", f"must be a whole number from {least} on, not {value!r}", name))
    if buffers not in BUFFERS:
        hint = did_you_mean(buffers, BUFFERS)
        problems.append(Problem("T701", f"must be one of {', '.join(BUFFERS)}, not {buffers!r}", "buffers", hint))
    if dtype not in (None, torch.float32, torch.float64):
        problems.append(Problem("T701", f"must be torch.float32 or torch.float64, not {dtype}", "dtype"))
    if problems:
        raise RecipeError(problems)
