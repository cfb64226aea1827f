"""REPAIR: averaging makes activations vary less than the models' own do; each channel gets back what it lost."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from eutectic.alignment.common import no_modules
from eutectic.alignment.preactivations import Sites, Watch, sites_of
from eutectic.averaging.statistics import update_bn
from eutectic.errors import NumericError, Problem, RecipeError, did_you_mean, listed, several
from eutectic.kernels.comoments import Moments
from eutectic.lazy import LazyModule
from eutectic.statistics.batches import AGAIN, Batch, no_batches
from eutectic.statistics.doors import place_of
from eutectic.statistics.layers import still
from eutectic.statistics.layerwise import difference

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

How = Literal["sequential", "closed_form"]
HOW: tuple[How, ...] = ("sequential", "closed_form")
# No channel is made to vary more than so many times what it does: one that hardly does is dead, not collapsed.
MOST = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Repaired:
    """A module whose activations were repaired.

    Attributes:
        module: a copy of the merged one, with other weights.
        changed: tensor → what was done to it.
        left: path of a layer → why it stays as it was.
        notes: what one should know.
    """

    module: nn.Module
    changed: Mapping[str, str]
    left: Mapping[str, str]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        counts = f"{several(len(self.changed), 'tensor')} changed, {several(len(self.left), 'layer')} left as they were"
        return f"<Repaired {type(self.module).__name__}: {counts}; see .changed and .left>"


def repair(
    merged: nn.Module,
    parents: Sequence[nn.Module],
    batches: Iterable[Any],
    *,
    weights: Sequence[float] | None = None,
    how: How = "sequential",
    affine: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Repaired:
    """Rescales the hidden channels of a merged model so that they vary as those of its parents do.

    For each output channel of a linear layer or convolution, before the nonlinearity, μ and σ over the data are those
    of the parents: μ* = Σ wᵢ μᵢ, σ* = Σ wᵢ σᵢ. The layer's own weight and bias are changed for it: W ← γ W and
    b ← μ* + γ (b − μ) with γ = σ*/σ, at most 10. A layer without a bias gets none: there μ is scaled by γ. Layers whose
    output the model returns as it is, the last layer, those that are called twice in a pass or have a tensor in common
    with another, and what is no linear layer or convolution stay as they are; `left` lists them.

    Batch normalisation repairs the layers before it by itself, once its statistics are those of the merged model:
    they are computed anew. With `affine` its gains and biases also become Σ wᵢ σᵢ and Σ wᵢ μᵢ of its outputs.

    Source: Jordan et al. 2023, "REPAIR", arXiv:2211.08403. Differs from the paper: there all layers are measured in one
    pass, each with the statistics of a batch before it; here layer by layer, each behind those that are repaired.

    Args:
        merged: the merge, in evaluation mode while this runs; it stays as it was.
        parents: what it was merged from, with their units in its order: the reference, and the others aligned to it.
        batches: inputs that all can run on; they are gone through several times. Padding counts nowhere.
        weights: of the parents, from 0 on, divided by their sum; None: all alike.
        how: `sequential`: one pass over the data a layer. `closed_form`: one pass in all; a channel of the merged model
            is taken to be Σ wᵢ · that of the parents, whose variance is (1−α)²σ₀² + 2α(1−α)cov + α²σ₁² for two. That
            holds where units are well matched; in deep networks that are not it can do harm, and so it does to a merge
            that was repaired before.
        affine: see above.
        tell: called with what is being measured, before it is.

    Raises `RecipeError` (F101, G210, G211), and `NumericError` (F102) for NaN or infinity.
    """
    shares = _checked(merged, parents, batches, weights, how)
    # What is copied in inference mode cannot be changed.
    with torch.inference_mode(False):
        module = copy.deepcopy(merged)
    with ExitStack() as modes:
        for one in (module, *parents):
            modes.enter_context(still(one))
        first = next(iter(batches), None)
        if first is None:
            raise RecipeError(Problem("F101", "the loader gave no batch", "batches", "was it used up before?"))
        sites = sites_of(module, Batch.of(first, place_of(module)).head(2))
        work = _Repairing(module, sites, parents, shares, batches, tell or (lambda what: None))
        with torch.no_grad():
            if affine:
                work.take_affine()
            work.reset()
            if how == "sequential":
                work.one_by_one()
            else:
                work.at_once()
    return Repaired(module, work.changed, {**sites.left, **work.left}, tuple(_notes(module, sites, work)))


class _Repairing:
    """A merged module on its way, and what became of its layers so far."""

    def __init__(
        self,
        module: nn.Module,
        sites: Sites,
        parents: Sequence[nn.Module],
        shares: Sequence[float],
        batches: Iterable[Any],
        tell: Callable[[str], None],
    ) -> None:
        self.module, self.changed, self.left = module, dict[str, str](), dict[str, str]()
        self._sites, self._parents, self._shares = sites, parents, shares
        self._batches, self._tell = batches, tell

    def take_affine(self) -> None:
        """Gives batch normalisation the means and deviations that its outputs have in the parents."""
        norms = [path for path in self._sites.norms if self.module.get_submodule(path).affine]
        wanted = self._wanted(dict.fromkeys(norms, "norm"))
        for path in norms:
            part: Any = self.module.get_submodule(path)
            mean, deviation = self._mixed(wanted[path])
            _check_finite(path, mean, deviation)
            part.weight.copy_(deviation * torch.where(part.weight < 0, -1.0, 1.0))
            part.bias.copy_(mean)
            self.changed |= {f"{path}.{name}": "as the outputs of the parents" for name in ("weight", "bias")}

    def reset(self) -> None:
        """Computes the statistics of batch normalisation anew."""
        if self._sites.norms:
            self._tell("statistics of batch normalisation")
            update_bn(self._batches, self.module, forward=lambda module, batch: _on(module, batch).run(module))
            for path in self._sites.norms:
                part: Any = self.module.get_submodule(path)
                _check_finite(path, part.running_mean, part.running_var)
                self.changed |= {f"{path}.{name}": "computed anew" for name in ("running_mean", "running_var")}

    def one_by_one(self) -> None:
        """Repairs each layer behind those that are repaired."""
        forms = self._sites.layers
        if not forms:
            return
        wanted = self._wanted(forms)
        watch = self._watch(forms)
        for number, path in enumerate(forms, 1):
            self._tell(f"layer {number} of {len(forms)}: {path}")
            self._repair(path, wanted[path], watch.moments(self.module, self._batches, [path])[path])
        if self._sites.late:
            self.reset()

    def at_once(self) -> None:
        """Repairs all layers by what their outputs would be if they were those of the parents, mixed."""
        forms = self._sites.layers
        if not forms:
            return
        self._tell("the parents side by side")
        each, mixture = self._watch(forms).mixed(self._parents, self._shares, self._batches)
        for path in forms:
            if path in mixture:
                self._repair(path, [one[path] for one in each], mixture[path])
            else:
                self.left[path] = "each parent gives it other rows, so that they have no covariance"
        if self._sites.late:
            self.reset()

    def _wanted(self, forms: Mapping[str, str]) -> dict[str, list[Moments]]:
        """Path → what each parent's outputs are like."""
        each = []
        for number, parent in enumerate(self._parents, 1):
            self._tell(f"parent {number} of {len(self._parents)}")
            each.append(self._watch(forms).moments(parent, self._batches, list(forms)))
        return {path: [one[path] for one in each] for path in forms}

    def _mixed(self, each: Sequence[Moments]) -> tuple[Tensor, Tensor]:
        """Σ wᵢ μᵢ and Σ wᵢ σᵢ, over the parents that saw something."""
        saw = [(share, one) for share, one in zip(self._shares, each, strict=True) if one.count]
        shares = torch.tensor([share for share, _ in saw], dtype=torch.float64, device=place_of(self.module))
        shares = shares / shares.sum().clamp(min=torch.finfo(shares.dtype).tiny)
        means = torch.stack([one.mean.to(shares.device) for _, one in saw])
        deviations = torch.stack([one.variance.sqrt().to(shares.device) for _, one in saw])
        return shares @ means, shares @ deviations

    def _watch(self, forms: Mapping[str, str]) -> Watch:
        return Watch(forms, {path: _channels(self.module.get_submodule(path), form) for path, form in forms.items()})

    def _repair(self, path: str, wanted: Sequence[Moments], found: Moments) -> None:
        """Gives a layer the moments that are wanted of its outputs, now that it has those that were found."""
        if not found.count or not any(one.count for one in wanted):
            self.left[path] = "no batch reached it"
            return
        part: Any = self.module.get_submodule(path)
        mean, deviation = self._mixed(wanted)
        center, own = (one.to(mean.device) for one in (found.mean, found.variance.sqrt()))
        _check_finite(path, own, center, mean, deviation)
        gain = torch.where(own > 0, deviation / own.clamp(min=torch.finfo(own.dtype).tiny), 1.0)
        clamped = int((gain > MOST).sum())
        gain = gain.clamp(max=MOST)
        along = gain if self._sites.layers[path] == "transposed" else gain.reshape(-1, *[1] * (part.weight.dim() - 1))
        part.weight.copy_(part.weight.double() * along)
        said = f"gains {float(gain.min()):.3g} to {float(gain.max()):.3g}"
        said += f", {clamped} of {len(gain)} held at {MOST:g}" if clamped else ""
        if part.bias is None:
            self.changed[f"{path}.weight"] = f"{said}; no bias, so that means are scaled too"
            return
        part.bias.copy_(mean + gain * (part.bias.double() - center))
        self.changed |= {f"{path}.weight": said, f"{path}.bias": said}


