"""Activation matching: units go together that fire together on the same data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from eutectic.alignment.common import refuse_no_modules
from eutectic.alignment.comparing import Pair, compared
from eutectic.alignment.correlated import Correlated
from eutectic.alignment.features import View, distinct, rows_of, views_of
from eutectic.alignment.matching import match_weights
from eutectic.alignment.model import Match
from eutectic.alignment.moves import essential
from eutectic.checkpoint import MemorySource, Source
from eutectic.checkpoint.symmetry import Moves, Symmetries
from eutectic.errors import NumericError, Problem, RecipeError, ResourceError, listed, several
from eutectic.kernels.comoments import Comoments
from eutectic.lazy import LazyModule
from eutectic.run.budget import enough
from eutectic.statistics.batches import Batch, Parts
from eutectic.statistics.doors import place_of
from eutectic.statistics.layers import still

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

# A view of A's units and that of B's.
Both = tuple[View, View]


def match_activations(
    a: nn.Module,
    b: nn.Module,
    batches: Iterable[Any],
    symmetries: Symmetries,
    *,
    sources: tuple[Source, Source] | None = None,
    memory: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Match:
    """Finds the units of B that go with A's by the correlation of what they do on the same data.

    Units are looked at where the next layer reads them, behind the nonlinearity: in the inputs of linear layers and
    convolutions. Samples are the positions that are not padding, the places of a convolution, and those behind a
    flatten. The correlations of all layers that read a group are added; each group is then one assignment, exactly.
    A unit that is constant on the data correlates with nothing, and goes with one that is left. Units that may change
    their sign go by |correlation|.

    What no input shows (heads, whose vectors have bases of their own; experts, which see different data in each
    model) and what is no order (scales, bases) is matched by weights, the orders found here given; `notes` says what.

    Source: Li et al. 2016, arXiv:1511.07543; Ainsworth et al. 2023, arXiv:2209.04836, §3.1. Differs from the latter:
    there E[ab] is maximised, in which a unit that is large, not one that is alike, goes first; here Pearson's
    correlation, as in Jordan et al. 2023 and Stoica et al. 2024.

    Args:
        a: the model that stands, a module with its weights; it runs in evaluation mode and is left as it was.
        b: the one that moves, of the same architecture.
        batches: inputs that both can run on: tensors, mappings of keyword arguments, or sequences whose first item is
            one of these. Gone through once, or once for each pass that `memory` asks for.
        symmetries: of both.
        sources: their weights by the names of the table, for what is matched by weights; None: those of the modules.
        memory: bytes for the sums of one pass, 8 for each pair of units; None: one pass.
        seed: of matching by weights.
        progress: called with the number of samples after each batch.

    Returns a match whose objective is Σ correlation of the units brought together, and `start` that of the identity.
    Sums are float64, so that the size of batches matters to rounding alone.

    Raises `RecipeError` (F101 no data, F104, G173, G200, G201), `ResourceError` (G202), `NumericError` (F102) for NaN.
    """
    refuse_no_modules(a=a, b=b)
    with still(a), still(b):
        moves, start, value = _matched(a, b, batches, symmetries, memory, progress)
    weights = sources or (_source(a), _source(b))
    moves, notes = _completed(moves, symmetries, weights, seed)
    before, after, changes = compared(Pair(*weights, symmetries, 0), moves)
    return Match(essential(moves), (value,), start, before, after, changes, notes)


def _matched(
    a: nn.Module,
    b: nn.Module,
    batches: Iterable[Any],
    symmetries: Symmetries,
    memory: int | None,
    progress: Callable[[int], None] | None,
) -> tuple[Moves, float, float]:
    """Orders and signs of the groups that are seen, and Σ correlation at the identity and for them."""
    first, batches = _begun(batches)
    views = _views(a, b, symmetries, Batch.of(first, place_of(a)))
    passes = _passes(_together(views, symmetries), memory)
    if len(passes) > 1 and isinstance(batches, Iterator):
        message = f"the sums take {len(passes)} passes, and these batches can be gone through once"
        raise RecipeError(Problem("G200", message, "batches", "give a list, a DataLoader, or more memory"))
    moves, start, value = Moves({}, {}), 0.0, 0.0
    for parts in passes:
        sums = _collected(a, b, [view for part in parts for view in part], batches, progress)
        for part in parts:
            seen = {view: sums[view].correlation.cpu() for view, _ in part if sums[view].left.count}
            one = Correlated(symmetries, seen)
            start += one.value()
            one.solve()
            value += one.value()
            moves = Moves({**moves.orders, **one.orders}, {**moves.scales, **one.signs})
    return moves, start, value


def _completed(
    moves: Moves, symmetries: Symmetries, sources: tuple[Source, Source], seed: int
) -> tuple[Moves, tuple[str, ...]]:
    """The moves with what activations do not tell, matched by weights; and notes of what that was."""
    shown = moves.orders
    unseen = [name for name in symmetries.groups if name not in shown]
    scaled = [name for name in shown if symmetries.groups[name].scale in ("positive", "any")]
    continuous = [*scaled, *symmetries.gauges]
    if not unseen and not continuous:
        return moves, ()
    notes = [f"no layer's input shows the units of {listed(unseen)}: matched by weights"] if unseen else []
    notes += [f"scales and bases of {listed(continuous)} are matched by weights"] if continuous else []
    begun = Moves({**_moved_along(shown, symmetries), **shown}, moves.scales)
    found = match_weights(*sources, symmetries, seed=seed, start=begun, fixed=tuple(shown))
    return found.moves, (*notes, *found.notes)


def _moved_along(orders: Mapping[str, Tensor], symmetries: Symmetries) -> dict[str, Tensor]:
    """The orders of units that nothing shows and that move with those they are within."""
    found: dict[str, Tensor] = {}
    left = [name for name in symmetries.groups if name not in orders]
    for name in sorted(left, key=lambda name: symmetries.groups[name].size):
        parent = symmetries.groups[name].within
        order = found.get(parent or "", orders.get(parent or ""))
        if order is not None:
            count = symmetries.groups[name].size // len(order)
            found[name] = (order[:, None] * count + torch.arange(count)).reshape(-1)
    return found


def _begun(batches: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """The first batch, and all of them."""
    going = iter(batches)
    for first in going:
        return first, chain([first], going) if isinstance(batches, Iterator) else batches
    raise RecipeError(Problem("F101", "the loader gave no batch", "batches", "was it used up before?"))


def _views(a: nn.Module, b: nn.Module, symmetries: Symmetries, first: Batch) -> list[Both]:
    """What a batch shows of the units, each input once. Raises `RecipeError` (G201)."""
    views, others = (views_of(symmetries, module) for module in (a, b))
    mine, theirs = ({view.key: view for view in found} for found in (views, others))
    differ = [key for key in {**mine, **theirs} if key not in mine or key not in theirs]
    if differ:
        message = f"the models read their units in different layers: {listed(sorted({name for name, _ in differ}))}"
        raise RecipeError(Problem("G201", message, "b", "activations are matched between models of one architecture"))
    shown = distinct(a, views, first.head(2))
    if first.mask is not None:
        apart = distinct(a, views, first.sample(0))
        shown = apart if len(apart) > len(shown) else shown
    if not shown:
        message = "no linear layer or convolution that runs reads units of the table"
        raise RecipeError(Problem("G201", message, type(a).__name__, "match by weights"))
    return [(view, theirs[view.key]) for view in shown]


def _together(pairs: Sequence[Both], symmetries: Symmetries) -> list[list[Both]]:
    """Views whose groups depend on each other."""
    found: list[tuple[set[str], list[Both]]] = []
    for pair in pairs:
        names = {name for group in pair[0].groups for name in _line(group, symmetries)}
        own = [pair]
        for one in [one for one in found if one[0] & names]:
            found.remove(one)
            names, own = names | one[0], one[1] + own
        found.append((names, own))
    return [own for _, own in found]


def _line(name: str, symmetries: Symmetries) -> Iterator[str]:
    """A group and those it is within."""
    while name:
        yield name
        name = symmetries.groups[name].within or ""


def _passes(together: Sequence[list[Both]], memory: int | None) -> list[list[list[Both]]]:
    """Fills each pass over the data up to the bound. Raises `ResourceError` (G202)."""
    passes: list[list[list[Both]]] = [[]]
    held = 0
    for part in together:
        size = sum(8 * view.units**2 for view, _ in part)
        if memory is not None and size > memory:
            names = sorted({name for view, _ in part for name in view.groups})
            message = f"{memory:,} bytes hold no pass: what is to be known of {listed(names)} takes {size:,}"
            raise ResourceError(Problem("G202", message, "memory", f"give at least {enough(size)}"))
        if passes[-1] and memory is not None and held + size > memory:
            passes.append([])
            held = 0
        passes[-1].append(part)
        held += size
    return passes


def _collected(
    a: nn.Module,
    b: nn.Module,
    pairs: Sequence[Both],
    batches: Iterable[Any],
    progress: Callable[[int], None] | None,
) -> dict[View, Comoments]:
    """Goes through the data once."""
    mine, theirs = [view for view, _ in pairs], [view for _, view in pairs]
    sums = {view: Comoments(view.units, view.units, place_of(a)) for view in mine}
    parts, done = Parts(), 0

    def mixes(head: Batch) -> bool:
        return len(rows_of(a, mine, head)) < len(rows_of(a, mine, head.sample(0)))

    for value in batches:
        batch = Batch.of(value, place_of(a))
        for part in parts.of(batch, mixes):
            left, right = rows_of(a, mine, part), rows_of(b, theirs, part.to(place_of(b)))
            for view, one in sums.items():
                # What a router sends to a layer in one model need not be what it sends there in the other.
                for x, y in zip(left.get(view.key, []), right.get(view.key, []), strict=False):
                    if len(x) == len(y):
                        one.add(x, y.to(x.device))
        done += batch.size
        _check_finite(sums, done)
        if progress is not None:
            progress(batch.size)
    return sums


def _check_finite(sums: Mapping[View, Comoments], done: int) -> None:
    for view, one in sums.items():
        for label, moments in (("the first", one.left), ("the second", one.right)):
            if not bool(moments.variance.isfinite().all()):
                message = f"NaN or infinity in {label} model, within {several(done, 'sample')}"
                hint = "a float16 overflow goes away with dtype float32; else weights or data are broken"
                raise NumericError(Problem("F102", message, view.layer.path, hint))


def _source(module: nn.Module) -> Source:
    return MemorySource(type(module).__name__, module)
