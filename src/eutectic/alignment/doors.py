"""Two models as users name them -> an alignment; one model -> whether its symmetries hold."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from eutectic.alignment.activations import match_activations
from eutectic.alignment.common import Common, common, still, without
from eutectic.alignment.comparing import Pair
from eutectic.alignment.costs import Cost, predict
from eutectic.alignment.finding import symmetries_of
from eutectic.alignment.found import digests_of, filled, refuse_twins, same_request, there, unproved
from eutectic.alignment.matching import match_weights
from eutectic.alignment.model import Match
from eutectic.alignment.orthogonal import match_orthogonal
from eutectic.alignment.proof import Check, check
from eutectic.alignment.sinkhorn import match_sinkhorn
from eutectic.alignment.straight_through import match_straight_through
from eutectic.checkpoint import Alignment, Named, Source
from eutectic.checkpoint.alignment import ABOUT
from eutectic.checkpoint.existing import REPLACE, refuse_place
from eutectic.checkpoint.symmetry import Moves, Symmetries
from eutectic.errors import Problem, RecipeError, did_you_mean, several
from eutectic.evaluate import LiveSource, Loader, Settings
from eutectic.evaluate.opening import opened, refuse_several
from eutectic.lazy import LazyModule
from eutectic.plan.labels import labels_of
from eutectic.statistics.batches import Batch
from eutectic.statistics.models import Given, Options, given_data

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

Method = Literal["weights", "orthogonal", "activations", "straight_through", "sinkhorn"]
METHODS: tuple[Method, ...] = ("weights", "orthogonal", "activations", "straight_through", "sinkhorn")
# Those that follow the loss at the midpoint of the models.
BY_GRADIENT: dict[Method, Callable[..., Match]] = {
    "straight_through": match_straight_through,
    "sinkhorn": match_sinkhorn,
}
# What a method needs, and what else it takes; those by the loss need data, a loss and a number of steps.
_TAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "weights": ((), ("restarts",)),
    "orthogonal": ((), ("restarts",)),
    "activations": (("data",), ()),
}
MEMORY = 1 << 30
# Tokens of a sequence that symmetries are proved with, and pixels of a side where a model takes images of any size.
_TOKENS, _PIXELS = 16, 64


@dataclass(frozen=True)
class _Request:
    """What `align` was asked for, but for the models."""

    method: Method
    data: Any
    module: Callable[[], nn.Module] | None
    tokenizer: Any
    inputs: Any
    symmetries: Symmetries | None
    loss: Callable[[Any, Any], Tensor] | None
    steps: int | None
    seed: int
    restarts: int
    sweeps: int
    memory: int
    options: Options
    tell: Callable[[str], None]
    on_plan: Callable[[Cost], None]

    def check(self, others: Sequence[Any] = ()) -> None:
        """Raises `RecipeError` (G116) with everything that is missing or has no use; `others` are models too many."""
        problems = []
        if others:
            hint = "`eutectic.alignment.align_all([a, b, ...])` aligns more"
            problems.append(Problem("G116", f"aligns two models, not {2 + len(others)}", "align", hint))
        if self.method not in METHODS:
            hint = did_you_mean(self.method, METHODS) or f"there are {', '.join(METHODS)}"
            problems.append(Problem("G116", f"{self.method!r} is no way to match units", "method", hint))
            raise RecipeError(problems)
        given = {"data": self.data, "loss": self.loss, "steps": self.steps, "restarts": self.restarts or None}
        needs, takes = _TAKES.get(self.method, (("data", "loss", "steps"), ()))
        for name, value in given.items():
            if value is None and name in needs:
                hint = "give a file of text, or batches" if name == "data" else ""
                problems.append(Problem("G116", f"{self.method} needs {name}", name, hint))
            elif value is not None and name not in (*needs, *takes):
                problems.append(Problem("G116", f"{self.method} uses no {name}", name, "leave it out"))
        problems += self._kinds()
        if problems:
            raise RecipeError(problems)

    def _kinds(self) -> Iterator[Problem]:
        """Arguments that are something else than what they should be."""
        for name, value in (("restarts", self.restarts), ("sweeps", self.sweeps), ("memory", self.memory)):
            if type(value) is not int:
                yield Problem("G116", f"must be a whole number, not {value!r}", name)
        for name, function in (("tell", self.tell), ("on_plan", self.on_plan)):
            if not callable(function):
                yield Problem("G116", f"must be a function to call, not {function!r}", name)
        if isinstance(self.data, torch.Tensor):
            hint = "give a list of batches, as `tensor.split(64)` makes one"
            yield Problem("G116", "one tensor is no sequence of batches", "data", hint)
        if not isinstance(self.symmetries, Symmetries | None):
            message = f"a {type(self.symmetries).__name__} is no table of symmetries"
            yield Problem("G116", message, "symmetries", "leave it out, or give what `symmetries_of` returns")


def align(
    a: Any,
    b: Any,
    *others: Any,
    method: Method = "weights",
    data: Any = None,
    module: Callable[[], nn.Module] | None = None,
    tokenizer: Any = None,
    inputs: Any = None,
    symmetries: Symmetries | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    steps: int | None = None,
    seed: int = 0,
    restarts: int = 0,
    sweeps: int = 100,
    memory: int = MEMORY,
    options: Options | None = None,
    tell: Callable[[str], None] | None = None,
    on_plan: Callable[[Cost], None] | None = None,
    out: str | os.PathLike[str] | None = None,
    replace: bool = False,
) -> Alignment:
    """Finds the moves that take the units of a model to where those of another stand. Neither model changes.

    Args:
        a: the model that stays, as for `eutectic.open`, a live module, or a recipe, whose merge is not written.
        b, others: the one that moves, of the same architecture; more are refused, as they are for `align_all`.
        method: `weights`, `orthogonal`, `activations` (needs `data`), `straight_through` or `sinkhorn` (need `data`,
            `loss` and `steps`): what `match_weights`, … say of them.
        data: a file of text for a causal language model, or batches that can be gone through again.
        module: makes the module that the weights are loaded into, where they are no model of `transformers`.
        tokenizer: as for `eutectic.evaluate`.
        inputs: what a module is called with, to trace it if no symmetries are declared, and to prove those that its
            names alone tell; by default the first batch's.
        symmetries: the table of both; by default what `symmetries_of` finds.
        loss, steps: see `match_straight_through`.
        seed: of what is drawn; the same seed gives the same alignment.
        restarts, sweeps, memory: see `match_weights`.
        options: how to go through data, as for `eutectic.statistics.collect`.
        tell: called with how far matching is, in words.
        on_plan: called before weights are matched with what that takes, by `predict`.
        out: a folder to write to, as `Alignment.save` does; if it holds this very alignment, that one is given back.
        replace: whether the folder may be replaced.

    Raises `RecipeError`: G116 for what the method lacks or has no use for, R133 for one model named twice, G160 to
    G163 (no symmetries), G170 and G171 for tensors in which the models differ, W401 if `out` is there; `OutputError`
    (W405) if the folder above it is not; and what the methods raise.
    """
    plain = (method, data, module, tokenizer, inputs, symmetries, loss, steps, seed, restarts, sweeps, memory)
    told: tuple[Any, ...] = (tell or (lambda said: None), on_plan or (lambda cost: None))
    ask = _Request(*plain, options or Options(seed=seed), *told)
    ask.check(others)
    if out is not None:
        refuse_place(out, replace=replace, manifest=ABOUT)
    live = module is None
    with opened([a], live=live) as first, opened([b], live=live) as second:
        found = _aligned(refuse_several(first), refuse_several(second), ask, out, replace)
    if out is not None:
        found.save(out, replace=replace)
    return found


def _aligned(a: Source, b: Source, ask: _Request, out: str | os.PathLike[str] | None, replace: bool) -> Alignment:
    """The alignment of two open models; what is in `out`, if that is the same."""
    refuse_twins((a, b))
    given = _given(ask, a)
    both = _common(a, b, ask, given)
    labels = labels_of([a, b])
    stays, moves = (Named(label, digests_of(one)) for label, one in zip(labels, (a, b), strict=True))
    settings: dict[str, Any] = {"seed": ask.seed, "restarts": ask.restarts, "sweeps": ask.sweeps}
    if given is not None:
        settings = {"seed": ask.seed, "data": given.identity, "steps": ask.steps}
    empty = Alignment(both.moved, Moves(), stays, moves, ask.method, settings)
    if out is not None and (standing := there(out, replace)) is not None:
        # Functions cannot be told apart.
        if ask.loss is None and same_request(standing, empty):
            return standing
        if not replace:
            raise RecipeError(Problem("W401", "exists", os.fspath(out), REPLACE))
    match, table = _matched(a, b, both, ask, given)
    notes = (*both.notes, *unproved(table), *(given.notes if given else ()))
    return filled(dataclasses.replace(empty, symmetries=table), match, notes)


def _common(a: Source, b: Source, ask: _Request, given: Given | None) -> Common:
    """What is matched. Refuses unlike models before anything is read."""
    of_a = ask.symmetries or _table(a, ask, given)
    # What moves in one model and is not in the other is refused, whatever else the other has.
    apart = a.specs.keys() - b.specs.keys() - still(of_a)
    of_b = of_a if ask.symmetries or apart or a.specs.keys() == b.specs.keys() else _table(b, ask, given)
    found = common(a, b, of_a, of_b)
    Pair(found.a, found.b, found.symmetries, memory=0)
    return found


def prove(
    model: Any,
    *,
    module: Callable[[], nn.Module] | None = None,
    inputs: Any = None,
    symmetries: Symmetries | None = None,
    elements: int = 3,
    seed: int = 0,
) -> tuple[Symmetries, Check]:
    """Finds the symmetries of a model and checks in float64 that they leave what it computes as it is.

    Args:
        model: as for `eutectic.open`, or a live module.
        module: makes the module that the weights are loaded into; by default `transformers` makes the one that
            config.json names.
        inputs: what to call it with; by default random tokens, or a random image, as config.json tells.
        symmetries: the table; by default what `symmetries_of` finds.
        elements: random elements of the group that are tried.
        seed: of what is drawn.

    Returns the table and the check. Raises `RecipeError` (G116 where inputs are not known, G160 to G163), E905 where
    the weights are no module, and what `check` raises.
    """
    with opened([model], live=module is None) as sources:
        source = refuse_several(sources)
        loader = Loader(module)
        kind: Literal["any", "saved"] = "any" if module is not None or isinstance(source, LiveSource) else "saved"
        with loader.module(source, kind, dtype="float64") as made:
            given = _inputs_for(made, seed) if inputs is None else inputs
            table = symmetries or symmetries_of(source, module=made, inputs=given)
            return table, check(*_runnable(source, table, made), given, elements=elements, seed=seed)


def _runnable(source: Source, symmetries: Symmetries, module: nn.Module) -> tuple[nn.Module, Symmetries]:
    """A module with tensors by the names of a table, and the table without stored buffers that the module lacks."""
    names = module.state_dict().keys()
    named = without(symmetries, still(symmetries) - names)
    if isinstance(source, LiveSource) or names >= source.specs.keys() - still(symmetries):
        return module, named
    from eutectic.alignment.stored import Stored  # a class of torch's, which not every command needs

    return Stored(source), symmetries


def _given(ask: _Request, a: Source) -> Given | None:
    """The batches, where the method uses data."""
    return None if ask.data is None else given_data(ask.data, ask.options, a, _run(ask))


def _run(ask: _Request) -> Settings:
    how = ask.options
    return Settings(how.device, how.batch, how.samples, how.seed, Loader(ask.module, ask.tokenizer))


def _table(source: Source, ask: _Request, given: Given | None) -> Symmetries:
    """What is declared for the model, or traced of its module on the inputs that there are."""
    inputs = ask.inputs
    if inputs is None and given is not None and given.first is not None:
        device = next(source.module.parameters()).device if isinstance(source, LiveSource) else None
        inputs = Batch.of(given.first, device).inputs
    if isinstance(source, LiveSource):
        return symmetries_of(source, module=source.module, inputs=inputs)
    return symmetries_of(source, module=ask.module() if ask.module else None, inputs=inputs)


def _matched(a: Source, b: Source, both: Common, ask: _Request, given: Given | None) -> tuple[Match, Symmetries]:
    """What the method finds, and the table of the second model that its moves are of."""
    if given is None:
        return _by_weights(both, ask)
    with _module(a, ask, given) as first:
        if ask.method in BY_GRADIENT:
            return _by_gradient(first, both, given, ask), both.moved
        with _module(b, ask, given) as second:
            match = match_activations(
                first,
                second,
                given,
                both.symmetries,
                sources=(both.a, both.b),
                memory=ask.memory,
                seed=ask.seed,
                progress=lambda samples: ask.tell(f"{several(samples, 'sample')}"),
            )
            return match, both.moved


def _by_weights(both: Common, ask: _Request) -> tuple[Match, Symmetries]:
    def tell(sweep: int, done: int, of: int) -> None:
        ask.tell(f"sweep {sweep}: {done} of {of}")

    ask.on_plan(predict(both.a.specs, both.symmetries, sweeps=ask.sweeps, restarts=ask.restarts))
    ask.tell("sweep 0: both models to their least norm")
    how: dict[str, Any] = {key: getattr(ask, key) for key in ("seed", "restarts", "sweeps", "memory")}
    if ask.method == "weights":
        return match_weights(both.a, both.b, both.symmetries, progress=tell, **how), both.moved
    match, table = match_orthogonal(both.a, both.b, both.symmetries, progress=tell, **how)
    return match, dataclasses.replace(table, axes={**both.moved.axes, **table.axes})


def _by_gradient(module: nn.Module, both: Common, given: Given, ask: _Request) -> Match:
    assert ask.loss is not None and ask.steps is not None

    def tell(steps: int, loss: float) -> None:
        ask.tell(f"{steps} of {ask.steps} steps, loss {loss:.4g}")

    # Loaders give modules for inference.
    with torch.inference_mode(False):
        return BY_GRADIENT[ask.method](
            module, both.a, both.b, given, ask.loss, both.symmetries, steps=ask.steps, seed=ask.seed, tell=tell
        )


@contextmanager
def _module(source: Source, ask: _Request, given: Given) -> Iterator[nn.Module]:
    """A model as a module of its own: a loader has one at a time."""
    loader = Loader(ask.module, ask.tokenizer)
    with loader.module(source, given.kind, device=ask.options.device, dtype=ask.options.dtype) as made:
        yield made


def _inputs_for(module: Any, seed: int) -> dict[str, Any]:
    """Random inputs of a model of `transformers`. Raises `RecipeError` (G116) where its config does not tell them."""
    config = getattr(module, "config", None)
    name = getattr(module, "main_input_name", "")
    draw = torch.Generator().manual_seed(seed)
    if name == "input_ids" and (words := getattr(config, "vocab_size", None)):
        length = min(_TOKENS, getattr(config, "max_position_embeddings", _TOKENS))
        return {name: torch.randint(words, (2, length), generator=draw)}
    size, channels = getattr(config, "image_size", _PIXELS), getattr(config, "num_channels", None)
    if name == "pixel_values" and isinstance(size, int) and isinstance(channels, int):
        return {name: torch.randn(2, channels, size, size, generator=draw)}
    message = f"nothing says what {type(module).__name__} is called with"
    raise RecipeError(Problem("G116", message, "inputs", "in Python, give `inputs=`"))