def _check_finite(path: str, *found: Tensor) -> None:
    if not all(bool(one.isfinite().all()) for one in found):
        hint = "a float16 overflow goes away with dtype float32; else weights or data are broken"
        raise NumericError(Problem("F102", "NaN or infinity in what it is given or makes", path, hint))


def _on(module: nn.Module, value: Any) -> Batch:
    return Batch.of(value, place_of(module))


def _channels(part: nn.Module, form: str) -> int:
    weight: Any = part.weight
    return int(weight.shape[1] if form == "transposed" else weight.shape[0])


def _notes(module: nn.Module, sites: Sites, work: _Repairing) -> Iterator[str]:
    kinds = {type(part).__name__ for part in module.modules()}
    norms = sorted(kind for kind in kinds if "LayerNorm" in kind or "RMSNorm" in kind)
    if norms:
        yield f"{listed(norms)} scales each sample by itself, which undoes most of a collapse: expect little"
    scaled = [path for path in sites.layers if f"{path}.weight" in work.changed]
    if bare := [path for path in scaled if f"{path}.bias" not in work.changed]:
        yield f"{len(bare)} of {several(len(scaled), 'layer')} have no bias, so that only their deviations are repaired"
    if not work.changed:
        yield "nothing was repaired: there is no hidden layer that can be"


