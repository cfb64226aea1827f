"""The registry: a method's signature is its schema. `@method` turns a function of stacked tensors into a `Method`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from eutectic.errors import several
from eutectic.methods import by_hand

if TYPE_CHECKING:
    from torch import Tensor

    from eutectic.kernels.streams import Stream


@dataclass(frozen=True, slots=True)
class Range:
    """Allowed values of a number in a recipe: `Range("(0, 1]")`. Round brackets exclude the end."""

    text: str

    def __contains__(self, value: float) -> bool:
        low, high = (float(end) for end in self.text[1:-1].split(","))
        above = value > low if self.text[0] == "(" else value >= low
        below = value < high if self.text[-1] == ")" else value <= high
        return above and below


Base = Literal["required", "ignored", "first", "optional"]
Statistics = Literal["", "fisher", "gram"]

# (all parameters by recipe name, number of models) -> why they do not go together, or None.
Refusal = Callable[[dict[str, Any], int], str | None]
# The same -> what is made of values that cannot be taken as they are, or None.
Remark = Callable[[dict[str, Any], int], str | None]
Streamed = Callable[[Sequence[Any]], "Stream"]

# In place of a number: what stands in the statistics of the whole model.
GLOBAL = "global"


class _PerModel:
    """Marks a parameter that may take one value a model."""


PerModel = Annotated[float | Sequence[float], _PerModel]
PerModelOrGlobal = Annotated[float | Sequence[float] | Literal["global"], _PerModel]


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter of a method, as recipes see it.

    `kind` is `float`, `int`, `bool` or `choice`; a choice lists its `choices`, which may include booleans
    (`rescale: true | false | l1`). A number may have words besides (`auto`), which are then its `choices`. `default` is
    `None` when the parameter is `required`.
    """

    name: str
    kind: Literal["float", "int", "bool", "choice"]
    per_model: bool
    required: bool
    default: Any
    allowed: Range | None = None
    choices: tuple[Any, ...] = ()

    def describe(self) -> str:
        """`one a model, number in (0, 1], default 0.2`."""
        what = {"float": "number", "int": "integer", "bool": "true or false"}.get(self.kind)
        what = what or "one of " + ", ".join(str(c).lower() if isinstance(c, bool) else str(c) for c in self.choices)
        if self.allowed:
            what += f" in {self.allowed.text}"
        if self.choices and self.kind != "choice":
            what += f" or {' or '.join(self.choices)}"
        default = str(self.default).lower() if isinstance(self.default, bool) else str(self.default)
        ending = "required" if self.required else f"default {default}"
        return f"{'one a model, ' if self.per_model else ''}{what}, {ending}"

    def fault(self, value: object) -> str | None:
        """Why `value` cannot be this parameter's (one value, not a list), or None if it can."""
        if isinstance(value, str) and value in self.choices:
            return None
        if self.kind == "choice":
            known = any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.choices)
            return None if known else f"must be {self.describe().removeprefix('one a model, ').split(', default')[0]}"
        if self.kind == "bool":
            return None if isinstance(value, bool) else "must be true or false"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"must be {' or '.join(['a number', *map(str, self.choices)])}, not {value!r}"
        if not abs(value) <= sys.float_info.max:
            return f"must be a finite number, not {value if isinstance(value, float) else 'one beyond 1.8e308'}"
        if self.kind == "int" and value != int(value):
            return f"must be an integer, not {value}"
        if self.allowed is not None and value not in self.allowed:
            return f"must lie in {self.allowed.text}, not {value:g}"
        return None

    def fault_of(self, value: Any, models: int) -> str | None:
        """As `fault`, of one value or a sequence of one a model."""
        if not self.per_model or isinstance(value, str) or not isinstance(value, Sequence):
            return self.fault(value)
        if len(value) != models:
            return f"has {several(len(value), 'value')} for {several(models, 'model')}"
        return next((why for one in value if (why := self.fault(one))), None)