def problems_of(parents: int, weights: Sequence[float] | None, how: str) -> Iterator[Problem]:
    """What cannot be repaired so, whatever the models are: G210, G211."""
    if not parents:
        yield Problem("G210", "there are none", "parents", "give what it was merged from")
    if how not in HOW:
        yield Problem("G211", f"{how!r} is no way of repair", "how", did_you_mean(str(how), HOW))
    if weights is None:
        return
    if len(weights) != parents:
        yield Problem(
            "G211", f"{several(len(weights), 'weight')} for {several(parents, 'parent')}", "weights", "give one each"
        )
    elif not (all(math.isfinite(one) and one >= 0 for one in weights) and sum(weights) > 0):
        yield Problem("G211", f"must be numbers from 0 on, not all 0: {list(weights)}", "weights")


def _differences(merged: nn.Module, parents: Mapping[str, nn.Module]) -> Iterator[Problem]:
    for where, parent in parents.items():
        if differs := difference(merged, parent):
            message = f"differs from the merge in {differs}"
            yield Problem("G210", message, where, "give what it was merged from, aligned")


def _checked(
    merged: nn.Module, parents: Sequence[nn.Module], batches: Iterable[Any], weights: Sequence[float] | None, how: str
) -> list[float]:
    """The weights, divided by their sum. Raises `RecipeError` (G210, G211) with every problem."""
    problems = list(problems_of(len(parents), weights, how))
    named = {f"parents[{number}]": parent for number, parent in enumerate(parents)}
    problems += list(no_modules("G210", {"merged": merged, **named})) or _differences(merged, named)
    if why := no_batches(batches):
        problems.append(Problem("G211", why, "batches", AGAIN))
    if problems:
        raise RecipeError(problems)
    shares = [1.0] * len(parents) if weights is None else [float(weight) for weight in weights]
    return [share / sum(shares) for share in shares]