@dataclass(eq=False)
class Method:
    """A merge method: callable by hand on stacked tensors, and described well enough to be planned and streamed.

    Attributes:
        name: what a recipe's `merge_method` says.
        function: the definition, in plain torch on `(K, *shape)`.
        space: `weights` (the models themselves) or `deltas` (each minus the base; the engine subtracts and adds).
        base: `required`, `ignored` (never an input unless listed), `first` (an endpoint: row 0) or `optional` (weights
            without a base, deltas with one: see `resolved`).
        models: least and most inputs, the base not counted for `deltas`; `None` is no limit.
        elementwise: element i of the result needs element i of the inputs only, so any row range can be computed alone.
        by_row: the streamed form needs the whole rows (along the last axis) that its entries lie in.
        symmetric: the order of the models does not matter.
        scopes: over what a whole-tensor statistic may be taken: `tensor`, and `model` where the paper ranks it all.
        statistics: the kind of statistics that it takes of each model, as its second argument; empty if none.
        random: takes `rng`.
        scoped: takes `scope`, as it has a scope smaller than a tensor.
        also: further papers that the method rests on.
        scratch: bytes of working memory that the plain torch form needs, an entry and model.
        neutral: values under which a model comes out as it went in, where the defaults are not (the contract asks).
        example: values for the recipe on the method's page, where half of everything would make no sense.
        working, streams_when: see `stream`.
        refusal: says why values do not go together.
        remark: says what is made of values that cannot be taken as they are.
        factors, finish: the method in two steps, where the first is expensive and does not depend on all parameters.
    """

    name: str
    function: Callable[..., Tensor]
    family: str
    paper: str
    space: Literal["weights", "deltas"]
    params: Mapping[str, Param]
    base: Base
    models: tuple[int, int | None]
    elementwise: bool
    by_row: bool
    symmetric: bool
    scopes: tuple[str, ...]
    mergekit_defaults: Mapping[str, Any]
    accepted: Mapping[str, str]
    random: bool
    scoped: bool
    statistics: Statistics = ""
    also: tuple[str, ...] = ()
    scratch: int = 12
    neutral: Mapping[str, Any] = field(default_factory=dict)
    example: Mapping[str, Any] = field(default_factory=dict)
    streamed: Streamed | None = field(default=None)
    working: int = field(default=0)
    streams_when: Callable[[Mapping[str, Any]], bool] | None = field(default=None)
    factors: Callable[..., Any] | None = field(default=None)
    finish: Callable[..., Tensor] | None = field(default=None)
    refusal: Refusal | None = field(default=None)
    remark: Remark | None = field(default=None)

    def __post_init__(self) -> None:
        self.__doc__ = self.function.__doc__
        self.__name__ = self.function.__name__
        self.__signature__ = by_hand.signature_of(self)

    def __repr__(self) -> str:
        return by_hand.shown(self)

    @cached_property
    def keywords(self) -> dict[str, str]:
        """The function's name for each parameter by its name in recipes: `lambda` → `lambda_`; also `rng`, `scope`."""
        found = inspect.signature(self.function).parameters.values()
        return {_plain(one.name): one.name for one in found if one.kind is inspect.Parameter.KEYWORD_ONLY}

    def __call__(self, tensors: Tensor, /, *statistics: Tensor | Sequence[Tensor] | None, **parameters: Any) -> Tensor:
        """The method on tensors stacked as `(K, *shape)`; the result has shape `*shape` and the same dtype.

        A method that uses statistics takes those of the K models as its second argument, stacked or as a sequence of
        tensors; None averages. Stacks may be numpy arrays, and `**{"lambda": 1.0}` is `lambda_=1.0`. Arithmetic is in
        float32 (float64 for float64 input), rounded to the input's dtype once, at the end.

        Raises `RecipeError` (R142) for tensors, values or parameters that the method does not take; `NumericError` with
        every stack that holds NaN or infinity (N501), negative Fisher information (N505) or a matrix that is no Gram
        matrix (N506). Values that nobody can see, under `vmap`, in a trace and on `meta`, are not looked at.
        """
        stacked, values = by_hand.taken(self, tensors, statistics, parameters)
        by_hand.refuse_values(self, stacked, statistics)
        return self.applied(stacked, *statistics, **values)

    def applied(self, stacked: Tensor, /, *statistics: Tensor | Sequence[Tensor] | None, **values: Any) -> Tensor:
        """As the call, of what has been checked, or is not to be: parameters go by the function's own names."""
        wide = stacked if str(stacked.dtype) == "torch.float64" else stacked.float()
        return self.function(wide, *statistics, **values).to(wide.dtype).to(stacked.dtype)

    def fault(self, parameters: Mapping[str, Any], models: int) -> str | None:
        """Why these values, by recipe name, do not go together for so many models; None if they do."""
        return self.refusal(self._all(parameters), models) if self.refusal is not None else None

    def note(self, parameters: Mapping[str, Any], models: int) -> str | None:
        """What is made of such values, by recipe name, where they cannot be taken as they are; None if they can."""
        return self.remark(self._all(parameters), models) if self.remark is not None else None

    def _all(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        return {p.name: parameters.get(p.name, p.default) for p in self.params.values()}

    def refuses(self, refusal: Refusal) -> Refusal:
        """Registers what `fault` asks: `refusal(parameters, models)`, all parameters given."""
        self.refusal = refusal
        return refusal

    def remarks(self, remark: Remark) -> Remark:
        """Registers what `note` asks: `remark(parameters, models)`, all parameters given."""
        self.remark = remark
        return remark

    def stream(
        self, factory: Streamed, *, when: Callable[[Mapping[str, Any]], bool] | None = None, working: int = 0
    ) -> Streamed:
        """Registers the same method in passes over blocks of stored bits (see `kernels.streams`).

        `when` says for which parameters of a tensor, by recipe name; for others the plain torch form is used. `working`
        is how many working floats a pass needs, an entry and input.
        """
        self.streamed, self.streams_when, self.working = factory, when, working
        return factory

    def streams(self, parameters: Mapping[str, Any]) -> bool:
        """Whether a tensor with these parameters can be computed in passes over blocks."""
        return self.streamed is not None and (self.streams_when is None or self.streams_when(parameters))

    def prepare(self, factors: Callable[..., Any]) -> Callable[..., Any]:
        """Registers the first of two steps: `factors(tensors, *, …)` with those parameters that it depends on.

        The method's function must equal `finish(factors(tensors, …), …)`; a sweep then computes equal factors once.
        """
        self.factors = factors
        return factors

    def complete(self, finish: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Registers the second of two steps: `finish(factors, *, …)` with those parameters that it depends on."""
        self.finish = finish
        return finish

    def resolved(self, has_base: bool) -> Method:
        """The method as a recipe uses it: of one whose base is optional, the form on deltas or that on weights."""
        if self.base != "optional":
            return self
        return replace(self, space="deltas" if has_base else "weights", base="required" if has_base else "ignored")


_METHODS: dict[str, Method] = {}


def _plain(name: str) -> str:
    """What recipes call what Python's own words force an underscore on: `lambda_` → `lambda`."""
    return name.rstrip("_")


def _param(parameter: inspect.Parameter, namespace: dict[str, Any]) -> Param:
    annotation = parameter.annotation
    if isinstance(annotation, str):
        # Resolved one by one: `Tensor` may not be importable without torch, and is never a parameter's type.
        annotation = eval(annotation, namespace)
    extras: tuple[Any, ...] = ()
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        extras += tuple(more)
    per_model = any(extra is _PerModel for extra in extras)
    choices: tuple[Any, ...] = ()
    # Words beside a number leave it a number; beside true and false they make a choice.
    numeric = float in get_args(annotation)
    for part in get_args(annotation) or ():
        choices = (*(() if numeric else (True, False)), *get_args(part)) if get_origin(part) is Literal else choices
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
    kind: Literal["float", "int", "bool", "choice"]
    if choices and not numeric:
        kind = "choice"
    elif annotation is bool:
        kind = "bool"
    elif annotation is int:
        kind = "int"
    else:
        kind = "float"
    required = parameter.default is inspect.Parameter.empty
    return Param(
        name=_plain(parameter.name),
        kind=kind,
        per_model=per_model,
        required=required,
        default=None if required else parameter.default,
        allowed=next((extra for extra in extras if isinstance(extra, Range)), None),
        choices=choices,
    )


def _signature(function: Callable[..., Any], tensors: int) -> tuple[Any, list[inspect.Parameter]]:
    """Its space, and the parameters after the `tensors` that come first. Raises `ValueError` for what is no method."""
    found = list(inspect.signature(function).parameters.values())
    if not found or found[0].name not in ("weights", "deltas"):
        raise ValueError(f"{function.__name__}: the first argument must be called `weights` or `deltas`")
    if len(found) < tensors or any(p.kind is not inspect.Parameter.KEYWORD_ONLY for p in found[tensors:]):
        after = " after weights and statistics" if tensors == 2 else ""
        raise ValueError(f"{function.__name__}: parameters must be keyword-only{after}")
    return found[0].name, found[tensors:]


def method(
    *,
    paper: str,
    family: str,
    base: Base,
    models: tuple[int, int | None] = (1, None),
    elementwise: bool = False,
    by_row: bool = False,
    symmetric: bool = True,
    scopes: tuple[str, ...] = ("tensor",),
    mergekit_defaults: Mapping[str, Any] | None = None,
    accepted: Mapping[str, str] | None = None,
    statistics: Statistics = "",
    also: tuple[str, ...] = (),
    scratch: int = 12,
    neutral: Mapping[str, Any] | None = None,
    example: Mapping[str, Any] | None = None,
) -> Callable[[Callable[..., Tensor]], Method]:
    """Declares a function as a merge method and registers it under its name.

    The first argument, `weights` or `deltas`, says the space; keyword-only arguments are the parameters, an ending
    underscore is dropped (`lambda_` is `lambda` in recipes), `rng` asks for randomness and `scope` for the recipe's.
    A method with `statistics` takes them after that, in a positional argument of any name.
    `mergekit_defaults` names defaults that differ there (said by `plan`); `accepted` names parameters taken for
    compatibility that do nothing, with the reason; `also` names further papers; `scratch` says what memory the torch
    form needs; the rest is as in `Method`. Raises `ValueError` for a function that cannot be a method.
    """

    def declare(function: Callable[..., Tensor]) -> Method:
        space, signature = _signature(function, 2 if statistics else 1)
        found = [_param(p, function.__globals__) for p in signature if p.name not in ("rng", "scope")]
        made = Method(
            name=_plain(function.__name__),
            function=function,
            family=family,
            paper=paper,
            space=space,
            params={p.name: p for p in found},
            base=base,
            models=models,
            elementwise=elementwise,
            by_row=by_row,
            symmetric=symmetric,
            scopes=scopes,
            mergekit_defaults=mergekit_defaults or {},
            accepted=accepted or {},
            random=any(p.name == "rng" for p in signature),
            scoped=any(p.name == "scope" for p in signature),
            statistics=statistics,
            also=also,
            scratch=scratch,
            neutral=neutral or {},
            example=example or {},
        )
        _METHODS[made.name] = made
        return made

    return declare


def get(name: str) -> Method | None:
    """The method of that name, built in or from the entry-point group `eutectic.methods`; None if there is none."""
    if name not in _METHODS:
        for point in _offered():
            if point.name == name:
                point.load()
    return _METHODS.get(name)


def names() -> list[str]:
    """Every method's name, built in ones and those that installed packages offer."""
    return sorted({*_METHODS, *(point.name for point in _offered())})


@cache
def _offered() -> tuple[EntryPoint, ...]:
    """What installed packages offer. Looking for it takes longer than reading a recipe, and a search reads hundreds."""
    return tuple(entry_points(group="eutectic.methods"))
